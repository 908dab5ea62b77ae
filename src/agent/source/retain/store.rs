//! `.syncagent/keep`: one file per content, named by its digest.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;

use rustix::io::Errno;

use crate::disk::{Dir, FileKind, stat_fd};
use crate::model::{Digest, TreePath};
use crate::scan::hash_fd;

/// Where a content lies below `keep`.
pub(super) fn place(digest: &Digest) -> (String, String) {
    let name = digest.to_string();
    (name[..2].to_owned(), name)
}

/// Opens a kept content of `size` bytes; `None` when it is not kept.
pub(in crate::agent::source) fn open_kept(keep: &Dir, digest: &Digest, size: u64) -> Option<OwnedFd> {
    let (dir, name) = place(digest);
    let fd = keep.open_child(dir.as_bytes()).and_then(|d| d.open_file(name.as_bytes())).ok()?;
    stat_fd(&fd).is_ok_and(|s| s.kind == FileKind::File && s.size == size).then_some(fd)
}

/// Whether a content of `size` bytes is kept.
pub(in crate::agent::source) fn is_kept(keep: &Dir, digest: &Digest, size: u64) -> bool {
    let (dir, name) = place(digest);
    // both names are ours, and so is the directory: one look is enough
    keep.stat(format!("{dir}/{name}")).is_ok_and(|s| s.kind == FileKind::File && s.size == size)
}

/// Forgets a content that turned out to be damaged.
pub(in crate::agent::source) fn drop_kept(keep: &Dir, digest: &Digest) {
    let (dir, name) = place(digest);
    let _ = keep.open_child(dir.as_bytes()).and_then(|d| d.unlink(name.as_bytes()));
}

/// Forgets a content when it is damaged, and says whether it was; peers may say anything.
pub(in crate::agent::source) fn drop_if_damaged(
    keep: &Dir,
    digest: &Digest,
    size: u64,
    cancel: &AtomicBool,
) -> bool {
    let Some(fd) = open_kept(keep, digest, size) else { return false };
    let damaged = hash_fd(&fd, size, cancel).is_ok_and(|(found, n)| found != *digest || n != size);
    if damaged {
        drop_kept(keep, digest);
    }
    damaged
}

/// Bytes and files in the store.
#[derive(Clone, Copy, Default)]
pub(super) struct Used {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Calls `each` with every file in the store, its directory and size. What a crash left half-made goes.
pub(super) fn each_kept(
    keep: &Dir,
    each: &mut dyn FnMut(&Dir, &str, u64) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let mut dirs = Vec::new();
    // a handle lists once
    keep.open(&TreePath::root())?.list(&mut |name| {
        let name = name.to_string_lossy().into_owned();
        if name.len() == 2 {
            dirs.push(name);
        }
        Ok(())
    })?;
    for dir in dirs {
        let dir = keep.open_child(dir.as_bytes())?;
        let mut names = Vec::new();
        dir.list(&mut |name| {
            names.push(name.to_string_lossy().into_owned());
            Ok(())
        })?;
        for name in names {
            match dir.stat(name.as_bytes()) {
                Ok(stat) => each(&dir, &name, stat.size)?,
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// What is in the store at the start; what a crash left half-made goes.
pub(super) fn count(keep: &Dir) -> rustix::io::Result<Used> {
    let mut left = Vec::new();
    keep.open(&TreePath::root())?.list(&mut |name| {
        let name = name.to_bytes();
        if name.starts_with(b"new-") {
            left.push(name.to_vec());
        }
        Ok(())
    })?;
    for name in left {
        let _ = keep.unlink(&name);
    }
    let mut used = Used::default();
    each_kept(keep, &mut |_, _, size| {
        used.files += 1;
        used.bytes += size;
        Ok(())
    })?;
    Ok(used)
}
