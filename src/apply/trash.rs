//! What commits displaced: `.syncagent/trash/N/tree/PATH`, with N the commit's number, and
//! `N/drift/PATH` for what is nowhere else: what was not expected there, and what is in no published state. Generations
//! go when there are too many; drift goes only when the byte budget is exceeded, or after very many commits.
//!
//! `N/at` is a symbolic link whose target says when the commit was: it comes into being in one step with what it says, and
//! nothing changes that later, as `chown -R` does the times of the directories.
//!
//! What is removed is renamed to `N/tree.gone` or `N/drift.gone` first: a part is whole, or it is not there. Only where nothing can be
//! renamed, as on a full btrfs, it is removed in place.

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::control::Control;
use crate::disk::{Dir, now, remove_tree_until, tree_size};
use crate::error::{Context as _, Result};
use crate::model::{Mtime, TreePath};

pub(super) const TRASH: &[u8] = b"trash";
pub(super) const TREE: &[u8] = b"tree";
pub(super) const DRIFT: &[u8] = b"drift";
const AT: &[u8] = b"at";
const PARTS: [&[u8]; 2] = [TREE, DRIFT];

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Generations.
    pub generations: u64,
    /// Bytes, of all generations and drift together.
    pub bytes: u64,
}

/// The number for the next commit: above the marker's and above all that are in the trash, also when the
/// marker was lost.
///
/// # Errors
/// The trash cannot be listed.
pub fn next_number(control: &Control, marker_seq: u64) -> Result<u64> {
    let last = match control.dir.open_child(TRASH) {
        Ok(trash) => {
            numbers(&trash).context(|| format!("list the trash of {}", control.shown()))?.first().copied()
        }
        Err(Errno::NOENT) => None,
        Err(e) => return Err(e).context(|| format!("open the trash of {}", control.shown())),
    };
    Ok(last.unwrap_or(0).max(marker_seq) + 1)
}

fn generation(control: &Control, seq: u64) -> Result<Dir> {
    let cannot = || format!("make the trash of {}", control.shown());
    let trash = control.dir.ensure_dir(TRASH, 0o700).context(cannot)?;
    let home = trash.ensure_dir(seq.to_string().as_bytes(), 0o700).context(cannot)?;
    let at = now();
    // there already from an earlier attempt at this very commit; without one the directories' times must do
    let _ = home.symlink(format!("{}.{:09}", at.sec, at.nsec).as_bytes(), AT);
    Ok(home)
}

/// When the commit was that displaced what is in `home` (`trash/N`), where that was noted.
pub(super) fn noted(home: &Dir) -> Option<Mtime> {
    let text = String::from_utf8(home.read_link(AT).ok()?).ok()?;
    let (sec, nsec) = text.split_once('.')?;
    let nsec = nsec.parse().ok().filter(|nsec| *nsec < 1_000_000_000)?;
    Some(Mtime { sec: sec.parse().ok()?, nsec })
}

fn gone(part: &[u8]) -> Vec<u8> {
    [part, b".gone"].concat()
}

/// Removes a part from `home` (`trash/N`) until `stop` says so (`CANCELED`). From its first file on it is not there for anybody,
/// where it can be renamed; what is left of it then goes with [`remove_rest`].
pub(super) fn remove_part(home: &Dir, part: &[u8], stop: &dyn Fn() -> bool) -> rustix::io::Result<()> {
    let gone = gone(part);
    // two of them have no room under one name
    remove_tree_until(home, &gone, stop)?;
    match home.rename(part, home, &gone) {
        Ok(()) => remove_tree_until(home, &gone, stop),
        Err(Errno::NOENT) => Ok(()),
        // a full btrfs, or one at its quota, deletes but renames nothing
        Err(_) => remove_tree_until(home, part, stop),
    }
}

/// Removes from `home` what a removal that was ended half way has left.
pub(super) fn remove_rest(home: &Dir, stop: &dyn Fn() -> bool) -> rustix::io::Result<()> {
    PARTS.iter().try_for_each(|part| remove_tree_until(home, &gone(part), stop))
}

/// Removes `trash/N` when nothing that was displaced is left in it.
pub(super) fn drop_empty(trash: &Dir, seq: u64) {
    let name = seq.to_string();
    let is_missing = |home: &Dir, name: &[u8]| matches!(home.stat(name), Err(Errno::NOENT));
    if let Ok(home) = trash.open_child(name.as_bytes())
        && PARTS.iter().all(|part| is_missing(&home, part) && is_missing(&home, &gone(part)))
    {
        let _ = home.unlink(AT);
        // fails, as it should, where something else is in it
        let _ = trash.rmdir(name.as_bytes());
    }
}

/// Moves a directory into the trash as generation `seq`, or as the next one that is free. Gives where it is now.
fn put_away(control: &Control, from: &Dir, name: &[u8], mut seq: u64) -> Result<Dir> {
    loop {
        let place = generation(control, seq)?;
        match from.rename(name, &place, TREE) {
            Err(Errno::EXIST | Errno::NOTEMPTY) => seq += 1,
            done => {
                return done.map(|()| place).context(|| format!("fill the trash of {}", control.shown()));
            }
        }
    }
}

/// Takes drift out of the staging directory, so that it outlives the generation.
pub(crate) fn set_aside<'p>(
    control: &Control,
    stage: &Dir,
    seq: u64,
    drift: impl Iterator<Item = &'p TreePath>,
) -> Result<()> {
    let mut drift = drift.peekable();
    if drift.peek().is_none() {
        return Ok(());
    }
    let home = generation(control, seq)?;
    let cannot = |path: &TreePath| format!("keep the unexpected {path} in the trash");
    let place = home.ensure_dir(DRIFT, 0o700).context(|| cannot(&TreePath::root()))?;
    for path in drift {
        let (parent, name) = path.split();
        let Ok(parent_path) = TreePath::new(parent) else {
            continue;
        };
        let from = match stage.open(&parent_path) {
            Ok(from) => from,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(e) => return Err(e).context(|| cannot(path)),
        };
        if matches!(from.stat(name), Err(Errno::NOENT)) {
            // it was moved, or did not have to go
            continue;
        }
        let mut to = place.open(&TreePath::root()).context(|| cannot(path))?;
        for part in parent_path.components() {
            to = to.ensure_dir(part, 0o700).context(|| cannot(path))?;
        }
        let mut kept = name.to_vec();
        for copy in 1.. {
            match super::ops::rename_new(&from, name, &to, &kept) {
                // there already, from an earlier attempt at this very commit
                Err(Errno::EXIST) => {
                    kept.truncate(240);
                    kept.extend_from_slice(format!("~{copy}").as_bytes());
                }
                Ok(()) | Err(Errno::NOENT) => break,
                Err(e) => return Err(e).context(|| cannot(path)),
            }
        }
    }
    // fails, as it should, where something is in it
    let _ = home.rmdir(DRIFT);
    Ok(())
}

/// Makes what is left in `home`/`name`, what a commit displaced, its generation. Gives `trash/N`, which is not synced.
pub(crate) fn keep(control: &Control, home: &Dir, name: &[u8], seq: u64) -> Result<Dir> {
    put_away(control, home, name, seq)
}

/// Puts a whole replaced tree into the trash.
pub(crate) fn keep_tree(control: &Control, parent: &Dir, name: &[u8], seq: u64) -> Result<()> {
    let place = put_away(control, parent, name, seq)?;
    place.sync().context(|| format!("fill the trash of {}", control.shown()))
}

/// Moves the generations of a replaced tree over.
pub(crate) fn take_over(control: &Control, old_control: &Dir) -> Result<()> {
    let cannot = || format!("take over the trash of {}", control.shown());
    let old = match old_control.open_child(TRASH) {
        Ok(old) => old,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e).context(cannot),
    };
    let trash = control.dir.ensure_dir(TRASH, 0o700).context(cannot)?;
    for seq in numbers(&old).context(cannot)? {
        let name = seq.to_string();
        match old.rename_with(name.as_bytes(), &trash, name.as_bytes(), RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT | Errno::EXIST) => {}
            Err(e) => return Err(e).context(cannot),
        }
    }
    Ok(())
}

pub(super) fn numbers(trash: &Dir) -> rustix::io::Result<Vec<u64>> {
    let mut out = Vec::new();
    trash.list(&mut |name| {
        out.extend(name.to_str().ok().and_then(|n| n.parse::<u64>().ok()));
        Ok(())
    })?;
    out.sort_unstable_by(|a, b| b.cmp(a));
    Ok(out)
}

/// Bytes in the trash of `control` (an open `.syncagent`).
///
/// # Errors
/// The operating system's.
pub(crate) fn trash_bytes(control: &Dir) -> rustix::io::Result<u64> {
    match control.open_child(TRASH) {
        Ok(trash) => bytes_in(&trash),
        Err(Errno::NOENT) => Ok(0),
        Err(e) => Err(e),
    }
}

/// What says when a commit was is not counted: it was nobody's.
fn bytes_in(trash: &Dir) -> rustix::io::Result<u64> {
    let note = |seq: u64| {
        let home = trash.open_child(seq.to_string().as_bytes());
        home.and_then(|home| home.stat(AT)).map_or(0, |stat| stat.size)
    };
    let notes: u64 = numbers(trash)?.into_iter().map(note).sum();
    Ok(tree_size(trash)?.1.saturating_sub(notes))
}
