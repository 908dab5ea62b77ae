//! Getting something out of the trash: copied beside its place and renamed there, never over anything.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::copy::{attributes, copy};
use super::{Amount, Found, names, open_part};
use crate::disk::{Dir, FileKind, Stat, remove_tree};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::TreePath;

/// Where in `.syncagent` what is restored is made.
const RESTORE: &[u8] = b"restore";

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

    /// What is removed from the trash is renamed first: where it still is, nothing of it has gone.
    fn is_whole(&self) -> Result<()> {
        let now = open_part(&self.trash, self.commit, self.part).and_then(|now| now.stat_self().ok());
        let was = self.root.stat_self().context(|| "look into the trash".into())?;
        if now.is_some_and(|now| now.id.ino == was.id.ino) {
            return Ok(());
        }
        let what = format!("what commit {} displaced has just been removed from the trash", self.commit);
        Err(Error::new(Class::Transient, what))
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
                let inside = names(&dir).context(cannot)?;
                self.is_whole()?;
                stack.extend(inside.iter().map(|name| path.join(name)));
                continue;
            }
            let copied = copy(&from, name, tmp, b"new", &mut sum);
            self.is_whole()?;
            copied.context(cannot)?;
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
