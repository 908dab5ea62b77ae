//! What became of a tree's generations: how long each took to be in place on each mirror (kept by the source), what
//! was applied when (kept by a mirror), and which commit brought which. One SQLite file per tree, bounded. Written now
//! and then, off the way of publications; a crash loses the last few seconds of it, and a damaged file all of it,
//! which costs nobody anything but the memory.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

use super::trash::rfc3339_ms;
use crate::error::{Error, Result, lock};
use crate::model::{Cause, Digest, GenId, Generation, NodeId, Recent};
use crate::scan::Index;

/// Generations that are remembered.
const KEPT: i64 = 1_000;
/// Commits whose generation is remembered; the trash keeps fewer.
const KEPT_COMMITS: i64 = 10_000;
/// What waits to be written; more than a thousand mirrors tell in five seconds.
const MAX_PENDING: usize = 100_000;
/// Generations that status shows.
pub(super) const RECENT: usize = 10;

/// A generation in the history of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Which.
    pub generation: GenId,
    /// When it was published, RFC 3339, by the source's wall clock.
    pub at: String,
    /// The node that published it.
    pub origin: NodeId,
    /// How it came about.
    pub cause: Cause,
    /// Files and links in it.
    pub files: u64,
    /// Bytes of the files that it created or replaced.
    pub bytes: u64,
    /// Entries that came into being.
    pub created: u64,
    /// Files and links whose content was replaced.
    pub updated: u64,
    /// Entries of which only attributes changed.
    pub attrs: u64,
    /// Entries that got another path.
    pub moved: u64,
    /// Entries that went.
    pub deleted: u64,
    /// Its content digest.
    pub content: Digest,
    /// Milliseconds from its publication until it was in place, by mirror: all of them on the source, itself on a mirror.
    pub converged_ms: BTreeMap<NodeId, u64>,
    /// On a mirror: when it was in place, RFC 3339, by the mirror's clock.
    pub applied_at: Option<String>,
    /// On a mirror: milliseconds that fetching and applying it took.
    pub took_ms: Option<u64>,
}

/// What a mirror did with a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Applied {
    pub(super) generation: Generation,
    /// By this host's wall clock.
    pub(super) at_ms: i64,
    pub(super) took_ms: u64,
    /// From its publication; unknown when it was published before this agent heard of it.
    pub(super) converged_ms: Option<u64>,
}

/// The history of one tree.
pub(super) struct History {
    db: Mutex<Option<Connection>>,
    path: PathBuf,
    pending: Mutex<Vec<(GenId, NodeId, u64)>>,
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA journal_size_limit = 1048576;
         PRAGMA busy_timeout = 10000;
         CREATE TABLE IF NOT EXISTS converged (epoch INTEGER, number INTEGER, node TEXT, ms INTEGER NOT NULL,
           PRIMARY KEY (epoch, number, node)) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS applied (epoch INTEGER, number INTEGER, value TEXT NOT NULL,
           PRIMARY KEY (epoch, number)) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS complete (epoch INTEGER, number INTEGER, PRIMARY KEY (epoch, number)) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS commits (seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, number INTEGER NOT NULL);",
    )?;
    Ok(db)
}

impl History {
    /// Opens or makes the file. Without one that can be used nothing is remembered; that is in the log.
    pub(super) fn open(path: &Path) -> Self {
        let db = connect(path).or_else(|e| {
            tracing::warn!("{} is damaged and starts anew: {e}", path.display());
            let _ = Index::forget(path);
            connect(path)
        });
        let db = db.inspect_err(|e| tracing::warn!("no history is kept in {}: {e}", path.display())).ok();
        Self { db: Mutex::new(db), path: path.to_owned(), pending: Mutex::default() }
    }

    fn run<T>(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let what = |e: &dyn std::fmt::Display| {
            Error::new(crate::error::Class::Permanent, format!("the history {}: {e}", self.path.display()))
        };
        let db = lock(&self.db);
        let db = db.as_ref().ok_or_else(|| what(&"it could not be opened"))?;
        f(db).map_err(|e| what(&e))
    }

    /// Notes, in memory, that `node` had a generation so many milliseconds after its publication.
    pub(super) fn converged(&self, id: GenId, node: &NodeId, ms: u64) {
        let mut pending = lock(&self.pending);
        if pending.len() < MAX_PENDING && id.is_plausible() {
            pending.push((id, node.clone(), ms));
        }
    }

    /// Writes down what was noted.
    pub(super) fn flush(&self) {
        let pending = std::mem::take(&mut *lock(&self.pending));
        if pending.is_empty() {
            return;
        }
        let write = |db: &Connection| {
            let tx = db.unchecked_transaction()?;
            {
                let mut q = tx.prepare_cached("INSERT OR IGNORE INTO converged VALUES (?1, ?2, ?3, ?4)")?;
                for (id, node, ms) in &pending {
                    q.execute(params![id.epoch as i64, id.number as i64, node.to_string(), *ms as i64])?;
                }
            }
            tx.execute(
                "DELETE FROM converged WHERE (epoch, number) < (SELECT epoch, number FROM
                   (SELECT DISTINCT epoch, number FROM converged ORDER BY epoch DESC, number DESC LIMIT 1 OFFSET ?1))",
                [KEPT - 1],
            )?;
            tx.commit()
        };
        if let Err(e) = self.run(write) {
            tracing::warn!("{e}");
        }
    }

    /// Notes what a mirror applied.
    pub(super) fn applied(&self, applied: &Applied) {
        let Ok(value) = serde_json::to_string(applied) else { return };
        let id = applied.generation.id;
        let write = |db: &Connection| {
            db.prepare_cached("INSERT OR REPLACE INTO applied VALUES (?1, ?2, ?3)")?.execute(params![
                id.epoch as i64,
                id.number as i64,
                value
            ])?;
            db.prepare_cached(
                "DELETE FROM applied WHERE (epoch, number) <
                   (SELECT epoch, number FROM applied ORDER BY epoch DESC, number DESC LIMIT 1 OFFSET ?1)",
            )?
            .execute([KEPT - 1])
        };
        if let Err(e) = self.run(write) {
            tracing::warn!("{e}");
        }
    }

    /// Notes that this mirror's server had a generation.
    pub(super) fn complete(&self, id: GenId) {
        let write = |db: &Connection| {
            let sql = "INSERT OR IGNORE INTO complete VALUES (?1, ?2)";
            db.prepare_cached(sql)?.execute(params![id.epoch as i64, id.number as i64])?;
            db.prepare_cached(
                "DELETE FROM complete WHERE (epoch, number) <
                   (SELECT epoch, number FROM complete ORDER BY epoch DESC, number DESC LIMIT 1 OFFSET ?1)",
            )?
            .execute([KEPT - 1])
        };
        if let Err(e) = self.run(write) {
            tracing::warn!("{e}");
        }
    }

    /// The newest generation before `of` that this mirror's server had, and that has another content.
    pub(super) fn complete_before(&self, of: &Generation) -> Option<Generation> {
        let read = |db: &Connection| {
            let mut q = db.prepare(
                "SELECT value FROM applied NATURAL JOIN complete WHERE (epoch, number) < (?1, ?2)
                 ORDER BY epoch DESC, number DESC",
            )?;
            let before = params![of.id.epoch as i64, of.id.number as i64];
            q.query_map(before, |r| r.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = self.run(read).inspect_err(|e| tracing::warn!("{e}")).unwrap_or_default();
        let mut all = rows.iter().filter_map(|row| serde_json::from_str::<Applied>(row).ok());
        all.find(|a| a.generation.root.content != of.root.content).map(|a| a.generation)
    }

    /// Notes which generation the commit `seq` brought.
    pub(super) fn commit(&self, seq: u64, id: GenId) {
        let write = |db: &Connection| {
            db.prepare_cached("INSERT OR REPLACE INTO commits VALUES (?1, ?2, ?3)")?.execute(params![
                seq as i64,
                id.epoch as i64,
                id.number as i64
            ])?;
            db.prepare_cached("DELETE FROM commits WHERE seq <= ?1")?.execute([seq as i64 - KEPT_COMMITS])
        };
        if let Err(e) = self.run(write) {
            tracing::warn!("{e}");
        }
    }

    /// The generation that a commit brought, when that was noted.
    pub(super) fn generation_of(&self, seq: u64) -> Option<GenId> {
        self.run(|db| {
            db.query_row("SELECT epoch, number FROM commits WHERE seq = ?1", [seq as i64], |r| {
                Ok(GenId { epoch: r.get::<_, i64>(0)? as u64, number: r.get::<_, i64>(1)? as u64 })
            })
            .optional()
        })
        .ok()
        .flatten()
    }

    /// What a mirror applied, newest first.
    pub(super) fn all_applied(&self, limit: usize) -> Vec<Applied> {
        let read = |db: &Connection| {
            let mut q = db.prepare("SELECT value FROM applied ORDER BY epoch DESC, number DESC LIMIT ?1")?;
            q.query_map([limit as i64], |r| r.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = self.run(read).unwrap_or_default();
        rows.iter().filter_map(|row| serde_json::from_str(row).ok()).collect()
    }

    /// The generations of a source with what became of them.
    pub(super) fn of_source(&self, generations: Vec<Generation>) -> Vec<HistoryEntry> {
        self.flush();
        let oldest = generations.last().map_or_else(GenId::default, |g| g.id);
        let read = |db: &Connection| {
            let mut q = db
                .prepare("SELECT epoch, number, node, ms FROM converged WHERE (epoch, number) >= (?1, ?2)")?;
            let row = |r: &rusqlite::Row<'_>| {
                let id = GenId { epoch: r.get::<_, i64>(0)? as u64, number: r.get::<_, i64>(1)? as u64 };
                Ok((id, r.get::<_, String>(2)?, r.get::<_, i64>(3)? as u64))
            };
            q.query_map(params![oldest.epoch as i64, oldest.number as i64], row)?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        let mut by_id: BTreeMap<GenId, BTreeMap<NodeId, u64>> = BTreeMap::new();
        for (id, node, ms) in self.run(read).unwrap_or_default() {
            if let Ok(node) = node.parse() {
                by_id.entry(id).or_default().insert(node, ms);
            }
        }
        generations
            .into_iter()
            .map(|g| {
                let converged_ms = by_id.remove(&g.id).unwrap_or_default();
                HistoryEntry { converged_ms, ..entry(&g) }
            })
            .collect()
    }

    /// What the mirror `node` applied, and how that went.
    pub(super) fn of_mirror(&self, node: &NodeId, limit: usize) -> Vec<HistoryEntry> {
        let applied = self.all_applied(limit).into_iter();
        applied
            .map(|a| HistoryEntry {
                converged_ms: a.converged_ms.map(|ms| (node.clone(), ms)).into_iter().collect(),
                applied_at: Some(rfc3339_ms(a.at_ms)),
                took_ms: Some(a.took_ms),
                ..entry(&a.generation)
            })
            .collect()
    }
}

fn entry(g: &Generation) -> HistoryEntry {
    let c = &g.changes;
    HistoryEntry {
        generation: g.id,
        at: rfc3339_ms(g.at_ms),
        origin: g.origin.clone(),
        cause: g.cause.clone(),
        files: g.files,
        bytes: c.bytes,
        created: c.created,
        updated: c.updated,
        attrs: c.attrs,
        moved: c.moved,
        deleted: c.deleted,
        content: g.root.content,
        converged_ms: BTreeMap::new(),
        applied_at: None,
        took_ms: None,
    }
}

/// The newest generations, for status; from memory.
#[derive(Default)]
pub(super) struct Ring(VecDeque<(Recent, i64)>);

impl Ring {
    /// A generation that was published at `at`, boot time in ms; negative: before this boot.
    pub(super) fn push(&mut self, g: &Generation, at: i64) {
        if self.0.front().is_some_and(|(known, _)| known.generation >= g.id) {
            return;
        }
        let c = &g.changes;
        let recent = Recent {
            generation: g.id,
            age_ms: 0,
            files: g.files,
            changed: c.created + c.updated + c.attrs + c.moved,
            deleted: c.deleted,
            bytes: c.bytes,
        };
        self.0.push_front((recent, at));
        self.0.truncate(RECENT);
    }

    /// As they are at `now`, boot time.
    pub(super) fn list(&self, now: u64) -> Vec<Recent> {
        let of = |(recent, at): &(Recent, i64)| Recent {
            age_ms: u64::try_from(now as i64 - at).unwrap_or(0),
            ..recent.clone()
        };
        self.0.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> GenId {
        GenId { epoch: 1, number }
    }

    #[test]
    fn what_mirrors_tell_outlives_a_restart_and_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.db");
        let (b, c): (NodeId, NodeId) = ("b".parse().unwrap(), "c".parse().unwrap());
        let history = History::open(&path);
        for n in 1..=1_500 {
            history.converged(id(n), &b, n);
        }
        history.converged(id(1_500), &c, 7);
        history.flush();
        // a report may come twice: the first counts
        history.converged(id(1_500), &c, 9);
        history.flush();
        drop(history);
        let history = History::open(&path);
        let count =
            history.run(|db| db.query_row("SELECT count(*) FROM converged", [], |r| r.get::<_, i64>(0)));
        assert_eq!(count.unwrap(), 1_001);
        let ms = |n: i64, node: &str| {
            history.run(|db| {
                db.query_row(
                    "SELECT ms FROM converged WHERE number = ?1 AND node = ?2",
                    params![n, node],
                    |r| r.get::<_, i64>(0),
                )
                .optional()
            })
        };
        assert_eq!(ms(1_500, "c").unwrap(), Some(7));
        assert_eq!(ms(501, "b").unwrap(), Some(501));
        assert_eq!(ms(500, "b").unwrap(), None);
    }

    #[test]
    fn a_node_goes_back_to_what_its_server_had_and_what_is_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(&dir.path().join("history.db"));
        let generation = |number, content: u8| Generation {
            id: id(number),
            root: crate::model::Root {
                object: Digest([number as u8; 32]),
                content: Digest([content; 32]),
                header: crate::model::RootHeader { mode: 0o755, owner: Default::default() },
            },
            filter: Digest([0; 32]),
            origin: "a".parse().unwrap(),
            at_ms: 0,
            files: 1,
            changes: Default::default(),
            judged: true,
            approved: None,
            cause: Cause::Change,
        };
        // 3 was never complete, 4 is 5 with other attributes, and of 1 nothing but its name is known
        for (number, content) in [(2, 2), (3, 3), (4, 5), (5, 5)] {
            let generation = generation(number, content);
            history.applied(&Applied { generation, at_ms: 0, took_ms: 0, converged_ms: None });
        }
        [1, 2, 4, 5].iter().for_each(|n| history.complete(id(*n)));
        let before = |number, content| history.complete_before(&generation(number, content)).map(|g| g.id);
        assert_eq!(before(5, 5), Some(id(2)));
        assert_eq!(before(6, 6), Some(id(5)));
        assert_eq!(before(2, 2), None);
    }

    #[test]
    fn a_commit_is_known_by_its_generation_also_from_a_damaged_file_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.db");
        std::fs::write(&path, "no database at all, but long enough to be looked at").unwrap();
        let history = History::open(&path);
        history.commit(12, id(3));
        assert_eq!(history.generation_of(12), Some(id(3)));
        assert_eq!(history.generation_of(13), None);
    }
}
