//! `syncagent trash`: what commits displaced, listed, given back, freed. The same for a tree of an agent (asked
//! through its socket, in the thread that has the tree) and for one that `syncagent sync` made.

mod restore;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::target::Target;
use crate::apply::{Control, Journal, Marker, TrashPart, Trashed, empty_trash, trashed};
use crate::disk::{Dir, now};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{GenId, Mtime, TreePath, counted, escaped};
use crate::plan::CONTROL_DIR;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrashOrder {
    /// What is in it.
    List {
        /// At most so many entries.
        limit: u64,
    },
    /// Copy these paths back.
    Restore {
        /// Paths in the tree.
        paths: Vec<TreePath>,
        /// The commit that displaced them, or the generation; `None` for the newest of each path.
        of: Option<String>,
        /// Into this directory instead of the tree: an absolute path's bytes.
        to: Option<Vec<u8>>,
    },
    /// Free it.
    Empty {
        /// Only what is older.
        older_than_ms: Option<u64>,
        /// Only count.
        dry_run: bool,
    },
}

impl TrashOrder {
    /// Neither the tree nor its trash is changed, so nothing needs to be waited for.
    pub fn reads_only(&self) -> bool {
        match self {
            Self::List { .. } | Self::Empty { dry_run: true, .. } => true,
            Self::Restore { to, .. } => to.is_some(),
            Self::Empty { .. } => false,
        }
    }
}

/// One entry of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashEntry {
    /// The commit that displaced it, as `--generation` takes it.
    pub commit: u64,
    /// The generation that the commit brought, where it is known.
    pub generation: Option<GenId>,
    /// When, RFC 3339, by this host's clock.
    pub at: String,
    /// `tree`: replaced or deleted; `drift`: somebody wrote it there, no published state had it.
    pub kind: TrashPart,
    /// What it was in the tree.
    pub path: TreePath,
    /// Bytes; 0 for a link.
    pub size: u64,
    /// A symbolic link.
    pub link: bool,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrashAnswer {
    /// The newest entries.
    List {
        /// Newest commit first, then by path.
        entries: Vec<TrashEntry>,
        /// Entries that were left out.
        more: u64,
    },
    /// What was done.
    Done {
        /// For people.
        message: String,
        /// Files and links.
        files: u64,
        /// Their bytes.
        bytes: u64,
    },
}

/// Whether something may be restored into the tree.
pub(super) enum Into {
    /// It may.
    Allowed,
    /// It may not: this says why.
    Refused(String),
}

/// A tree's trash; the caller holds the tree's lock unless it only lists, or restores elsewhere.
pub(super) struct Trash<'a> {
    /// The tree's root.
    pub(super) root: &'a Dir,
    /// Its `.syncagent`.
    pub(super) control: &'a Dir,
    /// Which generation a commit brought.
    pub(super) generation: &'a dyn Fn(u64) -> Option<GenId>,
    /// Whether something may be restored into the tree.
    pub(super) into: Into,
}

impl Trash<'_> {
    pub(super) fn carry_out(&self, order: &TrashOrder) -> Result<TrashAnswer> {
        match order {
            TrashOrder::List { limit } => self.list(*limit),
            TrashOrder::Restore { paths, of, to } => self.restore(paths, of.as_deref(), to.as_deref()),
            TrashOrder::Empty { older_than_ms, dry_run } => self.empty(*older_than_ms, *dry_run),
        }
    }

    fn list(&self, limit: u64) -> Result<TrashAnswer> {
        let mut entries = Vec::new();
        let mut more = 0;
        let mut last: Option<(u64, Option<GenId>)> = None;
        trashed(self.control, &mut |t: Trashed| {
            if entries.len() as u64 >= limit {
                more += 1;
                return true;
            }
            let generation = match last {
                Some((commit, known)) if commit == t.commit => known,
                _ => (self.generation)(t.commit),
            };
            last = Some((t.commit, generation));
            entries.push(TrashEntry {
                commit: t.commit,
                generation,
                at: rfc3339(t.at),
                kind: t.part,
                path: t.path,
                size: t.size,
                link: t.link,
            });
            true
        })?;
        Ok(TrashAnswer::List { entries, more })
    }

    /// The commit that `of` names: its number, or the generation that it brought.
    fn commit_of(&self, of: &str) -> Result<u64> {
        if let Ok(commit) = of.parse() {
            return Ok(commit);
        }
        let bad = |e: String| Error::new(Class::Config, format!("--generation: {e}, nor a commit's number"));
        let id: GenId = of.parse().map_err(bad)?;
        let mut found = None;
        let mut asked = None;
        trashed(self.control, &mut |t| {
            if asked != Some(t.commit) {
                asked = Some(t.commit);
                found = (self.generation)(t.commit).filter(|g| *g == id).map(|_| t.commit);
            }
            found.is_none()
        })?;
        found.ok_or_else(|| {
            Error::new(
                Class::Config,
                format!("nothing in the trash is known to be displaced by generation {id}"),
            )
        })
    }

    fn empty(&self, older_than_ms: Option<u64>, dry_run: bool) -> Result<TrashAnswer> {
        Journal::refuse_pending(self.control)?;
        let before = older_than_ms.map(|ms| {
            let now = now();
            let ns = now.nanos() - i128::from(ms) * 1_000_000;
            let sec = i64::try_from(ns.div_euclid(1_000_000_000)).unwrap_or(i64::MIN);
            Mtime { sec, nsec: u32::try_from(ns.rem_euclid(1_000_000_000)).unwrap_or(0) }
        });
        let done = empty_trash(self.control, before, dry_run)?;
        let word = if dry_run { "would free" } else { "freed" };
        let message = format!("{word} {}, {}", counted(done.bytes, "byte"), counted(done.files, "file"));
        Ok(TrashAnswer::Done { message, files: done.files, bytes: done.bytes })
    }
}

pub(super) fn rfc3339(at: Mtime) -> String {
    rfc3339_ms(at.sec.saturating_mul(1000) + i64::from(at.nsec / 1_000_000))
}

/// Milliseconds since the epoch as RFC 3339, UTC.
pub(super) fn rfc3339_ms(ms: i64) -> String {
    let at = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The trash of a tree that no agent has: one that `syncagent sync` made, given by its path. What changes something
/// takes the tree's lock.
///
/// # Errors
/// There is no managed tree ([`Class::Config`]), another process has it ([`Class::Busy`]), or what was asked for failed.
pub fn trash_of(path: &Path, order: &TrashOrder) -> Result<TrashAnswer> {
    let shown = escaped(path);
    let why = format!("{shown} is a mirror's tree: what is put into it is drift, and taken out again");
    let into_of = |marker: Option<Marker>| {
        let mirrored = marker.and_then(|m| m.applied).is_some_and(|a| a.generation.is_some());
        if mirrored { Into::Refused(why) } else { Into::Allowed }
    };
    if order.reads_only() {
        // what is in the trash can be had also where the marker is damaged
        let marker = Control::find(path).ok().flatten().and_then(|c| c.marker().ok().flatten());
        return read_only(path, order, &|_| None, into_of(marker));
    }
    let (root, control) = open(path)?;
    let target = Target::open(path, false, Duration::ZERO, &AtomicBool::new(false)).map_err(|e| {
        let hint = "; when an agent has the tree, name it by its name in the configuration";
        if e.class == Class::Busy { Error::new(Class::Busy, format!("{e}{hint}")) } else { e }
    })?;
    let marker = target.control.as_ref().map(Control::marker).transpose()?.flatten();
    let into = into_of(marker);
    Trash { root: &root, control: &control, generation: &|_| None, into }.carry_out(order)
}

/// What needs no lock.
pub(super) fn read_only(
    path: &Path,
    order: &TrashOrder,
    generation: &dyn Fn(u64) -> Option<GenId>,
    into: Into,
) -> Result<TrashAnswer> {
    let (root, control) = open(path)?;
    Trash { root: &root, control: &control, generation, into }.carry_out(order)
}

fn open(path: &Path) -> Result<(Dir, Dir)> {
    let shown = escaped(path);
    let root = Dir::open_root(path).context(|| format!("open {shown}"))?;
    let control = root.open_child(CONTROL_DIR).map_err(|e| {
        let what = format!("{shown} is no tree of syncagent (it has no .syncagent that can be read: {e})");
        Error::new(Class::Config, what)
    })?;
    Ok((root, control))
}
