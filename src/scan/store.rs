//! What was published: directory objects by digest, and the generations that name them. One SQLite file per
//! tree. A source serves from it while its index moves on; a mirror keeps in it what it fetched.
//!
//! An object is in it only when all objects below it are, so equal digests need no descent: a root is put
//! in with everything it needs in one transaction. Every object is checked against its digest when it is
//! read, so a damaged file costs fetching or publishing again, never correctness; hence no syncs.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::index::{Index, SqlError, begin};
use crate::error::{Error, Result, lock};
use crate::model::{Digest, Entry, GenId, Generation, Node, Object, TreePath};

/// Objects are read and written in portions of so many.
const PORTION: usize = 256;

/// The store of one tree.
pub struct Store {
    db: Mutex<Connection>,
    path: PathBuf,
}

fn connect(path: &Path) -> Result<Connection, SqlError> {
    let db = Connection::open(path)?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -4096;
         PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 1048576; PRAGMA busy_timeout = 60000;
         CREATE TABLE IF NOT EXISTS objects (digest BLOB PRIMARY KEY, body BLOB NOT NULL);
         CREATE TABLE IF NOT EXISTS local (theirs BLOB NOT NULL, policy BLOB NOT NULL, ours BLOB NOT NULL,
           PRIMARY KEY (theirs, policy)) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS generations (epoch INTEGER, number INTEGER, value TEXT NOT NULL,
           PRIMARY KEY (epoch, number)) WITHOUT ROWID;",
    )?;
    db.set_prepared_statement_cache_capacity(16);
    Ok(db)
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.path.display())
    }
}

/// Gives encoded objects, in the order asked for.
pub type Fetch<'f> = dyn FnMut(&[Digest]) -> Result<Vec<Vec<u8>>> + 'f;

impl Store {
    /// Opens or creates the file. One that is damaged is replaced by an empty one.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn open(path: &Path) -> Result<Self> {
        match connect(path) {
            Ok(db) => Ok(Self { db: Mutex::new(db), path: path.to_owned() }),
            Err(_) => {
                tracing::warn!("{} is damaged and starts anew", path.display());
                Index::forget(path)?;
                let db = connect(path).map_err(|e| e.at(path))?;
                Ok(Self { db: Mutex::new(db), path: path.to_owned() })
            }
        }
    }

    /// Forgets everything: what is needed comes again.
    ///
    /// # Errors
    /// The file cannot be replaced.
    pub fn start_anew(&self) -> Result<()> {
        let mut db = self.db();
        // the old file is closed before it goes
        *db = Connection::open_in_memory().map_err(|e| SqlError::from(e).at(&self.path))?;
        Index::forget(&self.path)?;
        *db = connect(&self.path).map_err(|e| e.at(&self.path))?;
        Ok(())
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        lock(&self.db)
    }

    fn run<T>(&self, f: impl FnOnce(&Connection) -> Result<T, SqlError>) -> Result<T> {
        f(&self.db()).map_err(|e| e.at(&self.path))
    }

    /// The encoded object; `None` when it is not there or damaged.
    ///
    /// # Errors
    /// SQLite's.
    pub fn body(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let body: Option<Vec<u8>> = self.run(|db| {
            let mut q = db.prepare_cached("SELECT body FROM objects WHERE digest = ?1")?;
            Ok(q.query_row([&digest.0[..]], |r| r.get(0)).optional()?)
        })?;
        Ok(body.filter(|body| Digest::of(body) == *digest))
    }

    /// The object.
    ///
    /// # Errors
    /// It is not there ([`crate::error::Class::Integrity`]), or SQLite's.
    pub fn object(&self, digest: &Digest) -> Result<Object> {
        let gone = || Error::integrity(format!("{} lost the directory {digest}", self.path.display()));
        Object::decode(&self.body(digest)?.ok_or_else(gone)?)
    }

    /// Whether the object is there.
    ///
    /// # Errors
    /// SQLite's.
    pub fn has(&self, digest: &Digest) -> Result<bool> {
        self.run(|db| {
            let mut q = db.prepare_cached("SELECT 1 FROM objects WHERE digest = ?1")?;
            Ok(q.exists([&digest.0[..]])?)
        })
    }

    /// Puts the tree of `root` in, all or nothing; asks `fetch` for what is missing, level by level, in
    /// portions. Gives how many objects came in.
    ///
    /// # Errors
    /// `fetch`'s own, an object that is not its digest's, or SQLite's.
    pub fn take_in(&self, root: &Digest, fetch: &mut Fetch<'_>) -> Result<u64> {
        // a damaged one is put in again
        if self.body(root)?.is_some() {
            return Ok(0);
        }
        self.whole(|| self.descend(root, fetch))
    }

    /// All of it, or nothing.
    fn whole<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.run(begin)?;
        let done = work().and_then(|done| self.run(|db| Ok(db.execute_batch("COMMIT")?)).map(|()| done));
        if done.is_err() {
            // what failed is the news; an open transaction is rolled back by the next one, too
            let _ = self.run(|db| Ok(db.execute_batch("ROLLBACK")?));
        }
        done
    }

    fn descend(&self, root: &Digest, fetch: &mut Fetch<'_>) -> Result<u64> {
        let mut open = vec![*root];
        let mut asked = HashSet::from([*root]);
        let mut count = 0;
        while !open.is_empty() {
            // the last ones first: what is open stays small in wide trees
            let portion = open.split_off(open.len().saturating_sub(PORTION));
            let bodies = fetch(&portion)?;
            for (digest, body) in portion.iter().zip(&bodies) {
                let object = Object::decode(body)?;
                self.put(digest, body)?;
                count += 1;
                for entry in &object.entries {
                    if let Node::Dir { object, .. } = &entry.node
                        && !self.has(object)?
                        && asked.insert(*object)
                    {
                        open.push(*object);
                    }
                }
            }
        }
        Ok(count)
    }

    fn put(&self, digest: &Digest, body: &[u8]) -> Result<()> {
        if Digest::of(body) != *digest {
            return Err(Error::integrity(format!("the directory {digest} is not what its digest says")));
        }
        self.run(|db| {
            let mut q = db.prepare_cached("INSERT OR REPLACE INTO objects VALUES (?1, ?2)")?;
            q.execute(params![&digest.0[..], body])?;
            Ok(())
        })
    }

    /// The tree of `theirs` with every entry as `change` makes it, which `policy` names; what was done before
    /// is not done again. Gives the new root object's digest.
    ///
    /// # Errors
    /// `theirs` is not in the store as a whole, or SQLite's.
    pub fn translate(&self, theirs: &Digest, policy: &Digest, change: &dyn Fn(&mut Entry)) -> Result<Digest> {
        self.whole(|| self.translate_all(theirs, policy, change))
    }

    fn translate_all(&self, theirs: &Digest, policy: &Digest, change: &dyn Fn(&mut Entry)) -> Result<Digest> {
        let mut stack = vec![*theirs];
        while let Some(top) = stack.last().copied() {
            if self.ours(&top, policy)?.is_some() {
                stack.pop();
                continue;
            }
            let mut object = self.object(&top)?;
            let before = stack.len();
            for entry in &mut object.entries {
                change(entry);
                if let Node::Dir { object, .. } = &mut entry.node {
                    match self.ours(object, policy)? {
                        Some(ours) => *object = ours,
                        None => stack.push(*object),
                    }
                }
            }
            if stack.len() > before {
                continue;
            }
            let body = object.encode();
            let ours = Digest::of(&body);
            self.put(&ours, &body)?;
            self.run(|db| {
                let mut q = db.prepare_cached("INSERT OR REPLACE INTO local VALUES (?1, ?2, ?3)")?;
                q.execute(params![&top.0[..], &policy.0[..], &ours.0[..]])?;
                Ok(())
            })?;
            stack.pop();
        }
        self.ours(theirs, policy)?.ok_or_else(|| Error::integrity("a translated directory is missing"))
    }

    fn ours(&self, theirs: &Digest, policy: &Digest) -> Result<Option<Digest>> {
        let found: Option<Vec<u8>> = self.run(|db| {
            let mut q = db.prepare_cached("SELECT ours FROM local WHERE theirs = ?1 AND policy = ?2")?;
            Ok(q.query_row([&theirs.0[..], &policy.0[..]], |r| r.get(0)).optional()?)
        })?;
        match found.as_deref().and_then(Digest::from_slice) {
            Some(ours) if self.has(&ours)? => Ok(Some(ours)),
            _ => Ok(None),
        }
    }

    /// Notes a generation.
    ///
    /// # Errors
    /// SQLite's.
    pub fn add_generation(&self, generation: &Generation) -> Result<()> {
        let value = serde_json::to_string(generation).map_err(|e| Error::integrity(e.to_string()))?;
        let (epoch, number) = (generation.id.epoch as i64, generation.id.number as i64);
        self.run(|db| {
            let mut q = db.prepare_cached("INSERT OR REPLACE INTO generations VALUES (?1, ?2, ?3)")?;
            q.execute(params![epoch, number, value])?;
            Ok(())
        })
    }

    /// The newest `limit` generations, newest first; one that cannot be read is left out.
    ///
    /// # Errors
    /// SQLite's.
    pub fn generations(&self, limit: usize) -> Result<Vec<Generation>> {
        self.run(|db| {
            let mut q =
                db.prepare_cached("SELECT value FROM generations ORDER BY epoch DESC, number DESC LIMIT ?1")?;
            let rows = q.query_map([limit as i64], |r| r.get::<_, String>(0))?;
            let mut out = Vec::new();
            for row in rows {
                out.extend(serde_json::from_str(&row?).ok());
            }
            Ok(out)
        })
    }

    /// The newest generation.
    ///
    /// # Errors
    /// SQLite's.
    pub fn newest(&self) -> Result<Option<Generation>> {
        Ok(self.generations(1)?.pop())
    }

    /// Forgets generations older than `from`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn forget_before(&self, from: GenId) -> Result<()> {
        self.run(|db| {
            db.execute(
                "DELETE FROM generations WHERE (epoch, number) < (?1, ?2)",
                params![from.epoch as i64, from.number as i64],
            )?;
            Ok(())
        })
    }

    /// Removes the objects that none of `roots` needs. Gives how many went.
    ///
    /// # Errors
    /// SQLite's.
    pub fn sweep(&self, roots: &[Digest]) -> Result<u64> {
        let mut live: HashSet<Digest> = HashSet::new();
        let mut stack = roots.to_vec();
        while let Some(digest) = stack.pop() {
            if !live.insert(digest) {
                continue;
            }
            if let Some(body) = self.body(&digest)? {
                let dirs = Object::decode(&body)?.entries.into_iter().filter_map(|e| match e.node {
                    Node::Dir { object, .. } => Some(object),
                    _ => None,
                });
                stack.extend(dirs);
            }
        }
        self.whole(|| {
            self.run(|db| {
                let mut q = db.prepare("SELECT digest FROM objects")?;
                let all = q.query_map([], |r| r.get::<_, Vec<u8>>(0))?.collect::<Result<Vec<_>, _>>()?;
                let mut gone = 0;
                let mut delete = db.prepare_cached("DELETE FROM objects WHERE digest = ?1")?;
                for digest in all {
                    if Digest::from_slice(&digest).is_none_or(|d| !live.contains(&d)) {
                        gone += delete.execute([&digest])? as u64;
                    }
                }
                db.execute_batch(
                    "DELETE FROM local WHERE theirs NOT IN (SELECT digest FROM objects)
                     OR ours NOT IN (SELECT digest FROM objects)",
                )?;
                Ok(gone)
            })
        })
    }

    /// The entry at `path` in the tree of `root`; `None` when there is none, or it cannot be read.
    pub fn find(&self, root: &Digest, path: &TreePath) -> Option<Entry> {
        let mut at = self.object(root).ok()?;
        let mut parts = path.components().peekable();
        while let Some(part) = parts.next() {
            let entry = at.get(part)?.clone();
            match entry.node {
                _ if parts.peek().is_none() => return Some(entry),
                Node::Dir { object, .. } => at = self.object(&object).ok()?,
                _ => return None,
            }
        }
        None
    }

    /// How many objects are in it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn count(&self) -> Result<u64> {
        self.run(|db| Ok(db.query_row("SELECT count(*) FROM objects", [], |r| r.get::<_, i64>(0))? as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Mtime, Name, Owner};

    fn dir(name: &str, object: Digest) -> Entry {
        let node = Node::Dir { object, content: Digest([0; 32]) };
        let owner = Owner { user: "root".into(), group: "root".into() };
        Entry { name: Name::new(name.as_bytes()).unwrap(), mode: 0o755, mtime: Mtime::default(), owner, node }
    }

    /// a/b/c, each a directory; gives the bodies from the root down.
    fn chain() -> Vec<Vec<u8>> {
        let mut bodies = vec![Object::default().encode()];
        for name in ["c", "b", "a"] {
            let below = Digest::of(bodies.last().unwrap());
            bodies.push(Object { entries: vec![dir(name, below)] }.encode());
        }
        bodies.reverse();
        bodies
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        (dir, store)
    }

    #[test]
    fn only_what_is_missing_is_fetched_and_an_error_leaves_nothing() {
        let (_dir, store) = store();
        let bodies = chain();
        let root = Digest::of(&bodies[0]);
        let mut asked = 0;
        let mut failing = |want: &[Digest]| {
            asked += want.len();
            if asked > 2 {
                return Err(Error::integrity("no more"));
            }
            Ok(bodies.iter().filter(|b| want.contains(&Digest::of(b))).cloned().collect())
        };
        assert!(store.take_in(&root, &mut failing).is_err());
        assert_eq!(store.count().unwrap(), 0);
        let mut all = |want: &[Digest]| {
            Ok(want.iter().map(|d| bodies.iter().find(|b| Digest::of(b) == *d).unwrap().clone()).collect())
        };
        assert_eq!(store.take_in(&root, &mut all).unwrap(), 4);
        assert_eq!(store.take_in(&root, &mut |_| panic!("nothing is missing")).unwrap(), 0);
    }

    #[test]
    fn a_lie_is_not_taken_in() {
        let (_dir, store) = store();
        let root = Digest::of(b"another");
        assert!(store.take_in(&root, &mut |_| Ok(vec![Object::default().encode()])).is_err());
        assert!(!store.has(&root).unwrap());
    }

    #[test]
    fn a_translated_tree_keeps_its_shape_and_is_made_once() {
        let (_dir, store) = store();
        let bodies = chain();
        let root = Digest::of(&bodies[0]);
        let mut all = |want: &[Digest]| {
            Ok(want.iter().map(|d| bodies.iter().find(|b| Digest::of(b) == *d).unwrap().clone()).collect())
        };
        store.take_in(&root, &mut all).unwrap();
        let policy = Digest::of(b"no owners");
        let ours = store.translate(&root, &policy, &|e| e.owner = Owner::default()).unwrap();
        assert_ne!(ours, root);
        let top = store.object(&ours).unwrap();
        assert_eq!(top.entries[0].owner, Owner::default());
        let Node::Dir { object, .. } = top.entries[0].node else { panic!() };
        assert_eq!(&*store.object(&object).unwrap().entries[0].name, b"b");
        let again = store.translate(&root, &policy, &|_| panic!("done before")).unwrap();
        assert_eq!(again, ours);
    }

    #[test]
    fn a_sweep_keeps_what_the_roots_need() {
        let (_dir, store) = store();
        let bodies = chain();
        let root = Digest::of(&bodies[0]);
        let mut all = |want: &[Digest]| {
            Ok(want.iter().map(|d| bodies.iter().find(|b| Digest::of(b) == *d).unwrap().clone()).collect())
        };
        store.take_in(&root, &mut all).unwrap();
        assert_eq!(store.sweep(&[root]).unwrap(), 0);
        assert_eq!(store.sweep(&[Digest::of(&bodies[1])]).unwrap(), 1);
        assert!(store.has(&Digest::of(&bodies[3])).unwrap());
    }
}
