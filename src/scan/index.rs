//! What this node knows from last time: one SQLite file per tree, a row per directory.
//!
//! A row is found by its parent's row and its name, or, after a rename, by the directory's inode; its
//! children hang on its id, so a renamed directory takes its whole subtree along. Nothing here is
//! trusted blindly: an entry's digest counts only while inode, size, mtime and ctime are what they were,
//! and a row is checked against digests, so that a damaged or outdated file costs a rehash, never
//! correctness. Hence no syncs (`synchronous = OFF`). Local disks only (WAL).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use rustix::io::Errno;

use super::row::{Bitmap, DirRow, ENTRY_ID_BYTES, EntryId, read_id, read_row, row_sum, short, write_id};

use crate::error::{Class, Error, Result, lock};
use crate::model::{Digest, Name, Node, Object, RootHeader};
use crate::plan::{Item, Side};

/// The root directory's row.
pub const ROOT_ID: i64 = 1;
const FORMAT: &str = "1";

/// The index of one tree.
pub struct Index {
    db: Mutex<Connection>,
    path: PathBuf,
    next: AtomicI64,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Index({})", self.path.display())
    }
}

impl Index {
    /// Opens or creates the index file. A file that is not one of ours, of another format, or damaged, is
    /// replaced by an empty one.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn open(path: &Path) -> Result<Self> {
        if let Ok(index) = Self::try_open(path) {
            return Ok(index);
        }
        tracing::warn!(
            "the index {} is damaged or of another format; everything is hashed again",
            path.display()
        );
        Self::forget(path)?;
        Self::try_open(path).map_err(|e| e.at(path))
    }

    /// Removes an index file; everything is hashed again.
    ///
    /// # Errors
    /// The operating system's.
    pub fn forget(path: &Path) -> Result<()> {
        for suffix in ["", "-wal", "-shm"] {
            let mut file = path.as_os_str().to_owned();
            file.push(suffix);
            match std::fs::remove_file(&file) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(e, format!("cannot replace the index {}", path.display())));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// An index that is gone when it is closed, on disk when it grows.
    ///
    /// # Errors
    /// SQLite cannot create a temporary file.
    pub fn temporary() -> Result<Self> {
        let path = Path::new("");
        Self::try_open(path).map_err(|e| e.at(path))
    }

    fn try_open(path: &Path) -> Result<Self, SqlError> {
        let db = Connection::open(path)?;
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -4096; PRAGMA temp_store = FILE;
             PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 1048576;
             PRAGMA busy_timeout = 60000;
             CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS dirs (
               id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL,
               stat BLOB NOT NULL, kids BLOB NOT NULL, object BLOB NOT NULL, content BLOB NOT NULL,
               flags INTEGER NOT NULL, seen INTEGER NOT NULL, sum BLOB NOT NULL, ids BLOB NOT NULL, body BLOB NOT NULL);
             CREATE INDEX IF NOT EXISTS dirs_parent ON dirs (parent);
             CREATE INDEX IF NOT EXISTS dirs_ino ON dirs (ino);
             CREATE INDEX IF NOT EXISTS dirs_object ON dirs (object);",
        )?;
        db.set_prepared_statement_cache_capacity(32);
        let format: Option<Vec<u8>> =
            db.query_row("SELECT value FROM meta WHERE key = 'format'", [], |r| r.get(0)).optional()?;
        match format {
            None => {
                db.execute("INSERT INTO meta VALUES ('format', ?1)", [FORMAT.as_bytes()])?;
            }
            Some(f) if f == FORMAT.as_bytes() => {}
            Some(_) => return Err(SqlError::Format),
        }
        let last: Option<i64> = db.query_row("SELECT max(id) FROM dirs", [], |r| r.get(0))?;
        let next = AtomicI64::new(last.unwrap_or(0).max(ROOT_ID) + 1);
        Ok(Self { db: Mutex::new(db), path: path.to_owned(), next })
    }

    /// The index's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Describes entries as `other` does, so that its rows and these can be compared.
    ///
    /// # Errors
    /// SQLite's.
    pub fn copy_view(&self, other: &Index) -> Result<()> {
        match other.meta("view")? {
            Some(view) => self.set_meta("view", &view),
            None => Ok(()),
        }
    }

    /// Takes the place of `other`'s file, which must not be used any more.
    ///
    /// # Errors
    /// SQLite's, or the file system's; then everything is hashed again next time.
    pub fn replace(self, other: &Index) -> Result<()> {
        let path = self.path.clone();
        let cannot = |e| Error::io(e, format!("cannot replace the index {}", other.path.display()));
        let db = self.db.into_inner().unwrap_or_else(PoisonError::into_inner);
        // closing the last connection folds the write-ahead log into the file
        db.close().map_err(|(_, e)| SqlError::from(e).at(&path))?;
        let closed = std::mem::replace(
            &mut *other.db(),
            Connection::open_in_memory().map_err(|e| SqlError::from(e).at(&path))?,
        );
        closed.close().map_err(|(_, e)| SqlError::from(e).at(&path))?;
        std::fs::rename(&path, &other.path).map_err(cannot)
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        lock(&self.db)
    }

    fn run<T>(&self, f: impl FnOnce(&Connection) -> Result<T, SqlError>) -> Result<T> {
        f(&self.db()).map_err(|e| e.at(&self.path))
    }

    /// Starts a transaction; without [`Index::commit`] everything since is forgotten.
    ///
    /// # Errors
    /// SQLite's.
    pub fn begin(&self) -> Result<()> {
        self.run(begin)
    }

    /// Keeps what was written since [`Index::begin`].
    ///
    /// # Errors
    /// SQLite's.
    pub fn commit(&self) -> Result<()> {
        self.run(|db| if db.is_autocommit() { Ok(()) } else { Ok(db.execute_batch("COMMIT")?) })
    }

    /// A remembered value.
    ///
    /// # Errors
    /// SQLite's.
    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.run(|db| {
            let mut q = db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
            Ok(q.query_row([key], |r| r.get(0)).optional()?)
        })
    }

    /// Remembers a value.
    ///
    /// # Errors
    /// SQLite's.
    pub fn set_meta(&self, key: &str, value: &[u8]) -> Result<()> {
        self.run(|db| {
            db.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?.execute(params![key, value])?;
            Ok(())
        })
    }

    /// Remembers the root's own attributes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn set_header(&self, header: &RootHeader) -> Result<()> {
        let text = header_text(header);
        if self.meta("header")?.as_deref() == Some(text.as_bytes()) {
            return Ok(());
        }
        self.set_meta("header", text.as_bytes())
    }

    /// Whether the root's own attributes are what was remembered, or nothing was.
    ///
    /// # Errors
    /// SQLite's.
    pub fn has_header(&self, header: &RootHeader) -> Result<bool> {
        Ok(self.meta("header")?.is_none_or(|known| known == header_text(header).as_bytes()))
    }

    /// A new row's id.
    pub fn new_id(&self) -> i64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// All ids given so far are below this.
    pub fn id_bound(&self) -> i64 {
        self.next.load(Ordering::Relaxed)
    }

    /// The row `id`, when it is there and undamaged.
    ///
    /// # Errors
    /// SQLite's.
    pub fn row(&self, id: i64) -> Result<Option<DirRow>> {
        self.rows("WHERE id = ?1", id).map(|mut rows| rows.pop())
    }

    /// The rows of a directory's subdirectories.
    ///
    /// # Errors
    /// SQLite's.
    pub fn children(&self, parent: i64) -> Result<Vec<DirRow>> {
        self.rows("WHERE parent = ?1", parent)
    }

    /// The rows of directories with this inode.
    ///
    /// # Errors
    /// SQLite's.
    pub fn by_ino(&self, ino: u64) -> Result<Vec<DirRow>> {
        if ino == 0 { Ok(Vec::new()) } else { self.rows("WHERE ino = ?1", ino as i64) }
    }

    fn rows(&self, clause: &'static str, key: i64) -> Result<Vec<DirRow>> {
        let sql = match clause {
            "WHERE id = ?1" => concat!(
                "SELECT id, parent, name, ino, stat, kids, object, content, flags, seen, sum ",
                "FROM dirs WHERE id = ?1"
            ),
            "WHERE parent = ?1" => concat!(
                "SELECT id, parent, name, ino, stat, kids, object, content, flags, seen, sum ",
                "FROM dirs WHERE parent = ?1"
            ),
            _ => concat!(
                "SELECT id, parent, name, ino, stat, kids, object, content, flags, seen, sum ",
                "FROM dirs WHERE ino = ?1"
            ),
        };
        self.run(|db| {
            let mut q = db.prepare_cached(sql)?;
            let rows = q.query_map([key], |r| Ok(read_row(r)))?;
            let mut out = Vec::new();
            for row in rows {
                // a damaged row counts as none
                out.extend(row?.ok());
            }
            Ok(out)
        })
    }

    /// A directory's entries and their identities; `None` when there is no such row or it is damaged.
    ///
    /// # Errors
    /// SQLite's.
    pub fn body(&self, id: i64) -> Result<Option<(Object, Vec<EntryId>)>> {
        type Body = (Vec<u8>, Vec<u8>, Vec<u8>);
        let found: Option<Body> = self.run(|db| {
            let mut q = db.prepare_cached("SELECT object, ids, body FROM dirs WHERE id = ?1")?;
            Ok(q.query_row([id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).optional()?)
        })?;
        let Some((digest, ids, body)) = found else {
            return Ok(None);
        };
        let (body, sum) = body.split_at(body.len().saturating_sub(16));
        if Digest::of(body).0[..] != digest[..] || short(&ids)[..] != *sum {
            return Ok(None);
        }
        let Ok(object) = Object::decode(body) else {
            return Ok(None);
        };
        let ids: Vec<EntryId> = ids.chunks_exact(ENTRY_ID_BYTES).map(read_id).collect();
        Ok((ids.len() == object.entries.len()).then_some((object, ids)))
    }

    /// The encoded directory object with this digest, from whichever directory has it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn object(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let body: Option<Vec<u8>> = self.run(|db| {
            let mut q = db.prepare_cached("SELECT body FROM dirs WHERE object = ?1 LIMIT 1")?;
            Ok(q.query_row([&digest.0[..]], |r| r.get(0)).optional()?)
        })?;
        let Some(mut body) = body else { return Ok(None) };
        body.truncate(body.len().saturating_sub(16));
        Ok((Digest::of(&body) == *digest).then_some(body))
    }

    /// Writes a row with its entries, `body` being the encoded object that `row.object` is the digest of.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put(&self, row: &DirRow, body: &[u8], ids: &[EntryId]) -> Result<()> {
        let mut id_bytes = Vec::with_capacity(ids.len() * ENTRY_ID_BYTES);
        for id in ids {
            write_id(&mut id_bytes, id);
        }
        let mut stored = Vec::with_capacity(body.len() + 16);
        stored.extend_from_slice(body);
        stored.extend_from_slice(&short(&id_bytes));
        let flags = i64::from(row.racy) | i64::from(row.keeps) << 1;
        self.run(|db| {
            let mut q = db.prepare_cached(
                "INSERT OR REPLACE INTO dirs (id, parent, name, ino, stat, kids, object, content, flags, seen, sum, ids, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )?;
            q.execute(params![
                row.id, row.parent, row.name, row.ino as i64, &row.stat[..], &row.kids[..], &row.object.0[..],
                &row.content.0[..], flags, row.seen, &row_sum(row)[..], id_bytes, stored,
            ])?;
            Ok(())
        })
    }

    /// Writes a row's own fields; its entries stay.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_head(&self, row: &DirRow) -> Result<()> {
        let flags = i64::from(row.racy) | i64::from(row.keeps) << 1;
        self.run(|db| {
            let mut q = db.prepare_cached(
                "UPDATE dirs SET parent = ?2, name = ?3, ino = ?4, flags = ?5, seen = ?6, sum = ?7 WHERE id = ?1",
            )?;
            q.execute(params![row.id, row.parent, row.name, row.ino as i64, flags, row.seen, &row_sum(row)[..]])?;
            Ok(())
        })
    }

    /// Forgets the rows whose ids `live` does not hold.
    ///
    /// # Errors
    /// SQLite's.
    pub fn retain(&self, live: &Bitmap) -> Result<()> {
        self.run(|db| {
            let count: i64 = db.query_row("SELECT count(*) FROM dirs", [], |r| r.get(0))?;
            if u64::try_from(count) == Ok(live.count()) {
                return Ok(());
            }
            let mut q = db.prepare("SELECT id FROM dirs")?;
            let dead: Vec<i64> = q
                .query_map([], |r| r.get(0))?
                .filter(|id| id.as_ref().is_ok_and(|&id| !live.has(id)))
                .collect::<Result<_, _>>()?;
            let mut delete = db.prepare_cached("DELETE FROM dirs WHERE id = ?1")?;
            for id in dead {
                delete.execute([id])?;
            }
            Ok(())
        })
    }
}

/// Starts a transaction; one that an error left open is rolled back.
pub(super) fn begin(db: &Connection) -> Result<(), SqlError> {
    if !db.is_autocommit() {
        db.execute_batch("ROLLBACK")?;
    }
    Ok(db.execute_batch("BEGIN IMMEDIATE")?)
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SqlError {
    #[error("{0}")]
    Sql(#[from] rusqlite::Error),
    #[error("another format")]
    Format,
}

impl SqlError {
    /// What of the operating system's errors it stands for: that this host's disk is to blame, and nobody else.
    fn errno(&self) -> Option<Errno> {
        let Self::Sql(e) = self else { return None };
        match e.sqlite_error_code()? {
            ErrorCode::DiskFull => Some(Errno::NOSPC),
            ErrorCode::ReadOnly => Some(Errno::ROFS),
            ErrorCode::PermissionDenied | ErrorCode::CannotOpen => Some(Errno::ACCESS),
            ErrorCode::SystemIoFailure => Some(Errno::IO),
            _ => None,
        }
    }

    pub(super) fn at(self, path: &Path) -> Error {
        let shown =
            if path.as_os_str().is_empty() { "a temporary index".into() } else { path.display().to_string() };
        let damaged = match &self {
            Self::Sql(e) => {
                let code = e.sqlite_error_code();
                matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
            }
            Self::Format => true,
        };
        let class = if damaged { Class::Integrity } else { Class::Permanent };
        let source = self.errno().map(std::io::Error::from);
        Error { class, what: format!("cannot use the index {shown}: {self}"), source }
    }
}

fn header_text(h: &RootHeader) -> String {
    format!("{:04o} {:?} {:?}", h.mode, h.owner.user, h.owner.group)
}

/// An index read as the old side of a plan: directories by row.
#[derive(Debug)]
pub struct OldTree<'a>(pub &'a Index);

impl Side for OldTree<'_> {
    type Handle = i64;

    fn load(&self, dir: &i64) -> Result<Vec<Item<i64>>> {
        let (object, ids) = self.0.body(*dir)?.ok_or_else(|| {
            Error::integrity(format!("the index {} lost a directory; run again", self.0.path.display()))
        })?;
        Ok(object
            .entries
            .into_iter()
            .zip(ids)
            .map(|(entry, id)| Item {
                dir: matches!(entry.node, Node::Dir { .. }).then_some(id.row),
                keeps: id.keeps,
                shared: id.shared,
                id: Some(id.id),
                entry,
            })
            .collect())
    }
}

/// A checked name from a listing.
pub(crate) fn listed_name(bytes: &[u8]) -> Result<Name> {
    Name::new(bytes).map_err(|e| Error::integrity(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LocalId, Mtime};

    #[test]
    fn ids_survive_their_encoding() {
        let file = EntryId {
            id: LocalId { ino: u64::MAX, ctime: Mtime { sec: -5, nsec: 999_999_999 } },
            row: 0,
            racy: true,
            keeps: false,
            shared: true,
        };
        let dir = EntryId {
            id: LocalId { ino: 7, ctime: Mtime::default() },
            row: 42,
            racy: false,
            keeps: true,
            shared: false,
        };
        for id in [file, dir] {
            let mut b = Vec::new();
            write_id(&mut b, &id);
            assert_eq!(b.len(), ENTRY_ID_BYTES);
            assert_eq!(read_id(&b), id);
        }
    }

    #[test]
    fn a_damaged_row_counts_as_none() {
        let index = Index::temporary().unwrap();
        let body = Object::default().encode();
        let row = DirRow {
            id: 1,
            parent: 0,
            name: vec![],
            ino: 3,
            stat: [1; 16],
            kids: [2; 16],
            object: Digest::of(&body),
            content: Digest::of(b""),
            racy: false,
            keeps: false,
            seen: 0,
        };
        index.put(&row, &body, &[]).unwrap();
        assert_eq!(index.row(1).unwrap(), Some(row));
        assert!(index.body(1).unwrap().is_some());
        index
            .run(|db| Ok(db.execute("UPDATE dirs SET stat = zeroblob(16), body = zeroblob(20)", [])?))
            .unwrap();
        assert_eq!(index.row(1).unwrap(), None);
        assert!(index.body(1).unwrap().is_none());
    }
}
