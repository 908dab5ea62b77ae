//! Looking into the trash, and getting something out of it again. What is taken out is copied beside its place and
//! renamed there, never over anything; the trash keeps its own until it is emptied.

mod copy;
mod restore;
mod seek;

use rustix::io::{Errno, Result as Sys};
use serde::{Deserialize, Serialize};

pub(crate) use seek::{Displaced, content_of, seek_trashed};

use super::trash::{DRIFT, TRASH, TREE, drop_empty, noted, numbers, remove_part, remove_rest};
use crate::disk::{Dir, FileKind, Stat, tree_size};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{Mtime, Name, TreePath};

/// How something came into the trash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrashPart {
    /// A commit replaced or deleted it.
    Tree,
    /// Somebody had written it there: a commit did not expect it, or knew it to be in no published state.
    Drift,
}

const PARTS: [TrashPart; 2] = [TrashPart::Tree, TrashPart::Drift];

impl TrashPart {
    fn dir(self) -> &'static [u8] {
        match self {
            Self::Tree => TREE,
            Self::Drift => DRIFT,
        }
    }
}

/// A file or link in the trash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trashed {
    /// The commit that displaced it.
    pub commit: u64,
    /// How it came there.
    pub part: TrashPart,
    /// When, by this host's wall clock.
    pub at: Mtime,
    /// What it was in the tree.
    pub path: TreePath,
    /// Bytes; 0 for a link.
    pub size: u64,
    /// A symbolic link.
    pub link: bool,
}

/// What was restored, or freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Files and links.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Where a path lies in the trash.
pub struct Found {
    /// The commit that displaced it.
    pub commit: u64,
    /// How it came there.
    pub part: TrashPart,
    trash: Dir,
    root: Dir,
    path: TreePath,
}

fn open_trash(control: &Dir) -> Result<Option<Dir>> {
    match control.open_child(TRASH) {
        Ok(trash) => Ok(Some(trash)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e).context(|| "open the trash".into()),
    }
}

fn open_part(trash: &Dir, commit: u64, part: TrashPart) -> Option<Dir> {
    // what a commit prunes meanwhile is not there any more
    trash.open_child(commit.to_string().as_bytes()).and_then(|at| at.open_child(part.dir())).ok()
}

/// When `commit` displaced what is in `root`: as it noted it, else the directory's ctime.
fn date(trash: &Dir, commit: u64, root: &Dir) -> Sys<Mtime> {
    match trash.open_child(commit.to_string().as_bytes()).ok().and_then(|home| noted(&home)) {
        Some(at) => Ok(at),
        None => Ok(root.stat_self()?.id.ctime),
    }
}

/// Calls `each` with every file and link in the trash of `control` (an open `.syncagent`): the newest commit first, then
/// by path. Directories are not named: most were made only to hold what lies in them. Ends when `each` says false.
///
/// # Errors
/// The operating system's. What goes meanwhile is passed over.
pub fn trashed(control: &Dir, each: &mut dyn FnMut(Trashed) -> bool) -> Result<()> {
    let Some(trash) = open_trash(control)? else { return Ok(()) };
    for commit in numbers(&trash).context(|| "list the trash".into())? {
        for part in PARTS {
            let Some(root) = open_part(&trash, commit, part) else { continue };
            let Ok(at) = date(&trash, commit, &root) else { continue };
            let mut of = |path: TreePath, stat: &Stat| {
                let link = stat.kind == FileKind::Link;
                let size = if link { 0 } else { stat.size };
                each(Trashed { commit, part, at, path, size, link })
            };
            if !walk(&root, &mut of).context(|| format!("list what commit {commit} displaced"))? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Everything in `root` but directories, by path. Gives false when `each` did.
fn walk(root: &Dir, each: &mut dyn FnMut(TreePath, &Stat) -> bool) -> Sys<bool> {
    let mut stack: Vec<(TreePath, Option<Stat>)> = vec![(TreePath::root(), None)];
    while let Some((path, leaf)) = stack.pop() {
        if let Some(stat) = leaf {
            if !each(path, &stat) {
                return Ok(false);
            }
            continue;
        }
        let dir = match root.open(&path) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        let mut kids = Vec::new();
        for name in names(&dir)? {
            if let Ok(stat) = dir.stat(&*name) {
                kids.push((path.join(&name), (stat.kind != FileKind::Dir).then_some(stat)));
            }
        }
        kids.sort_by(|a, b| b.0.cmp(&a.0));
        stack.append(&mut kids);
    }
    Ok(true)
}

fn names(dir: &Dir) -> Sys<Vec<Name>> {
    let mut out = Vec::new();
    dir.list(&mut |name| {
        out.push(Name::new(name.to_bytes()).map_err(|_| Errno::INVAL)?);
        Ok(())
    })?;
    Ok(out)
}

/// Where `path` lies in the trash: what the newest commit displaced that displaced it at all, or `commit`.
///
/// # Errors
/// It is not there ([`Class::Config`]), or the operating system's.
pub fn find_trashed(control: &Dir, path: &TreePath, commit: Option<u64>) -> Result<Found> {
    let none = || {
        let of = commit.map(|n| format!(" of commit {n}")).unwrap_or_default();
        let what = format!("{path} is not in the trash{of}; `syncagent trash TREE list` shows what is");
        Error::new(Class::Config, what)
    };
    if path.is_root() {
        return Err(Error::new(Class::Config, "name a path in the tree; not the whole tree"));
    }
    let trash = open_trash(control)?.ok_or_else(none)?;
    let mut all = numbers(&trash).context(|| "list the trash".into())?;
    all.retain(|n| commit.is_none_or(|c| c == *n));
    for n in all {
        for part in PARTS {
            let Some(root) = open_part(&trash, n, part) else { continue };
            let (parent, name) = path.split();
            let parent = TreePath::new(parent).unwrap_or_default();
            let stat = root.open(&parent).and_then(|dir| dir.stat(name));
            let there = match stat {
                Ok(stat) if stat.kind == FileKind::Dir => {
                    // a directory that only came to be for the commit's own work holds nothing
                    let dir = root.open(path).context(|| format!("open {path} in the trash"))?;
                    tree_size(&dir).is_ok_and(|(files, _)| files > 0)
                }
                Ok(_) => true,
                Err(_) => false,
            };
            if there {
                let trash = trash.open(&TreePath::root()).context(|| "open the trash".into())?;
                return Ok(Found { commit: n, part, trash, root, path: path.clone() });
            }
        }
    }
    Err(none())
}

/// Removes what came into the trash before `before` (all of it with `None`); with `dry_run` only counts it.
///
/// # Errors
/// The operating system's; what was not removed stays.
pub fn empty_trash(control: &Dir, before: Option<Mtime>, dry_run: bool) -> Result<Amount> {
    let Some(trash) = open_trash(control)? else { return Ok(Amount::default()) };
    let mut sum = Amount::default();
    for commit in numbers(&trash).context(|| "list the trash".into())? {
        for part in PARTS {
            let Some(root) = open_part(&trash, commit, part) else { continue };
            let cannot = || format!("empty what commit {commit} displaced");
            let at = date(&trash, commit, &root).context(cannot)?;
            if before.is_some_and(|before| at >= before) {
                continue;
            }
            let (files, bytes) = tree_size(&root).context(cannot)?;
            if !dry_run {
                let home = trash.open_child(commit.to_string().as_bytes()).context(cannot)?;
                remove_part(&home, part.dir(), &|| false).context(cannot)?;
            }
            sum.files += files;
            sum.bytes += bytes;
        }
        if !dry_run && let Ok(home) = trash.open_child(commit.to_string().as_bytes()) {
            remove_rest(&home, &|| false).context(|| format!("empty what commit {commit} displaced"))?;
            drop_empty(&trash, commit);
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests;
