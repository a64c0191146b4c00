//! What a fetch leaves for a store: the rows of one snapshot as `COPY` text, in memory while small and in a
//! file when not, with the errors met on the way.
//!
//! It is one log of pieces, each belonging to a section; several fetches of one snapshot write side by side.
//! The file has no name, so that nothing is left of it whatever happens to the process.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use crate::postgres::extension::Table;

/// How much is written and read back at a time, in bytes: each time another thread is woken for it.
const BLOCK_BYTES: usize = 256 << 10;

/// The rows and errors of one snapshot.
#[derive(Debug)]
pub struct Spool {
    /// What went wrong on the way, for `powa_snapshot_metas.errors`.
    pub errors: Vec<String>,
    sections: Vec<Section>,
    body: Body,
    memory_limit: usize,
    directory: PathBuf,
}

/// The rows of one datasource of one database.
#[derive(Debug)]
struct Section {
    target: Table,
    pieces: Vec<Range<u64>>,
    rows: u64,
}

/// A section that is being written.
#[derive(Debug, Clone, Copy)]
pub struct SectionId(usize);

#[derive(Debug)]
enum Body {
    Memory(Vec<u8>),
    File(Log),
}

/// The file, and what is still to be written at its end.
#[derive(Debug)]
struct Log {
    file: Arc<File>,
    written: u64,
    gathered: Vec<u8>,
}

/// The rows for one table: where they are in the body, and how many.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    pub target: Table,
    pub rows: u64,
    pieces: VecDeque<Range<u64>>,
}

/// Why rows could not be kept or read back.
#[derive(Debug, thiserror::Error)]
#[error("{doing} a spool file in {}: {source}", directory.display())]
pub struct SpoolError {
    doing: &'static str,
    directory: PathBuf,
    source: io::Error,
}

impl Spool {
    /// An empty one. Beyond `memory_limit` bytes its rows go to a file in `directory`.
    pub fn new(memory_limit: usize, directory: PathBuf) -> Self {
        Self {
            errors: Vec::new(),
            sections: Vec::new(),
            body: Body::Memory(Vec::new()),
            memory_limit,
            directory,
        }
    }

    /// Begins the rows of one datasource.
    pub fn begin(&mut self, target: Table) -> SectionId {
        self.sections.push(Section { target, pieces: Vec::new(), rows: 0 });
        SectionId(self.sections.len() - 1)
    }

    /// Adds whole rows to a section.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn append(&mut self, section: SectionId, data: &[u8], rows: u64) -> Result<(), SpoolError> {
        if data.is_empty() {
            return Ok(());
        }
        if let Body::Memory(memory) = &self.body {
            if memory.len() + data.len() > self.memory_limit {
                self.move_to_file().await?;
            }
        }
        let begin = match &mut self.body {
            Body::Memory(memory) => {
                let begin = memory.len() as u64;
                memory.extend_from_slice(data);
                begin
            }
            Body::File(log) => {
                let begin = log.written + log.gathered.len() as u64;
                log.gathered.extend_from_slice(data);
                if log.gathered.len() >= BLOCK_BYTES {
                    log.write().await.map_err(|source| failure("write", &self.directory, source))?;
                }
                begin
            }
        };
        let end = begin + data.len() as u64;
        let section = &mut self.sections[section.0];
        section.rows += rows;
        match section.pieces.last_mut() {
            Some(last) if last.end == begin => last.end = end,
            _ => section.pieces.push(begin..end),
        }
        Ok(())
    }

    /// Forgets a section whose datasource failed half way.
    pub fn discard(&mut self, section: SectionId) {
        let section = &mut self.sections[section.0];
        section.pieces.clear();
        section.rows = 0;
    }

    /// Takes the rows out of memory, for a wait.
    ///
    /// # Errors
    /// When the file cannot be made or written.
    pub async fn move_to_file(&mut self) -> Result<(), SpoolError> {
        let Body::Memory(memory) = &mut self.body else {
            return Ok(());
        };
        let directory = self.directory.clone();
        let file = blocking(move || tempfile::tempfile_in(directory)).await;
        let file = file.map_err(|source| failure("make", &self.directory, source))?;
        let mut log = Log { file: Arc::new(file), written: 0, gathered: std::mem::take(memory) };
        let written = log.write().await;
        // It has the room of all that was in memory.
        log.gathered = Vec::new();
        self.body = Body::File(log);
        written.map_err(|source| failure("write", &self.directory, source))
    }

    /// Ends the writing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn finish(&mut self) -> Result<(), SpoolError> {
        if let Body::File(log) = &mut self.body {
            log.write().await.map_err(|source| failure("write", &self.directory, source))?;
            log.gathered = Vec::new();
        }
        Ok(())
    }

    /// The rows by table, tables in the order in which they first came.
    pub fn parts(&self) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        for section in self.sections.iter().filter(|section| !section.pieces.is_empty()) {
            let pieces = section.pieces.iter().cloned();
            match parts.iter_mut().find(|part| part.target == section.target) {
                Some(part) => {
                    part.pieces.extend(pieces);
                    part.rows += section.rows;
                }
                None => parts.push(Part {
                    target: section.target.clone(),
                    rows: section.rows,
                    pieces: pieces.collect(),
                }),
            }
        }
        parts
    }

    /// Takes the next bytes of a part. `None` at its end.
    ///
    /// # Errors
    /// When the file cannot be read back.
    pub async fn read(&self, part: &mut Part) -> Result<Option<Bytes>, SpoolError> {
        let ranges = part.take(BLOCK_BYTES as u64);
        if ranges.is_empty() {
            return Ok(None);
        }
        let data = match &self.body {
            Body::Memory(memory) => {
                let slices = ranges.iter().map(|range| &memory[index(range.start)..index(range.end)]);
                slices.collect::<Vec<_>>().concat()
            }
            Body::File(log) => {
                let file = Arc::clone(&log.file);
                let read = move || {
                    let length: u64 = ranges.iter().map(|range| range.end - range.start).sum();
                    let mut data = vec![0; index(length)];
                    let mut rest = data.as_mut_slice();
                    for range in ranges {
                        let (here, after) = rest.split_at_mut(index(range.end - range.start));
                        file.read_exact_at(here, range.start)?;
                        rest = after;
                    }
                    Ok(data)
                };
                blocking(read).await.map_err(|source| failure("read", &self.directory, source))?
            }
        };
        Ok(Some(Bytes::from(data)))
    }

    pub fn rows(&self) -> u64 {
        self.sections.iter().map(|section| section.rows).sum()
    }

    pub fn bytes(&self) -> u64 {
        let pieces = self.sections.iter().flat_map(|section| &section.pieces);
        pieces.map(|piece| piece.end - piece.start).sum()
    }

    #[cfg(test)]
    fn is_in_memory(&self) -> bool {
        matches!(self.body, Body::Memory(_))
    }
}

impl Part {
    /// Takes the next pieces, of so many bytes together at most.
    fn take(&mut self, bytes: u64) -> Vec<Range<u64>> {
        let mut taken = Vec::new();
        let mut room = bytes;
        while room > 0 {
            let Some(piece) = self.pieces.front_mut() else { break };
            let end = piece.end.min(piece.start + room);
            taken.push(piece.start..end);
            room -= end - piece.start;
            piece.start = end;
            if piece.start == piece.end {
                self.pieces.pop_front();
            }
        }
        taken
    }
}

impl Log {
    /// Writes what was gathered.
    async fn write(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let (file, mut data, at) = (Arc::clone(&self.file), std::mem::take(&mut self.gathered), self.written);
        self.written += data.len() as u64;
        let write = move || {
            file.write_all_at(&data, at)?;
            data.clear();
            Ok(data)
        };
        self.gathered = blocking(write).await?;
        Ok(())
    }
}

/// Does what may wait for the disk where it holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

/// A position in memory.
fn index(position: u64) -> usize {
    usize::try_from(position).expect("what is in memory can be counted")
}

fn failure(doing: &'static str, directory: &Path, source: io::Error) -> SpoolError {
    SpoolError { doing, directory: directory.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> Table {
        Table { schema: None, name: name.to_owned() }
    }

    async fn all(spool: &Spool, name: &str) -> (u64, String) {
        let mut part = spool.parts().into_iter().find(|part| part.target == table(name)).unwrap();
        let rows = part.rows;
        let mut text = Vec::new();
        while let Some(data) = spool.read(&mut part).await.unwrap() {
            text.extend_from_slice(&data);
        }
        (rows, String::from_utf8(text).unwrap())
    }

    /// Two databases write the same table and another one, in turns; one datasource fails half way.
    async fn fill(spool: &mut Spool) {
        let first = spool.begin(table("a"));
        let second = spool.begin(table("a"));
        let other = spool.begin(table("b"));
        let failed = spool.begin(table("c"));
        spool.append(first, b"1\n2\n", 2).await.unwrap();
        spool.append(second, b"7\n", 1).await.unwrap();
        spool.append(failed, b"x\n", 1).await.unwrap();
        spool.append(first, b"3\n", 1).await.unwrap();
        spool.append(other, b"b\n", 1).await.unwrap();
        spool.discard(failed);
        spool.finish().await.unwrap();
    }

    #[tokio::test]
    async fn rows_come_back_by_table_from_memory_and_from_a_file() {
        for limit in [0, 5, 1000] {
            let mut spool = Spool::new(limit, std::env::temp_dir());
            fill(&mut spool).await;
            assert_eq!(spool.is_in_memory(), limit == 1000);
            let targets: Vec<_> = spool.parts().into_iter().map(|part| part.target.name).collect();
            assert_eq!(targets, ["a", "b"]);
            assert_eq!(all(&spool, "a").await, (4, "1\n2\n3\n7\n".to_owned()));
            assert_eq!(all(&spool, "b").await, (1, "b\n".to_owned()));
            assert_eq!((spool.rows(), spool.bytes()), (5, 10));
        }
    }

    #[tokio::test]
    async fn a_wait_takes_the_rows_out_of_memory() {
        let mut spool = Spool::new(1000, std::env::temp_dir());
        fill(&mut spool).await;
        spool.move_to_file().await.unwrap();
        assert!(!spool.is_in_memory());
        assert_eq!(all(&spool, "a").await.0, 4);
    }

    #[tokio::test]
    async fn more_than_one_read_gives_everything() {
        let mut spool = Spool::new(10, std::env::temp_dir());
        let section = spool.begin(table("a"));
        let row = vec![b'r'; BLOCK_BYTES + 17];
        spool.append(section, &row, 1).await.unwrap();
        spool.finish().await.unwrap();
        assert_eq!(all(&spool, "a").await.1.len(), row.len());
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_named() {
        let mut spool = Spool::new(0, PathBuf::from("/nonexistent"));
        let section = spool.begin(table("a"));
        let error = spool.append(section, b"1\n", 1).await.unwrap_err();
        assert!(error.to_string().starts_with("make a spool file in /nonexistent: No such file"));
    }
}
