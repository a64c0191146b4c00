//! As much of Markdown as the project's documents have.
#![allow(dead_code, reason = "each test file uses a part of this module")]

use std::fs;
use std::path::{Path, PathBuf};

/// A document of this checkout.
pub struct Document {
    /// From the checkout's root.
    pub path: PathBuf,
    pub text: String,
}

/// A fenced block.
pub struct Block {
    /// What stands behind the fence. Empty: nothing.
    pub language: String,
    pub text: String,
    /// The heading that it stands below.
    pub section: String,
}

/// A line of a document, by what it is.
enum Line<'a> {
    /// Level and text.
    Heading(usize, &'a str),
    /// The language.
    Begin(&'a str),
    InBlock(&'a str),
    End,
    Prose(&'a str),
}

impl Document {
    pub fn read(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_owned();
        let text = fs::read_to_string(checkout().join(&path));
        Self { text: text.unwrap_or_else(|error| panic!("read {}: {error}", path.display())), path }
    }

    /// All that people read.
    pub fn all() -> Vec<Self> {
        let mut paths: Vec<PathBuf> =
            ["README.md", "CHANGELOG.md", "benches/README.md", "benches/RESULTS.md"]
                .map(PathBuf::from)
                .into();
        for entry in fs::read_dir(checkout().join("docs")).expect("read docs/") {
            let name = entry.expect("read docs/").file_name();
            if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
                paths.push(Path::new("docs").join(name));
            }
        }
        paths.iter().map(Self::read).collect()
    }

    fn lines(&self) -> Vec<Line<'_>> {
        let mut is_in_block = false;
        let mut lines = Vec::new();
        for line in self.text.lines() {
            let level = line.chars().take_while(|c| *c == '#').count();
            // Within a list, a block is indented.
            lines.push(if let Some(language) = line.trim_start().strip_prefix("```") {
                is_in_block = !is_in_block;
                if is_in_block { Line::Begin(language.trim()) } else { Line::End }
            } else if is_in_block {
                Line::InBlock(line)
            } else if level > 0 && line[level..].starts_with(' ') {
                Line::Heading(level, line[level..].trim())
            } else {
                Line::Prose(line)
            });
        }
        assert!(!is_in_block, "{}: a block does not end", self.path.display());
        lines
    }

    pub fn blocks(&self) -> Vec<Block> {
        let (mut blocks, mut section) = (Vec::new(), "");
        for line in self.lines() {
            match line {
                Line::Heading(_, text) => section = text,
                Line::Begin(language) => blocks.push(Block {
                    language: language.to_owned(),
                    text: String::new(),
                    section: section.to_owned(),
                }),
                Line::InBlock(line) => {
                    let block = blocks.last_mut().expect("it has begun");
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                Line::End | Line::Prose(_) => {}
            }
        }
        blocks
    }

    /// What is outside of blocks.
    pub fn prose(&self) -> Vec<&str> {
        let prose = |line| match line {
            Line::Prose(line) | Line::Heading(_, line) => Some(line),
            _ => None,
        };
        self.lines().into_iter().filter_map(prose).collect()
    }

    /// The prose below a heading, with that below lesser ones. Panics when there is no such heading.
    pub fn section(&self, heading: &str) -> Vec<&str> {
        let mut lines = self.lines().into_iter();
        let level = lines.find_map(|line| match line {
            Line::Heading(level, text) if text == heading => Some(level),
            _ => None,
        });
        let level = level.unwrap_or_else(|| panic!("{} has no heading {heading:?}", self.path.display()));
        let own = lines.take_while(|line| !matches!(line, Line::Heading(other, _) if *other <= level));
        own.filter_map(|line| match line {
            Line::Prose(line) => Some(line),
            _ => None,
        })
        .collect()
    }

    /// What a link to one of its headings ends in.
    pub fn anchors(&self) -> Vec<String> {
        let anchor = |line| match line {
            Line::Heading(_, text) => Some(anchor(text)),
            _ => None,
        };
        self.lines().into_iter().filter_map(anchor).collect()
    }

    /// Where its links lead.
    pub fn links(&self) -> Vec<&str> {
        let mut links = Vec::new();
        for line in self.prose() {
            links.extend(line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)));
        }
        links
    }

    /// What stands between backticks in the prose.
    pub fn codes(&self) -> Vec<&str> {
        self.prose().into_iter().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
    }
}

/// As GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

/// The rows of tables whose first cell is code: the code, and the other cells.
pub fn rows<'a>(lines: &[&'a str]) -> Vec<(&'a str, Vec<&'a str>)> {
    let row = |line: &&'a str| {
        let mut cells = line.strip_prefix("| `")?.strip_suffix('|')?.split('|').map(str::trim);
        let code = cells.next()?.strip_suffix('`')?;
        // Two backticks are around code that has one in it.
        let code = code.strip_prefix('`').and_then(|code| code.strip_suffix('`')).unwrap_or(code);
        Some((code, cells.collect()))
    };
    lines.iter().filter_map(row).collect()
}

pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
