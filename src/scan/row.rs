//! A directory's row: what it holds, and how it is written.

use rusqlite::Row;

use super::index::SqlError;
use crate::model::{Digest, LocalId, Mtime};

/// A short digest of a listing with everything `stat` says: equal means that nothing needs a look.
pub type StatHash = [u8; 16];

/// A row without its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirRow {
    /// Names the row; stays over renames of the directory.
    pub id: i64,
    /// The parent directory's row; 0 for the root.
    pub parent: i64,
    /// The name in the parent; empty for the root.
    pub name: Vec<u8>,
    /// Inode number (0 where the file system's are not stable).
    pub ino: u64,
    /// Digest of the listing.
    pub stat: StatHash,
    /// Digest of the subdirectories' digests, in the order of their names.
    pub kids: StatHash,
    /// Object digest.
    pub object: Digest,
    /// Content digest of the entries.
    pub content: Digest,
    /// Some entry changed so shortly before it was seen that its times prove nothing.
    pub racy: bool,
    /// It holds, at some depth, what must stay: excluded, special or unreadable.
    pub keeps: bool,
    /// When it was seen, seconds since the epoch.
    pub seen: i64,
}

/// What an entry's row says beside the object: how to recognise it unread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryId {
    /// Inode and ctime; for a directory the inode only.
    pub id: LocalId,
    /// A directory's row.
    pub row: i64,
    /// Its times prove nothing: see [`DirRow::racy`].
    pub racy: bool,
    /// See [`DirRow::keeps`].
    pub keeps: bool,
    /// The file has other names.
    pub shared: bool,
}

pub(super) const ENTRY_ID_BYTES: usize = 21;

/// A set of row ids.
#[derive(Debug, Default)]
pub struct Bitmap {
    words: Vec<u64>,
    count: u64,
}

impl Bitmap {
    /// Adds `id`; says whether it was new.
    pub fn add(&mut self, id: i64) -> bool {
        let Ok(at) = usize::try_from(id) else {
            return false;
        };
        let (word, bit) = (at / 64, 1u64 << (at % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(new);
        new
    }

    /// Whether `id` is in it.
    pub fn has(&self, id: i64) -> bool {
        usize::try_from(id).is_ok_and(|at| self.words.get(at / 64).is_some_and(|w| w & (1 << (at % 64)) != 0))
    }

    /// How many are in it.
    pub fn count(&self) -> u64 {
        self.count
    }
}

pub(super) fn short(bytes: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&Digest::of(bytes).0[..16]);
    out
}

pub(super) fn row_sum(r: &DirRow) -> [u8; 16] {
    let mut buf = Vec::with_capacity(160 + r.name.len());
    for n in [r.id, r.parent, r.ino as i64, r.seen, i64::from(r.racy) | i64::from(r.keeps) << 1] {
        buf.extend_from_slice(&n.to_le_bytes());
    }
    buf.extend_from_slice(&r.stat);
    buf.extend_from_slice(&r.kids);
    buf.extend_from_slice(&r.object.0);
    buf.extend_from_slice(&r.content.0);
    buf.extend_from_slice(&r.name);
    short(&buf)
}

pub(super) fn read_row(r: &Row<'_>) -> Result<DirRow, SqlError> {
    let bytes = |i: usize| -> Result<Vec<u8>, SqlError> { Ok(r.get(i)?) };
    let hash =
        |i: usize| -> Result<StatHash, SqlError> { bytes(i)?.try_into().map_err(|_| SqlError::Format) };
    let digest = |i: usize| Digest::from_slice(&bytes(i)?).ok_or(SqlError::Format);
    let flags: i64 = r.get(8)?;
    let row = DirRow {
        id: r.get(0)?,
        parent: r.get(1)?,
        name: bytes(2)?,
        ino: r.get::<_, i64>(3)? as u64,
        stat: hash(4)?,
        kids: hash(5)?,
        object: digest(6)?,
        content: digest(7)?,
        racy: flags & 1 != 0,
        keeps: flags & 2 != 0,
        seen: r.get(9)?,
    };
    if hash(10)? == row_sum(&row) { Ok(row) } else { Err(SqlError::Format) }
}

pub(super) fn write_id(out: &mut Vec<u8>, id: &EntryId) {
    out.extend_from_slice(&id.id.ino.to_le_bytes());
    let sec = if id.row != 0 { id.row } else { id.id.ctime.sec };
    out.extend_from_slice(&sec.to_le_bytes());
    out.extend_from_slice(&id.id.ctime.nsec.to_le_bytes());
    out.push(
        u8::from(id.racy) | u8::from(id.keeps) << 1 | u8::from(id.row != 0) << 2 | u8::from(id.shared) << 3,
    );
}

pub(super) fn read_id(b: &[u8]) -> EntryId {
    let u64_at = |i: usize| b[i..i + 8].try_into().map(u64::from_le_bytes).unwrap_or(0);
    let nsec = b[16..20].try_into().map(u32::from_le_bytes).unwrap_or(0);
    let is_dir = b[20] & 4 != 0;
    let (row, sec) = if is_dir { (u64_at(8) as i64, 0) } else { (0, u64_at(8) as i64) };
    EntryId {
        id: LocalId { ino: u64_at(0), ctime: Mtime { sec, nsec } },
        row,
        racy: b[20] & 1 != 0,
        keeps: b[20] & 2 != 0,
        shared: b[20] & 8 != 0,
    }
}
