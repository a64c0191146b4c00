//! What a fetch leaves for a store: the rows of one snapshot as `COPY` text, in memory while small and in a
//! file when not, with the errors met on the way.
//!
//! It is one log of pieces, each belonging to a section; several fetches of one snapshot write side by side. When it
//! is complete it is sealed: made a file that lasts until the snapshot is stored ([`super::file`]).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempPath;
use tokio::task::spawn_blocking;

use super::file::{self, Contents, Damage, Index, MARK_BYTES, Mark, Rows};
use crate::postgres::extension::Table;

/// How much is written and read back at a time, in bytes: each time another thread is woken for it.
const BLOCK_BYTES: usize = 256 << 10;

/// The rows and errors of one snapshot.
#[derive(Debug)]
pub struct Spool {
    /// What went wrong on the way, for `powa_snapshot_metas.errors`.
    pub errors: Vec<String>,
    /// When the rows were read, as the monitored server says.
    pub time: String,
    sections: Vec<Section>,
    body: Body,
    /// Of all bytes in the body.
    checksum: crc32fast::Hasher,
    memory_limit: usize,
    directory: PathBuf,
    sealed: Option<Sealed>,
    mark: Option<Mark>,
}

/// The file that a spool has become.
#[derive(Debug)]
struct Sealed {
    file: Arc<File>,
    /// Where the mark is.
    mark_at: u64,
    /// Whether it survives that the machine loses its power.
    is_durable: bool,
}

/// How a spool's file begins its name until it is sealed.
pub const UNSEALED_PREFIX: &str = ".unsealed-";

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
    /// Removes the file, unless that was sealed.
    path: Option<TempPath>,
    written: u64,
    gathered: Vec<u8>,
    /// What was read last, and from where. What follows it in the file mostly is what is wanted next.
    ahead: (u64, Bytes),
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
            time: String::new(),
            sections: Vec::new(),
            body: Body::Memory(Vec::new()),
            checksum: crc32fast::Hasher::new(),
            memory_limit,
            directory,
            sealed: None,
            mark: None,
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
        self.checksum.update(data);
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
        let made = blocking(move || unsealed(&directory)).await;
        let (file, path) = made.map_err(|source| failure("make", &self.directory, source))?;
        let gathered = std::mem::take(memory);
        let mut log = Log { path: Some(path), gathered, ..Log::of(Arc::new(file), 0) };
        let written = log.write().await;
        // It has the room of all that was in memory.
        log.gathered = Vec::new();
        self.body = Body::File(log);
        written.map_err(|source| failure("write", &self.directory, source))
    }

    /// Makes it the file `to_file`, all of it or nothing. What is in memory stays there, too. `index` is without the
    /// tables.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn seal(&mut self, to_file: PathBuf, mut index: Index) -> Result<(), SpoolError> {
        self.finish().await?;
        index.errors.clone_from(&self.errors);
        index.tables = self.parts().into_iter().map(Rows::from).collect();
        let rows = self.length();
        let tail = file::tail(&index, rows, self.checksum.clone().finalize());
        let tail = tail.map_err(|damage| failure("write", &self.directory, io::Error::other(damage)))?;
        let mark_at = rows + (tail.len() - MARK_BYTES) as u64;
        let sealed = match &mut self.body {
            Body::Memory(memory) => {
                let (directory, rows) = (self.directory.clone(), std::mem::take(memory));
                let work = move || {
                    let sealed = unsealed(&directory).and_then(|(file, path)| {
                        file.write_all_at(&rows, 0)?;
                        file.write_all_at(&tail, rows.len() as u64)?;
                        path.persist(to_file)?;
                        Ok(Arc::new(file))
                    });
                    Ok((rows, sealed))
                };
                match blocking(work).await {
                    Ok((rows, sealed)) => {
                        *memory = rows;
                        sealed
                    }
                    Err(error) => Err(error),
                }
            }
            Body::File(log) => {
                log.gathered.extend_from_slice(&tail);
                log.seal(to_file).await
            }
        };
        let file = sealed.map_err(|source| failure("write", &self.directory, source))?;
        self.sealed = Some(Sealed { file, mark_at, is_durable: false });
        Ok(())
    }

    /// Reads the file that a spool was sealed to.
    ///
    /// # Errors
    /// When it is damaged.
    pub async fn open(path: PathBuf) -> Result<(Index, Self), Damage> {
        let directory = path.parent().map(Path::to_owned).unwrap_or_default();
        let (file, contents) = spawn_blocking(move || {
            let file = File::options().read(true).write(true).open(path)?;
            let contents = file::read(&file)?;
            Ok::<_, Damage>((Arc::new(file), contents))
        })
        .await
        .map_err(io::Error::other)??;
        let Contents { index, rows, mark } = contents;
        let mark_at = file.metadata()?.len() - MARK_BYTES as u64;
        let section = |table: &Rows| Section {
            target: table.target(),
            pieces: table.pieces.iter().map(|(begin, end)| *begin..*end).collect(),
            rows: table.rows,
        };
        let spool = Self {
            errors: index.errors.clone(),
            time: index.time.clone(),
            sections: index.tables.iter().map(section).collect(),
            body: Body::File(Log::of(Arc::clone(&file), rows)),
            checksum: crc32fast::Hasher::new(),
            memory_limit: 0,
            directory,
            sealed: Some(Sealed { file, mark_at, is_durable: true }),
            mark,
        };
        Ok((index, spool))
    }

    /// The transaction that was about to store it.
    pub fn mark(&self) -> Option<Mark> {
        self.mark
    }

    /// Notes the transaction that is about to store it, where whoever comes after us finds it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn set_mark(&mut self, mark: Mark) -> Result<(), SpoolError> {
        self.mark = Some(mark);
        let Some(sealed) = &self.sealed else { return Ok(()) };
        let (file, at, is_durable) = (Arc::clone(&sealed.file), sealed.mark_at, sealed.is_durable);
        let write = move || {
            file.write_all_at(&mark.to_bytes(), at)?;
            if is_durable { file.sync_data() } else { Ok(()) }
        };
        blocking(write).await.map_err(|source| failure("write", &self.directory, source))
    }

    /// Frees the memory, for a wait: what is in it is in the file.
    ///
    /// # Errors
    /// When it is in no file yet, and that cannot be written.
    pub async fn release(&mut self) -> Result<(), SpoolError> {
        match (&self.body, &self.sealed) {
            (Body::Memory(_), Some(sealed)) => {
                let (file, written) = (Arc::clone(&sealed.file), self.length());
                self.body = Body::File(Log::of(file, written));
                Ok(())
            }
            _ => {
                self.move_to_file().await?;
                self.finish().await
            }
        }
    }

    /// Lets its file survive that the machine loses its power.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub async fn sync(&mut self) -> Result<(), SpoolError> {
        let Some(sealed) = &mut self.sealed else { return Ok(()) };
        let (file, directory) = (Arc::clone(&sealed.file), self.directory.clone());
        let sync = move || {
            file.sync_all()?;
            File::open(directory)?.sync_all()
        };
        blocking(sync).await.map_err(|source| failure("write", &self.directory, source))?;
        sealed.is_durable = true;
        Ok(())
    }

    fn length(&self) -> u64 {
        match &self.body {
            Body::Memory(memory) => memory.len() as u64,
            Body::File(log) => log.written + log.gathered.len() as u64,
        }
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
    pub async fn read(&mut self, part: &mut Part) -> Result<Option<Bytes>, SpoolError> {
        let Some(piece) = part.pieces.front_mut() else { return Ok(None) };
        let wanted = piece.start..piece.end.min(piece.start + BLOCK_BYTES as u64);
        let data = match &mut self.body {
            Body::Memory(memory) => Bytes::copy_from_slice(&memory[index(wanted.start)..index(wanted.end)]),
            Body::File(log) => {
                let read = log.read(wanted).await;
                read.map_err(|source| failure("read", &self.directory, source))?
            }
        };
        piece.start += data.len() as u64;
        if piece.start == piece.end {
            part.pieces.pop_front();
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

impl From<Part> for Rows {
    fn from(part: Part) -> Self {
        Self {
            schema: part.target.schema,
            table: part.target.name,
            rows: part.rows,
            pieces: part.pieces.into_iter().map(|piece| (piece.start, piece.end)).collect(),
        }
    }
}

impl Log {
    /// A file with so many bytes of rows.
    fn of(file: Arc<File>, written: u64) -> Self {
        Self { file, path: None, written, gathered: Vec::new(), ahead: (0, Bytes::new()) }
    }

    /// Reads from the beginning of `wanted`, and all of it if what was read ahead has it.
    async fn read(&mut self, wanted: Range<u64>) -> io::Result<Bytes> {
        let (begin, block) = &self.ahead;
        if !(*begin..begin + block.len() as u64).contains(&wanted.start) {
            let (file, begin) = (Arc::clone(&self.file), wanted.start);
            let length = index((self.written - begin).min(BLOCK_BYTES as u64));
            let read = move || {
                let mut data = vec![0; length];
                file.read_exact_at(&mut data, begin)?;
                Ok(Bytes::from(data))
            };
            self.ahead = (begin, blocking(read).await?);
        }
        let (begin, block) = &self.ahead;
        let from = index(wanted.start - begin);
        Ok(block.slice(from..block.len().min(index(wanted.end - begin))))
    }

    /// Writes what was gathered and gives the file its name.
    async fn seal(&mut self, to: PathBuf) -> io::Result<Arc<File>> {
        let rows = self.written;
        let written = self.write().await;
        // What was gathered were not rows.
        self.written = rows;
        written?;
        if let Some(path) = self.path.take() {
            blocking(move || Ok(path.persist(to)?)).await?;
        }
        Ok(Arc::clone(&self.file))
    }

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

/// A file that is removed when it is not sealed, by us or, after a `kill -9`, by whoever comes next.
fn unsealed(directory: &Path) -> io::Result<(File, TempPath)> {
    let made = tempfile::Builder::new().prefix(UNSEALED_PREFIX).tempfile_in(directory)?;
    Ok(made.into_parts())
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
        let row = vec![b'r'; BLOCK_BYTES + 17];
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
