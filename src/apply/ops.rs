//! The renames and attribute changes of a commit. Each can be repeated; none replaces what it has not seen.

use std::collections::BTreeSet;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::commit::Cached;
use super::journal::{Ident, Record, SetAttrs};
use crate::disk::{Dir, FileKind, Stat};
use crate::model::TreePath;

/// The renames.
pub(super) struct Ops<'r> {
    pub(super) tree: Cached<'r>,
    pub(super) stage: Cached<'r>,
    /// Carried out before, at least in part.
    pub(super) again: bool,
    /// What somebody wrote since then stays.
    pub(super) late_stays: bool,
    /// Directories with something in them that must stay.
    pub(super) grown: &'r BTreeSet<TreePath>,
    pub(super) drift: &'r mut BTreeSet<TreePath>,
}

/// `renameat2` flags are not known to the file system (NFS, FUSE).
pub(super) fn no_flags(e: Errno) -> bool {
    matches!(e, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

impl Ops<'_> {
    /// Carries a record out; gives the state after setting attributes.
    pub(super) fn run(&mut self, record: &Record) -> rustix::io::Result<Option<Stat>> {
        match record {
            Record::Put { path, new, old, .. } => self.put(path, new, old.as_ref()).map(|()| None),
            Record::Move { from, path, id, attrs, .. } => self.moved(from, path, id, attrs),
            Record::Remove { path, old, .. } => self.remove(path, old).map(|()| None),
            Record::Open { path } => self.open(path).map(|()| None),
            Record::Attrs { path, id, attrs, .. } => self.attrs(path, id.as_ref(), attrs),
            Record::Begin { .. } | Record::End { .. } | Record::Aside { .. } => Ok(None),
        }
    }

    pub(super) fn put(
        &mut self,
        path: &TreePath,
        new: &Ident,
        old: Option<&Ident>,
    ) -> rustix::io::Result<()> {
        let (parent, name) = path.split();
        let stage = match self.stage.at(parent) {
            // its directory was staged under another name that is in place already
            Err(Errno::NOENT) if self.again => return Ok(()),
            stage => stage?,
        };
        if self.again {
            match stage.stat(name) {
                Ok(stat) if new.is(&stat) => {}
                Ok(_) => return Ok(()),
                Err(Errno::NOENT) => return finish_aside(stage, name),
                Err(e) => return Err(e),
            }
        }
        let tree = self.tree.at(parent)?;
        if self.late_stays {
            match tree.stat(name) {
                Ok(stat) if !old.is_some_and(|old| old.is(&stat)) || self.grown.contains(path) => {
                    return Err(Errno::AGAIN);
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        let replaces = old.is_some();
        let first = if replaces { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        let other = if replaces { RenameFlags::NOREPLACE } else { RenameFlags::EXCHANGE };
        match stage.rename_with(name, tree, name, first) {
            // it came or went meanwhile
            Err(Errno::EXIST | Errno::NOENT) => stage.rename_with(name, tree, name, other),
            Err(e) if no_flags(e) => put_without_exchange(stage, tree, name),
            done => done,
        }
    }

    pub(super) fn remove(&mut self, path: &TreePath, old: &Ident) -> rustix::io::Result<()> {
        let (parent, name) = path.split();
        let stage = self.stage.at(parent)?;
        if self.again && stage.stat(name).is_ok() {
            return Ok(());
        }
        let tree = match self.tree.at(parent) {
            Err(Errno::NOENT) => return Ok(()),
            tree => tree?,
        };
        if self.late_stays {
            match tree.stat(name) {
                Ok(stat) if old.is(&stat) && !self.grown.contains(path) => {}
                // what was to go, with something in it that is not
                Ok(stat) if stat.id.ino == old.ino => return Err(Errno::AGAIN),
                // it is gone, and this is another
                Ok(_) | Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        match tree.rename_with(name, stage, name, RenameFlags::NOREPLACE) {
            Err(Errno::NOENT) => Ok(()),
            Err(e) if no_flags(e) => match tree.rename(name, stage, name) {
                Err(Errno::NOENT) => Ok(()),
                done => done,
            },
            done => done,
        }
    }

    pub(super) fn moved(
        &mut self,
        from: &TreePath,
        path: &TreePath,
        id: &Ident,
        attrs: &SetAttrs,
    ) -> rustix::io::Result<Option<Stat>> {
        let (parent, name) = path.split();
        let (from_parent, from_name) = from.split();
        let mut origin = Cached::new(self.tree.root);
        let origin = match origin.at(from_parent) {
            Err(Errno::NOENT | Errno::NOTDIR) => None,
            origin => Some(origin?),
        };
        let tree = self.tree.at(parent)?;
        let there = tree.stat(name).ok();
        let done =
            self.again && there.is_some_and(|stat| id.is(&stat) || id.ino != 0 && id.ino == stat.id.ino);
        if !done {
            // what is not what was to be moved stays where it is; the next run brings the content
            let origin = origin.ok_or(Errno::AGAIN)?;
            match origin.stat(from_name) {
                Ok(stat) if id.is(&stat) => {}
                Ok(_) | Err(Errno::NOENT) => return Err(Errno::AGAIN),
                Err(e) => return Err(e),
            }
            if there.is_some() && self.late_stays {
                return Err(Errno::AGAIN);
            }
            if there.is_some() {
                // somebody made this name meanwhile
                rename_new(tree, name, self.stage.at(parent)?, name)?;
                self.drift.insert(path.clone());
            }
            rename_new(origin, from_name, tree, name)?;
            if !id.is(&tree.stat(name)?) {
                // exchanged in the instant between
                rename_new(tree, name, origin, from_name)?;
                return Err(Errno::AGAIN);
            }
        }
        set(tree, name, attrs)?;
        tree.stat(name).map(Some)
    }

    pub(super) fn open(&mut self, path: &TreePath) -> rustix::io::Result<()> {
        let (parent, name) = named(path);
        let tree = self.tree.at(parent)?;
        match tree.stat(name) {
            Ok(stat) => tree.chmod(name, stat.mode | 0o700),
            Err(Errno::NOENT) if self.again => Ok(()),
            Err(e) => Err(e),
        }
    }

    pub(super) fn attrs(
        &mut self,
        path: &TreePath,
        id: Option<&Ident>,
        attrs: &SetAttrs,
    ) -> rustix::io::Result<Option<Stat>> {
        let (parent, name) = named(path);
        let tree = match self.tree.at(parent) {
            Err(Errno::NOENT) => return Ok(None),
            tree => tree?,
        };
        let stat = match tree.stat(name) {
            // removed by somebody else: the next run sees it
            Err(Errno::NOENT) => return Ok(None),
            stat => stat?,
        };
        // an mtime that is set on content that somebody wrote meanwhile would hide it for ever
        let is_it = |id: &Ident| {
            let set_before = Ident { mtime: attrs.mtime.unwrap_or(id.mtime), ..*id };
            if self.again { id.is(&stat) || set_before.is(&stat) } else { id.is_untouched(&stat) }
        };
        if id.is_some_and(|id| !is_it(id)) {
            return Err(Errno::AGAIN);
        }
        set(tree, name, attrs)?;
        tree.stat(name).map(Some)
    }
}

/// Renames to a name that must be free.
pub(super) fn rename_new(from: &Dir, name: &[u8], to: &Dir, new: &[u8]) -> rustix::io::Result<()> {
    match from.rename_with(name, to, new, RenameFlags::NOREPLACE) {
        Err(e) if no_flags(e) => match to.stat(new) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => from.rename(name, to, new),
            Err(e) => Err(e),
        },
        done => done,
    }
}

/// The root is `.` in itself.
pub(super) fn named(path: &TreePath) -> (&[u8], &[u8]) {
    if path.is_root() { (b"", b".") } else { path.split() }
}

pub(super) fn set(dir: &Dir, name: &[u8], attrs: &SetAttrs) -> rustix::io::Result<()> {
    let stat = dir.stat(name)?;
    let (uid, gid) = (attrs.uid.filter(|u| *u != stat.uid), attrs.gid.filter(|g| *g != stat.gid));
    if uid.is_some() || gid.is_some() {
        dir.chown(name, uid, gid)?;
    }
    if let Some(mode) = attrs.mode
        && stat.kind != FileKind::Link
        && (mode != stat.mode || uid.is_some() || gid.is_some())
    {
        dir.chmod(name, mode)?;
    }
    match attrs.mtime {
        Some(mtime) if mtime != stat.mtime => dir.set_mtime(name, mtime),
        _ => Ok(()),
    }
}

/// A free name for what is set aside for a moment, of bounded length; the first one is the one that
/// [`finish_aside`] knows.
pub(super) fn aside_name(name: &[u8], try_no: u32) -> Vec<u8> {
    let hash = blake3::hash(name).to_hex();
    let suffix = if try_no == 0 { String::new() } else { format!("-{try_no}") };
    format!(".syncagent-aside-{:.16}{suffix}", hash.as_str()).into_bytes()
}

/// Replaces without EXCHANGE: the old content gets a second name in the staging directory, then the new
/// one is renamed over it. Where a directory is involved, which cannot have two names, there is an instant
/// without either.
pub(super) fn put_without_exchange(stage: &Dir, tree: &Dir, name: &[u8]) -> rustix::io::Result<()> {
    let staged = stage.stat(name)?;
    let old = match tree.stat(name) {
        Err(Errno::NOENT) => {
            put_new_without_flags(stage, tree, name, &staged)?;
            return finish_aside(stage, name);
        }
        old => old?,
    };
    let links = old.kind != FileKind::Dir && staged.kind != FileKind::Dir;
    let mut aside = aside_name(name, 0);
    for try_no in 1.. {
        match stage.stat(&*aside) {
            // of an earlier attempt, and the very file
            Ok(stat) if stat.id.ino == old.id.ino && links => break,
            // of an earlier attempt, but somebody has written another one since
            Ok(_) => aside = aside_name(name, try_no),
            Err(Errno::NOENT) => {
                if !links || tree.link(name, stage, &aside).is_err() {
                    tree.rename(name, stage, &aside)?;
                }
                break;
            }
            Err(e) => return Err(e),
        }
    }
    stage.rename(name, tree, name)?;
    rename_new(stage, &aside, stage, name)
}

/// A new name where `renameat2` has no flags: a link does not replace what somebody made meanwhile.
pub(super) fn put_new_without_flags(
    stage: &Dir,
    tree: &Dir,
    name: &[u8],
    staged: &Stat,
) -> rustix::io::Result<()> {
    if staged.kind != FileKind::Dir {
        match stage.link(name, tree, name) {
            Ok(()) => return stage.unlink(name),
            Err(Errno::EXIST) => return put_without_exchange(stage, tree, name),
            // no hard links here
            Err(_) => {}
        }
    }
    stage.rename(name, tree, name)
}

pub(super) fn finish_aside(stage: &Dir, name: &[u8]) -> rustix::io::Result<()> {
    match rename_new(stage, &aside_name(name, 0), stage, name) {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}
