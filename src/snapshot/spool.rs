//! What a fetch leaves for a store: the rows of one snapshot as `COPY` text, in memory while small and in a
//! file when not, with the errors met on the way.
//!
//! It is one log of pieces, each belonging to a section; several fetches of one snapshot write side by side.
//! The file has no name, so that nothing is left of it whatever happens to the process.

use std::io::{self, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::postgres::extension::Table;

/// How much is read back at a time, in bytes.
const READ_BYTES: usize = 128 << 10;

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
    File { file: File, length: u64 },
}

/// The rows for one table: where they are in the body, and how many.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    pub target: Table,
    pub rows: u64,
    pieces: Vec<Range<u64>>,
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
            Body::File { file, length } => {
                let begin = *length;
                let written = file.write_all(data).await;
                written.map_err(|source| failure("write", &self.directory, source))?;
                *length += data.len() as u64;
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
        let file = tempfile::tempfile_in(&self.directory)
            .map_err(|source| failure("make", &self.directory, source))?;
        let mut file = File::from_std(file);
        // Otherwise it keeps as much as was ever written at once, up to 2 MiB.
        file.set_max_buf_size(READ_BYTES);
        let length = memory.len() as u64;
        file.write_all(memory).await.map_err(|source| failure("write", &self.directory, source))?;
        self.body = Body::File { file, length };
        Ok(())
    }

    /// Ends the writing.
    ///
    /// # Errors
    /// When what was written last did not reach the file.
    pub async fn finish(&mut self) -> Result<(), SpoolError> {
        if let Body::File { file, .. } = &mut self.body {
            file.flush().await.map_err(|source| failure("write", &self.directory, source))?;
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
    pub async fn read(&mut self, part: &mut Part) -> Result<Option<Bytes>, SpoolError> {
        let Some(piece) = part.pieces.first_mut() else {
            return Ok(None);
        };
        let length = usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX).min(READ_BYTES);
        let data = match &mut self.body {
            Body::Memory(memory) => {
                let start = usize::try_from(piece.start).expect("it is in memory");
                Bytes::copy_from_slice(&memory[start..start + length])
            }
            Body::File { file, .. } => {
                let mut data = vec![0; length];
                let start = piece.start;
                let read = async {
                    file.seek(SeekFrom::Start(start)).await?;
                    file.read_exact(&mut data).await
                };
                read.await.map_err(|source| failure("read", &self.directory, source))?;
                Bytes::from(data)
            }
        };
        piece.start += length as u64;
        if piece.start == piece.end {
            part.pieces.remove(0);
        }
        Ok(Some(data))
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

fn failure(doing: &'static str, directory: &std::path::Path, source: io::Error) -> SpoolError {
    SpoolError { doing, directory: directory.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> Table {
        Table { schema: None, name: name.to_owned() }
    }

    async fn all(spool: &mut Spool, name: &str) -> (u64, String) {
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
            assert_eq!(all(&mut spool, "a").await, (4, "1\n2\n3\n7\n".to_owned()));
            assert_eq!(all(&mut spool, "b").await, (1, "b\n".to_owned()));
            assert_eq!((spool.rows(), spool.bytes()), (5, 10));
        }
    }

    #[tokio::test]
    async fn a_wait_takes_the_rows_out_of_memory() {
        let mut spool = Spool::new(1000, std::env::temp_dir());
        fill(&mut spool).await;
        spool.move_to_file().await.unwrap();
        assert!(!spool.is_in_memory());
        assert_eq!(all(&mut spool, "a").await.0, 4);
    }

    #[tokio::test]
    async fn more_than_one_read_gives_everything() {
        let mut spool = Spool::new(10, std::env::temp_dir());
        let section = spool.begin(table("a"));
        let row = vec![b'r'; READ_BYTES + 17];
        spool.append(section, &row, 1).await.unwrap();
        spool.finish().await.unwrap();
        assert_eq!(all(&mut spool, "a").await.1.len(), row.len());
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_named() {
        let mut spool = Spool::new(0, PathBuf::from("/nonexistent"));
        let section = spool.begin(table("a"));
        let error = spool.append(section, b"1\n", 1).await.unwrap_err();
        assert!(error.to_string().starts_with("make a spool file in /nonexistent: No such file"));
    }
}
