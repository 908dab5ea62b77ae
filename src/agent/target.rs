//! A destination: made when it is missing, opened, and locked for as long as it is used.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::apply::{Committed, Control, Keep, LOCK, Late, recover, recover_swap};
use crate::disk::{Dir, Lock, Locked, ensure_dir_all};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{TreePath, escaped};
use crate::plan::CONTROL_DIR;
use crate::scan::Index;

/// More errors of a finished commit are only counted in the log.
const MAX_LOGGED: usize = 20;

/// The destination, locked.
pub(super) struct Target {
    /// `None` in a dry run on a directory that was never managed.
    pub(super) control: Option<Control>,
    /// `None` in a dry run without a destination.
    pub(super) root: Option<Dir>,
    pub(super) lock: Option<Lock>,
}

impl Target {
    pub(super) fn open(dst: &Path, dry_run: bool, lock_wait: Duration, cancel: &AtomicBool) -> Result<Self> {
        let shown = escaped(dst);
        let exists = |path: &Path| match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            found => found.map(|_| true).context(|| format!("look at {}", escaped(path))),
        };
        let there = exists(dst)?;
        let managed = there && exists(&dst.join(std::str::from_utf8(CONTROL_DIR).unwrap_or_default()))?;
        if dry_run && !managed {
            let root = there.then(|| Dir::open_root(dst)).transpose().context(|| format!("open {shown}"))?;
            return Ok(Self { control: None, root, lock: None });
        }
        if !there {
            ensure_dir_all(dst, 0o755).context(|| format!("make the destination {shown}"))?;
        }
        let (control, lock) = Self::lock(dst, dry_run, lock_wait, cancel)?;
        let root = control.root.open(&TreePath::root()).context(|| format!("open {shown}"))?;
        Ok(Self { control: Some(control), root: Some(root), lock })
    }

    /// Opens and locks the tree. While we waited, a swap may have put another one in its place, or a run that
    /// was refused may have taken its control directory away: then again.
    fn lock(
        dst: &Path,
        dry_run: bool,
        lock_wait: Duration,
        cancel: &AtomicBool,
    ) -> Result<(Control, Option<Lock>)> {
        let shown = escaped(dst);
        let name = format!("{shown}/.syncagent/lock");
        loop {
            let control = Control::open(dst)?;
            let lock = match Lock::acquire(&control.dir, LOCK, lock_wait, &name, cancel) {
                Ok(Locked::Yes(lock)) => lock,
                Ok(Locked::No(holder)) => return Err(busy(&shown, holder)),
                // a dry run also works where nothing can be written
                Err(e) if dry_run && e.errno() == Some(rustix::io::Errno::ROFS) => {
                    return Ok((control, None));
                }
                Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) && ino_changed(&control, dst) => {
                    continue;
                }
                Err(e) => return Err(e),
            };
            let now = Control::open(dst)?;
            if ino(&now.root) == ino(&control.root) && ino(&now.dir) == ino(&control.dir) {
                return Ok((control, Some(lock)));
            }
        }
    }
}

fn ino(dir: &Dir) -> Option<u64> {
    dir.stat_self().map(|s| s.id.ino).ok()
}

/// Whether the tree's control directory is another one by now, or gone.
fn ino_changed(control: &Control, dst: &Path) -> bool {
    Control::open(dst).is_ok_and(|now| ino(&now.dir) != ino(&control.dir))
}

fn busy(shown: &str, holder: Option<crate::disk::Holder>) -> Error {
    let by = holder.map_or_else(
        || "by a process that left no record".to_owned(),
        |h| format!("by process {} on {} since {} ({})", h.pid, h.host, h.since, h.command),
    );
    Error::new(Class::Busy, format!("{shown} is locked {by}"))
}

/// Finishes what a crash left in a tree that follows another: a swap, a commit. `Some`: there was something.
/// Its `errors` are what of it did not come into place; they are logged.
pub(super) fn recover_all(control: &Control, index: &Index, keep: Keep) -> Result<Option<Committed>> {
    finish(control, index, keep, Late::Displaced)
}

/// The same for a source's own tree: what somebody wrote there since the crash stays.
pub(super) fn recover_source(control: &Control, index: &Index, keep: Keep) -> Result<Option<Committed>> {
    finish(control, index, keep, Late::Stays)
}

fn finish(control: &Control, index: &Index, keep: Keep, late: Late) -> Result<Option<Committed>> {
    let keep = keep.generations > 0;
    let swapped = recover_swap(control, index, keep)?;
    let seq = control.marker()?.map_or(0, |m| m.seq);
    let done = recover(control, Some(index), seq, keep, late)?;
    for e in done.iter().flat_map(|done| &done.errors).take(MAX_LOGGED) {
        tracing::warn!("{}: the commit that was interrupted: {}: {}", control.shown(), e.path, e.error);
    }
    if let Some(done) = done.as_ref().filter(|done| done.errors.len() > MAX_LOGGED) {
        tracing::warn!("{}: and {} more paths", control.shown(), done.errors.len() - MAX_LOGGED);
    }
    Ok(done.or_else(|| swapped.then(Committed::default)))
}
