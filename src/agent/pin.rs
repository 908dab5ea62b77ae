//! The source as it was first seen: a vanished mount leaves an empty directory, which must not look like a
//! deleted tree. Checked before a scan, and again after it.

use std::path::Path;

use crate::apply::{Pin, PinnedMount};
use crate::disk::{Dir, MountId};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{TreePath, escaped};

/// Pins the source at `path`, on `mount`, with what is mounted on the directories `below`.
pub(super) fn of(dir: &Dir, path: &Path, mount: &MountId, below: &[TreePath]) -> Result<Pin> {
    let of = |path: &TreePath| {
        let dir = dir.open(path).context(|| format!("open {path} in the source"))?;
        let mount = MountId::of(&dir).context(|| format!("find the file system of {path}"))?;
        Ok(PinnedMount { path: path.to_string(), mount })
    };
    let mounts = below.iter().map(of).collect::<Result<_>>()?;
    Ok(Pin { path: escaped(path), mount: mount.clone(), mounts })
}

fn refused(what: String) -> Error {
    Error::new(Class::Refused, what)
}

/// The source, or what `what` names, is on the file system that it was on. `remedy` is the file to remove when it has moved.
pub(super) fn check(pin: &Pin, what: &str, path: &Path, mount: &MountId, remedy: &str) -> Result<()> {
    if pin.path == escaped(path) && !mount.is(&pin.mount) {
        return Err(refused(format!(
            "the {what} {} is not on the file system it was on: it is on {mount}, and was on {}; nothing was changed. \
             Mount it. If it has really moved, remove {remedy}",
            pin.path, pin.mount
        )));
    }
    Ok(())
}

/// Everything that was mounted below the source still is.
pub(super) fn check_below(old: &Pin, now: &Pin, remedy: &str) -> Result<()> {
    let there = |m: &PinnedMount| now.mounts.iter().any(|n| n.path == m.path && n.mount.is(&m.mount));
    match old.mounts.iter().find(|m| old.path == now.path && !there(m)) {
        Some(gone) => Err(refused(format!(
            "{} in the source {} was a mount of {}, and is not any more; nothing was changed. Mount it. If it is \
             really gone, remove {remedy}",
            gone.path, old.path, gone.mount
        ))),
        None => Ok(()),
    }
}

/// After the scan: the path still leads to the directory that was scanned.
pub(super) fn check_again(dir: &Dir, path: &Path, mount: &MountId) -> Result<()> {
    let gone = |why: &str| {
        refused(format!("the source {} {why} during the scan; nothing was changed", escaped(path)))
    };
    let cannot = || format!("look at the source {} again", escaped(path));
    let again = match Dir::open_root(path) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Err(gone("vanished")),
        again => again.context(cannot)?,
    };
    let (before, after) = (dir.stat_self().context(cannot)?, again.stat_self().context(cannot)?);
    let unchanged = before.dev == after.dev && before.id.ino == after.id.ino;
    // the same mount, or one of the same file system
    let same =
        || Ok::<_, Error>(before.mount == after.mount || MountId::of(&again).context(cannot)?.is(mount));
    if unchanged && same()? { Ok(()) } else { Err(gone("was replaced or unmounted")) }
}

/// What is mounted below is still mounted there.
pub(super) fn check_mounts(dir: &Dir, mounts: &[(TreePath, MountId)], remedy: &str) -> Result<()> {
    let there = |(path, mount): &(TreePath, MountId)| {
        dir.open(path).is_ok_and(|dir| MountId::of(&dir).is_ok_and(|now| now.is(mount)))
    };
    match mounts.iter().find(|m| !there(m)) {
        Some((path, mount)) => Err(refused(format!(
            "{path} in the source was a mount of {mount}, and is not any more; nothing was changed. Mount it. If it is \
             really gone, remove {remedy}"
        ))),
        None => Ok(()),
    }
}
