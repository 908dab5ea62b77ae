//! Contents that the trash has, by their digests.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, Result as Sys};

use super::super::trash::{TRASH, numbers};
use super::{PARTS, TrashPart, open_part, open_trash, trashed};
use crate::disk::{Dir, FileKind, stat_fd};
use crate::error::{Context as _, Result};
use crate::model::{Digest, TreePath};
use crate::scan::hash_fd;

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
