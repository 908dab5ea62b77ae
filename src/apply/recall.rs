//! Looking into the trash, and getting something out of it again. What is taken out is copied beside its place and
//! renamed there, never over anything; the trash keeps its own until it is emptied.

mod copy;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::RenameFlags;
use rustix::io::{Errno, Result as Sys};
use serde::{Deserialize, Serialize};

use copy::{attributes, copy};

use super::trash::{DRIFT, TRASH, TREE, drop_empty, noted, numbers};
use crate::disk::{Dir, FileKind, Stat, remove_tree, stat_fd, tree_size};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{Digest, Mtime, Name, TreePath};
use crate::scan::hash_fd;

/// Where in `.syncagent` what is restored is made.
const RESTORE: &[u8] = b"restore";

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
                return Ok(Found { commit: n, part, root, path: path.clone() });
            }
        }
    }
    Err(none())
}

/// A name that nobody else has in a directory of somebody else's.
fn own_name() -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (pid, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!(".syncagent-restore-{pid}-{n}-{}", crate::disk::boot_ms()).into_bytes()
}

/// Removes directories that were made for nothing, those below others first; one that has something in it stays.
fn take_back(to: &Dir, made: &[TreePath]) {
    for path in made.iter().rev() {
        let (parent, name) = path.split();
        let parent = TreePath::new(parent).unwrap_or_default();
        let _ = to.open(&parent).and_then(|at| at.rmdir(name));
    }
}

impl Found {
    /// What it was in the tree.
    pub fn path(&self) -> &TreePath {
        &self.path
    }

    /// Restoring `other` restores this as well.
    pub fn is_part_of(&self, other: &Found) -> bool {
        (self.commit, self.part) == (other.commit, other.part) && self.path.is_within(&other.path)
    }

    /// Paths at which `other`, a directory above this, has something that restoring both would have to replace; the
    /// first `limit`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn conflicts_in(&self, other: &Found, limit: usize) -> Result<Vec<TreePath>> {
        self.conflicts(&other.root, limit)
    }

    fn source(&self) -> Result<(Dir, Stat)> {
        let (parent, name) = self.path.split();
        let cannot = || format!("open {} in the trash", self.path);
        let dir = self.root.open(&TreePath::new(parent).unwrap_or_default()).context(cannot)?;
        let stat = dir.stat(name).context(cannot)?;
        Ok((dir, stat))
    }

    /// Paths of `to` at which something is that restoring would have to replace; the first `limit`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn conflicts(&self, to: &Dir, limit: usize) -> Result<Vec<TreePath>> {
        let mut out = Vec::new();
        let mut blocked = |path: &TreePath, as_dir: bool| -> Option<bool> {
            let (parent, name) = path.split();
            let parent = TreePath::new(parent).unwrap_or_default();
            let kind = to.open(&parent).and_then(|d| d.stat(name)).ok()?.kind;
            let blocks = !(as_dir && kind == FileKind::Dir);
            if blocks && out.len() < limit {
                out.push(path.clone());
            }
            Some(blocks)
        };
        let above: Vec<TreePath> = self.path.ancestors().skip(1).filter(|p| !p.is_root()).collect();
        if above.iter().rev().any(|dir| blocked(dir, true) == Some(true)) {
            return Ok(out);
        }
        let (_, stat) = self.source()?;
        let mut stack = vec![(self.path.clone(), stat.kind == FileKind::Dir)];
        while let Some((path, is_dir)) = stack.pop() {
            // what is not there is in nobody's way, and nothing below it either
            if blocked(&path, is_dir) != Some(false) || !is_dir {
                continue;
            }
            let dir = self.root.open(&path).context(|| format!("open {path} in the trash"))?;
            for name in names(&dir).context(|| format!("list {path} in the trash"))? {
                let is_dir = dir.stat(&*name).is_ok_and(|s| s.kind == FileKind::Dir);
                stack.push((path.join(&name), is_dir));
            }
        }
        out.sort();
        Ok(out)
    }

    /// Copies it into the same path of `to`, with mode, owner and mtime, directories above it too. It is made in `control`, the
    /// `.syncagent` of the tree that `to` is (the caller holds its lock), or in a directory of its own in `to`, and
    /// renamed; nothing is replaced. What came into place is added to `placed`, a directory that was missing as one.
    ///
    /// # Errors
    /// Something is in the way ([`Class::Refused`]), or the operating system's; what came into place stays.
    pub fn restore(&self, to: &Dir, control: Option<&Dir>, placed: &mut Vec<TreePath>) -> Result<Amount> {
        let conflicts = self.conflicts(to, 20)?;
        if !conflicts.is_empty() {
            let named: Vec<String> = conflicts.iter().map(TreePath::to_string).collect();
            let what = format!(
                "restoring {} would have to replace {}; restore it beside the tree with --to DIR",
                self.path,
                named.join(", ")
            );
            return Err(Error::new(Class::Refused, what));
        }
        let mut made = Vec::new();
        let done = self.make_parents(to, &mut made).and_then(|()| self.restore_below(to, control, placed));
        if done.is_err() {
            take_back(to, &made);
        }
        done
    }

    /// The same, where the directories above are.
    fn restore_below(&self, to: &Dir, control: Option<&Dir>, placed: &mut Vec<TreePath>) -> Result<Amount> {
        let cannot = || "make a directory to restore in".to_owned();
        let (work, name) = match control {
            Some(control) => {
                // a crash's leftover; nobody else restores at the same time
                remove_tree(control, RESTORE).context(cannot)?;
                (control, RESTORE.to_vec())
            }
            None => (to, own_name()),
        };
        work.mkdir(&name, 0o700).context(cannot)?;
        let done = work.open_child(&name).context(cannot).and_then(|tmp| self.place(to, &tmp, placed));
        let _ = remove_tree(work, &name);
        done
    }

    /// Makes the directories above that are missing, and adds them to `made`, the uppermost first.
    fn make_parents(&self, to: &Dir, made: &mut Vec<TreePath>) -> Result<()> {
        let above: Vec<TreePath> = self.path.ancestors().skip(1).filter(|p| !p.is_root()).collect();
        for path in above.iter().rev() {
            let cannot = || format!("make the directory {path}");
            let (parent, name) = path.split();
            let at = to.open(&TreePath::new(parent).unwrap_or_default()).context(cannot)?;
            match at.mkdir(name, 0o700) {
                Ok(()) => made.push(path.clone()),
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(e).context(cannot),
            }
            let was = self.root.open(path).and_then(|d| d.stat_self()).context(cannot)?;
            let new = at.open_child(name).context(cannot)?;
            attributes(&new, &was, false).context(cannot)?;
        }
        Ok(())
    }

    /// Goes down to what is missing, and renames that into place as a whole.
    fn place(&self, to: &Dir, tmp: &Dir, placed: &mut Vec<TreePath>) -> Result<Amount> {
        let mut sum = Amount::default();
        let mut stack = vec![self.path.clone()];
        while let Some(path) = stack.pop() {
            let cannot = || format!("restore {path}");
            let (parent, name) = path.split();
            let parent = TreePath::new(parent).unwrap_or_default();
            let from = self.root.open(&parent).context(cannot)?;
            let at = to.open(&parent).context(cannot)?;
            let kind = from.stat(name).context(cannot)?.kind;
            let there = at.stat(name).is_ok_and(|s| s.kind == FileKind::Dir);
            if kind == FileKind::Dir && there {
                let dir = from.open_child(name).context(cannot)?;
                stack.extend(names(&dir).context(cannot)?.iter().map(|name| path.join(name)));
                continue;
            }
            copy(&from, name, tmp, b"new", &mut sum).context(cannot)?;
            let renamed = match tmp.rename_with(b"new", &at, name, RenameFlags::NOREPLACE) {
                // where the file system has no such flag a look must do
                Err(Errno::INVAL | Errno::NOSYS) if at.stat(name).is_err() => tmp.rename(b"new", &at, name),
                renamed => renamed,
            };
            match renamed {
                Ok(()) => placed.push(path.clone()),
                Err(_) => drop(remove_tree(tmp, b"new")),
            }
            renamed.and_then(|()| at.sync()).context(cannot)?;
        }
        Ok(sum)
    }
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
                remove_tree(&home, part.dir()).context(cannot)?;
            }
            sum.files += files;
            sum.bytes += bytes;
        }
        if !dry_run {
            drop_empty(&trash, commit);
        }
    }
    Ok(sum)
}

/// A file in the trash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Displaced {
    commit: u64,
    part: TrashPart,
    path: TreePath,
}

impl Displaced {
    /// Opens it for reading.
    pub(crate) fn open(&self, control: &Dir) -> Sys<OwnedFd> {
        open_trashed(&control.open_child(TRASH)?, self.commit, self.part, &self.path)
    }
}

/// Looks for contents in the trash: digest → size and the path that it had. What is found is verified, taken out of
/// `wanted` and handed to `found`. First at those paths, which costs little; then everywhere, reading what has a right size.
/// Ends early when `found` says false; `looked` is called for each file that is looked at.
///
/// # Errors
/// The operating system's, of the trash itself.
pub(crate) fn seek_trashed(
    control: &Dir,
    wanted: &mut HashMap<Digest, (u64, TreePath)>,
    cancel: &AtomicBool,
    looked: &mut dyn FnMut(),
    found: &mut dyn FnMut(Digest, Displaced) -> bool,
) -> Result<()> {
    let Some(trash) = open_trash(control)? else { return Ok(()) };
    let commits = numbers(&trash).context(|| "list the trash".into())?;
    let places: Vec<(u64, TrashPart)> =
        commits.iter().flat_map(|n| PARTS.iter().map(|part| (*n, *part))).collect();
    let known: Vec<(Digest, u64, TreePath)> = wanted.iter().map(|(d, (n, p))| (*d, *n, p.clone())).collect();
    for (digest, size, path) in known {
        if cancel.load(Ordering::Relaxed) {
            return Ok(());
        }
        looked();
        let here = places.iter().find(|(commit, part)| {
            let fd = open_trashed(&trash, *commit, *part, &path);
            fd.is_ok_and(|fd| content_of(&fd, size, cancel) == Some(digest))
        });
        let Some((commit, part)) = here else { continue };
        wanted.remove(&digest);
        if !found(digest, Displaced { commit: *commit, part: *part, path }) {
            return Ok(());
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let mut sizes: HashMap<u64, usize> = HashMap::new();
    wanted.values().for_each(|(size, _)| *sizes.entry(*size).or_default() += 1);
    trashed(control, &mut |t| {
        if cancel.load(Ordering::Relaxed) {
            return false;
        }
        looked();
        if t.link || !sizes.contains_key(&t.size) {
            return true;
        }
        let Ok(fd) = open_trashed(&trash, t.commit, t.part, &t.path) else { return true };
        let Some(digest) = content_of(&fd, t.size, cancel) else { return true };
        if wanted.remove(&digest).is_none() {
            return true;
        }
        if let Some(left) = sizes.get_mut(&t.size) {
            *left -= 1;
            if *left == 0 {
                sizes.remove(&t.size);
            }
        }
        found(digest, Displaced { commit: t.commit, part: t.part, path: t.path }) && !wanted.is_empty()
    })
}

/// The digest of a file of exactly this size.
pub(crate) fn content_of(fd: &OwnedFd, size: u64, cancel: &AtomicBool) -> Option<Digest> {
    stat_fd(fd).ok().filter(|s| s.kind == FileKind::File && s.size == size)?;
    let (digest, n) = hash_fd(fd, size, cancel).ok()?;
    (n == size).then_some(digest)
}

fn open_trashed(trash: &Dir, commit: u64, part: TrashPart, path: &TreePath) -> Sys<OwnedFd> {
    open_part(trash, commit, part).ok_or(Errno::NOENT)?.open_file_at(path)
}

#[cfg(test)]
mod tests;
