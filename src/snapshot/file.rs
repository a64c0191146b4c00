//! A snapshot as a file: all that it takes to store it later, and to tell whether it is whole.
//!
//! ```text
//! rows      as COPY text, in pieces of any order
//! index     JSON: whose they are, and which pieces belong to which table
//! footer    lengths and checksums of both
//! mark      the transaction that was about to store it, if there was one
//! ```
//!
//! All numbers are little-endian. The mark is written over zeros, when everything else has long been there.

use std::io::{self, Read, Seek, SeekFrom};

use serde::{Deserialize, Serialize};

use crate::postgres::extension::{Powa, PowaVersion, Table};

const MAGIC: [u8; 8] = *b"PoWAsnap";
/// Files of another format are left to the version that has written them.
const FORMAT: u32 = 1;
pub const FOOTER_BYTES: usize = 36;
pub const MARK_BYTES: usize = 20;
/// More than any index needs: the length of a damaged file is not to be believed.
const INDEX_BYTES: u32 = 64 << 20;

/// What a file says of its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// The repository that they are for, as it names itself.
    pub repository: String,
    /// `powa_servers.id` there.
    pub server: i32,
    /// When they were read, as the monitored server says.
    pub time: String,
    /// The repository's PoWA, as it was then.
    pub powa_version: String,
    pub powa_schema: String,
    /// What went wrong while they were read.
    pub errors: Vec<String>,
    pub tables: Vec<Rows>,
}

/// The rows for one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    pub schema: Option<String>,
    pub table: String,
    pub rows: u64,
    /// Where they begin and end.
    pub pieces: Vec<(u64, u64)>,
}

/// A transaction that was about to store a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// As `txid_current()` says.
    pub transaction: i64,
    /// How many snapshots there were before: `powa_snapshot_metas.coalesce_seq`.
    pub sequence: i64,
}

/// What a file has.
#[derive(Debug, PartialEq, Eq)]
pub struct Contents {
    pub index: Index,
    /// The rows' length, in bytes.
    pub rows: u64,
    pub mark: Option<Mark>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is too short: {0} bytes")]
    Short(u64),
    #[error("it does not end like a snapshot: it was not written to its end")]
    Torn,
    #[error("its format is {0}, and not {FORMAT}")]
    Format(u32),
    #[error("the checksum of its {0} is wrong")]
    Checksum(&'static str),
    #[error("its parts do not make up its length")]
    Lengths,
    #[error("its index is not understood: {0}")]
    Index(#[from] serde_json::Error),
    #[error("rows of {0} lie beyond its end")]
    Pieces(String),
}

impl Index {
    pub fn powa(&self) -> Powa {
        Powa { version: PowaVersion::parse(&self.powa_version), schema: self.powa_schema.clone() }
    }
}

impl Rows {
    pub fn target(&self) -> Table {
        Table { schema: self.schema.clone(), name: self.table.clone() }
    }
}

/// What follows the rows: index, footer and an empty mark. `checksum`: of the rows.
///
/// # Errors
/// When the index is longer than any may be.
pub fn tail(index: &Index, rows: u64, checksum: u32) -> Result<Vec<u8>, Damage> {
    let mut tail = serde_json::to_vec(index)?;
    let length =
        u32::try_from(tail.len()).ok().filter(|length| *length <= INDEX_BYTES).ok_or(Damage::Lengths)?;
    let mut footer = Vec::with_capacity(FOOTER_BYTES);
    footer.extend_from_slice(&MAGIC);
    footer.extend_from_slice(&FORMAT.to_le_bytes());
    footer.extend_from_slice(&rows.to_le_bytes());
    footer.extend_from_slice(&checksum.to_le_bytes());
    footer.extend_from_slice(&length.to_le_bytes());
    footer.extend_from_slice(&crc32fast::hash(&tail).to_le_bytes());
    footer.extend_from_slice(&crc32fast::hash(&footer).to_le_bytes());
    tail.append(&mut footer);
    tail.extend_from_slice(&[0; MARK_BYTES]);
    Ok(tail)
}

impl Mark {
    pub fn to_bytes(self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        bytes[..8].copy_from_slice(&self.transaction.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..16]);
        bytes[16..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; MARK_BYTES]) -> Result<Option<Self>, Damage> {
        if *bytes == [0; MARK_BYTES] {
            return Ok(None);
        }
        let [transaction, sequence] = [0, 8].map(|at| i64::from_le_bytes(number(bytes, at)));
        if crc32fast::hash(&bytes[..16]) != u32::from_le_bytes(number(bytes, 16)) {
            return Err(Damage::Checksum("mark"));
        }
        Ok(Some(Self { transaction, sequence }))
    }
}

/// The bytes of a number at a place that is there.
fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("as many as asked for")
}

/// Reads everything but the rows, whose checksum is looked at too.
///
/// # Errors
/// When the file is damaged, or none of ours.
pub fn read<F: Read + Seek>(mut file: F) -> Result<Contents, Damage> {
    const END_BYTES: usize = FOOTER_BYTES + MARK_BYTES;
    let length = file.seek(SeekFrom::End(0))?;
    let before_end = length.checked_sub(END_BYTES as u64).ok_or(Damage::Short(length))?;
    file.seek(SeekFrom::Start(before_end))?;
    let mut end = [0; END_BYTES];
    file.read_exact(&mut end)?;
    let (footer, mark) = end.split_at(FOOTER_BYTES);
    if footer[..8] != MAGIC {
        return Err(Damage::Torn);
    }
    let [format, rows_checksum, index_length, index_checksum, checksum] =
        [8, 20, 24, 28, 32].map(|at| u32::from_le_bytes(number(footer, at)));
    let rows = u64::from_le_bytes(number(footer, 12));
    if crc32fast::hash(&footer[..32]) != checksum {
        return Err(Damage::Checksum("footer"));
    }
    if format != FORMAT {
        return Err(Damage::Format(format));
    }
    if index_length > INDEX_BYTES || rows.checked_add(index_length.into()) != Some(before_end) {
        return Err(Damage::Lengths);
    }
    let mark = Mark::parse(mark.try_into().expect("what is left"))?;

    file.seek(SeekFrom::Start(rows))?;
    let mut index = vec![0; index_length as usize];
    file.read_exact(&mut index)?;
    if crc32fast::hash(&index) != index_checksum {
        return Err(Damage::Checksum("index"));
    }
    let index: Index = serde_json::from_slice(&index)?;
    for table in &index.tables {
        if table.pieces.iter().any(|(begin, end)| begin > end || *end > rows) {
            return Err(Damage::Pieces(table.table.clone()));
        }
    }

    file.seek(SeekFrom::Start(0))?;
    let mut hasher = crc32fast::Hasher::new();
    let mut rest = file.take(rows);
    let mut block = vec![0; 1 << 16];
    loop {
        match rest.read(&mut block)? {
            0 => break,
            length => hasher.update(&block[..length]),
        }
    }
    if hasher.finalize() != rows_checksum {
        return Err(Damage::Checksum("rows"));
    }
    Ok(Contents { index, rows, mark })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const ROWS: &[u8] = b"1\t2\n3\t4\nx\n";

    fn index() -> Index {
        Index {
            repository: "7300000000000000000/powa".to_owned(),
            server: 3,
            time: "2026-01-01 00:00:00.000000+00".to_owned(),
            powa_version: "5.0.1".to_owned(),
            powa_schema: "Odd \"one\"".to_owned(),
            errors: vec!["é: \n".to_owned()],
            tables: vec![
                Rows { schema: Some("s".to_owned()), table: "a".to_owned(), rows: 2, pieces: vec![(0, 8)] },
                Rows { schema: None, table: "b".to_owned(), rows: 1, pieces: vec![(8, 10)] },
            ],
        }
    }

    fn file(mark: Option<Mark>) -> Vec<u8> {
        let mut file = ROWS.to_vec();
        file.extend(tail(&index(), ROWS.len() as u64, crc32fast::hash(ROWS)).unwrap());
        if let Some(mark) = mark {
            let at = file.len() - MARK_BYTES;
            file[at..].copy_from_slice(&mark.to_bytes());
        }
        file
    }

    #[test]
    fn what_is_written_is_read() {
        for mark in [None, Some(Mark { transaction: 1 << 40, sequence: 17 })] {
            let contents = read(Cursor::new(file(mark))).unwrap();
            assert_eq!(contents, Contents { index: index(), rows: ROWS.len() as u64, mark });
        }
    }

    #[test]
    fn one_that_is_cut_anywhere_is_noticed() {
        let whole = file(Some(Mark { transaction: 5, sequence: 6 }));
        for length in 0..whole.len() {
            assert!(read(Cursor::new(&whole[..length])).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_byte_that_changes_anywhere_is_noticed() {
        let whole = file(Some(Mark { transaction: 5, sequence: 6 }));
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                assert!(read(Cursor::new(&changed)).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn rows_beyond_the_end_are_noticed() {
        let mut index = index();
        index.tables[1].pieces = vec![(8, 11)];
        let mut file = ROWS.to_vec();
        file.extend(tail(&index, ROWS.len() as u64, crc32fast::hash(ROWS)).unwrap());
        assert!(matches!(read(Cursor::new(file)), Err(Damage::Pieces(table)) if table == "b"));
    }
}
