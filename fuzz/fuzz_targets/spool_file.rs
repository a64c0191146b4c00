//! Spool files of any bytes: nothing panics, and one that is taken for whole says nothing that its bytes do not have.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use powa_collector::snapshot::file::{self, Index, MARK_BYTES, Mark, Rows};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(contents) = file::read(Cursor::new(bytes)) {
        assert!(contents.rows <= bytes.len() as u64);
        let pieces = contents.index.tables.iter().flat_map(|table| &table.pieces);
        assert!(pieces.into_iter().all(|(begin, end)| begin <= end && *end <= contents.rows));
    }

    // Random bytes hardly ever make a file: here they are the rows of one, and what is done to it afterwards.
    let (rows, changes) = bytes.split_at(bytes.len() / 2);
    let length = rows.len() as u64;
    let index = Index {
        repository: String::from_utf8_lossy(rows).into_owned(),
        server: 1,
        time: String::new(),
        powa_version: "5.0".to_owned(),
        powa_schema: "public".to_owned(),
        errors: Vec::new(),
        tables: vec![Rows { schema: None, table: "t".to_owned(), rows: 1, pieces: vec![(0, length)] }],
    };
    let mark = Mark { transaction: 7, sequence: 8 };
    let mut file = rows.to_vec();
    let tail = file::tail(&index, length, crc32fast::hash(rows)).expect("an index of this size");
    file.extend_from_slice(&tail);
    let at = file.len() - MARK_BYTES;
    file[at..].copy_from_slice(&mark.to_bytes());
    let whole = file::read(Cursor::new(&file)).expect("what was written is read");
    assert_eq!((whole.index, whole.rows, whole.mark), (index, length, Some(mark)));

    for change in changes.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % file.len();
        match change[2] % 3 {
            0 => file[at] ^= change[3],
            1 => file.truncate(at),
            _ => file.insert(at, change[3]),
        }
        if file.is_empty() {
            return;
        }
        let _ = file::read(Cursor::new(&file));
    }
});
