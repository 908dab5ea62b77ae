//! Questions about a tree: is it what the index says, what is its digest, what is known of a path.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::state::{Pending, TreeState};
use crate::disk::{Dir, FileKind, Lock, Locked, OwnerPolicy, Owners};
use crate::error::{Class, Context as _, Error, PathError, Result};
use crate::model::{Digest, Entry, Kind, TreePath, escaped};
use crate::plan::{CONTROL_DIR, Diff, Filter, Moves, Op, Options, Side as _, Verdict};
use crate::scan::{Counters, Index, OldTree, ROOT_ID, Scanned, Spec, scan};

/// How a path differs from what the index says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriftKind {
    /// Its content.
    Modified,
    /// Only its mode, mtime or owner.
    Attributes,
    /// It is not there.
    Missing,
    /// It should not be there.
    Unexpected,
}

/// A path that is not what the index says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// How.
    pub how: DriftKind,
    /// What it is, or was.
    pub kind: Kind,
    /// Relative to the tree's root.
    pub path: TreePath,
}

fn open(path: &Path) -> Result<(PathBuf, Dir)> {
    let shown = escaped(path);
    let real = match path.canonicalize() {
        Ok(real) if real.metadata().context(|| format!("look at {shown}"))?.is_dir() => real,
        Ok(_) => {
            return Err(Error::new(Class::Config, format!("{shown} is not a directory")));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::new(Class::Config, format!("{shown} does not exist")));
        }
        Err(e) => return Err(Error::io(e, format!("cannot open {shown}"))),
    };
    let dir = Dir::open_root(&real).context(|| format!("open {shown}"))?;
    Ok((real, dir))
}

fn scan_all(
    path: &Path,
    dir: &Dir,
    index: &Index,
    filter: &Filter,
    policy: &OwnerPolicy,
    threads: usize,
    cancel: &AtomicBool,
) -> Result<Scanned> {
    let counters = Counters::default();
    let spec = Spec {
        root: dir,
        shown: &escaped(path),
        index,
        filter,
        setid: true,
        gate: None,
        entering: None,
        policy,
        owners: &Owners::default(),
        rehash: true,
        only: None,
        known: None,
        counters: &counters,
    };
    index.begin()?;
    let mut found = scan(&[spec], threads, cancel)?;
    index.commit()?;
    found.pop().ok_or_else(|| Error::integrity("the scan lost a tree"))
}

/// The content digest of a directory, all files read. With it the paths that could not be read, without
/// which the digest says nothing.
///
/// # Errors
/// It is no directory, or cannot be scanned.
pub fn digest(
    path: &Path,
    filter: &Filter,
    threads: usize,
    cancel: &AtomicBool,
) -> Result<(Digest, Vec<PathError>)> {
    let (real, dir) = open(path)?;
    let index = Index::temporary()?;
    let scanned = scan_all(&real, &dir, &index, filter, &OwnerPolicy::Ignore, threads, cancel)?;
    Ok((scanned.root.content, scanned.errors))
}

/// Reads all of a managed directory again and compares it with its index; calls `found` for every
/// difference, in order of paths. Gives the paths that could not be read.
///
/// # Errors
/// [`Class::Config`] when there is no index, [`Class::Busy`] when a run holds the lock.
pub fn verify(
    path: &Path,
    state_dir: &Path,
    threads: usize,
    cancel: &AtomicBool,
    found: &mut dyn FnMut(Drift) -> Result<()>,
) -> Result<Vec<PathError>> {
    let (real, dir) = open(path)?;
    let none = || {
        Error::new(
            Class::Config,
            format!(
                "{} has no index in the state directory {}; it was never the destination of a finished sync (or give its \
             --state-dir)",
                escaped(&real),
                escaped(state_dir)
            ),
        )
    };
    let state = TreeState::find(state_dir, &real).ok_or_else(none)?;
    let info = state.info().ok_or_else(none)?;
    let _lock = match dir
        .open_child(CONTROL_DIR)
        .map(|c| Lock::acquire(&c, crate::apply::LOCK, Duration::ZERO, "the tree's lock", cancel))
    {
        Ok(Ok(Locked::Yes(lock))) => Some(lock),
        Ok(Ok(Locked::No(holder))) => {
            let who = holder.map_or_else(String::new, |h| format!(" by process {} since {}", h.pid, h.since));
            return Err(Error::new(Class::Busy, format!("{} is locked{who}", escaped(&real))));
        }
        // not ours to write, or on a read-only file system: then nobody else changes it through us either
        Ok(Err(_)) | Err(_) => None,
    };
    let index = Index::open(&state.file("tree.db"))?;
    if index.row(ROOT_ID)?.is_none() {
        return Err(none());
    }
    let now = Index::temporary()?;
    let filter = Filter::new(info.filter)?;
    let policy = if info.owners_ignored { OwnerPolicy::Ignore } else { OwnerPolicy::Preserve };
    let scanned = scan_all(&real, &dir, &now, &filter, &policy, threads, cancel)?;
    let (old, new) = (OldTree(&index), OldTree(&now));
    let diff = Diff {
        old: &old,
        old_root: Some(ROOT_ID),
        new: &new,
        new_root: ROOT_ID,
        options: Options::default(),
    };
    if !index.has_header(&scanned.root.header)? {
        found(Drift { how: DriftKind::Attributes, kind: Kind::Dir, path: TreePath::root() })?;
    }
    diff.walk(&Moves::default(), &mut |step| {
        let how = match step.op {
            Op::Create => DriftKind::Unexpected,
            Op::Update | Op::Move => DriftKind::Modified,
            Op::Attrs if is_touched_dir(&step.subject().node) && only_mtime(&step) => return Ok(()),
            Op::Attrs => DriftKind::Attributes,
            Op::Delete => DriftKind::Missing,
        };
        found(Drift { how, kind: step.kind(), path: step.path.clone() })
    })?;
    Ok(scanned.errors)
}

fn is_touched_dir(node: &crate::model::Node) -> bool {
    matches!(node, crate::model::Node::Dir { .. })
}

/// A directory's mtime moves when something in it comes or goes, which is named by itself.
fn only_mtime<H>(step: &crate::plan::Step<'_, H>) -> bool {
    match (step.old, step.new) {
        (Some(old), Some(new)) => old.entry.mode == new.mode && old.entry.owner == new.owner,
        _ => false,
    }
}

/// What is known of one path.
#[derive(Debug)]
pub struct Explained {
    /// The source it comes from, escaped.
    pub source: Option<String>,
    /// What the filter of the last run says.
    pub filter: Verdict,
    /// The tree's entry as the index has it.
    pub tree: Option<Entry>,
    /// The source's entry as the index has it.
    pub in_source: Option<Entry>,
    /// What is there now: kind and size.
    pub now: Option<(FileKind, u64)>,
    /// When a run last finished, RFC 3339.
    pub last_run: Option<String>,
    /// The refused plan that would change it, and its line.
    pub pending: Option<(Pending, String)>,
}

/// What is known of `path` in the tree (or source) `dir`.
///
/// # Errors
/// Nothing is known of `dir` at all.
pub fn explain(dir: &Path, path: &TreePath, state_dir: &Path) -> Result<Explained> {
    let (real, handle) = open(dir)?;
    let of_source = || {
        TreeState::all(state_dir)
            .into_iter()
            .find(|s| s.info().is_some_and(|i| i.source.as_ref() == Some(&escaped(&real))))
    };
    let state = TreeState::find(state_dir, &real)
        .filter(|s| s.info().is_some() || s.pending().is_some())
        .or_else(of_source);
    let Some(state) = state else {
        let what =
            format!("nothing is known of {} in the state directory {}", escaped(&real), escaped(state_dir));
        return Err(Error::new(Class::Config, what));
    };
    let info = state.info().unwrap_or_default();
    let entry = |name: &str| -> Result<Option<Entry>> {
        let file = state.file(name);
        if file.exists() { find(&Index::open(&file)?, path) } else { Ok(None) }
    };
    let (parent, name) = path.split();
    let now = TreePath::new(parent)
        .ok()
        .and_then(|parent| handle.open(&parent).ok())
        .and_then(|d| d.stat(if name.is_empty() { b"." } else { name }).ok())
        .map(|s| (s.kind, s.size));
    let is_dir = now.is_some_and(|(kind, _)| kind == FileKind::Dir);
    let pending = state.pending().and_then(|p| {
        let shown = path.to_string();
        let is_it = |line: &&String| {
            line.splitn(3, ' ').nth(2).is_some_and(|rest| {
                rest == shown || rest.strip_prefix(&shown).is_some_and(|r| r.starts_with(" -> "))
            })
        };
        let line = p.losses.iter().find(is_it).cloned()?;
        Some((p, line))
    });
    Ok(Explained {
        source: info.source,
        filter: Filter::new(info.filter)?.explain(path, is_dir),
        tree: entry("tree.db")?,
        in_source: entry("source.db")?,
        now,
        last_run: info.last_run,
        pending,
    })
}

/// Walks an index down to a path.
fn find(index: &Index, path: &TreePath) -> Result<Option<Entry>> {
    let tree = OldTree(index);
    let mut row = Some(ROOT_ID);
    let mut found = None;
    for part in path.components() {
        let Some(id) = row else { return Ok(None) };
        if index.row(id)?.is_none() {
            return Ok(None);
        }
        let Some(item) = tree.load(&id)?.into_iter().find(|item| *item.entry.name == *part) else {
            return Ok(None);
        };
        row = item.dir;
        found = Some(item.entry);
    }
    Ok(found)
}
