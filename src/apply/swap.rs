//! `activate = swap`: a complete new tree is built beside the old one and the two exchange their names in
//! one step, so that at every instant a reader sees the old or the new tree.
//!
//! The new tree carries the lock file as a second name of the same inode, so the lock is held throughout.
//! Both trees carry a record with the inode of the new one. After a crash that alone decides: the new tree
//! still beside is removed, the old tree beside becomes trash, and without a record nothing is ours.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::commit::wait_for_clock;
use super::control::{Control, LOCK, Marker, OLD_STAGE, Pin, SwapRecord};
use super::stage::Staged;
use super::trash;
use crate::disk::{Dir, Stat, is_mount_root, remove_tree};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{TreePath, escape, escaped};
use crate::plan::CONTROL_DIR;
use crate::scan::{Index, ROOT_ID, changed_within};

/// A new tree being built beside the old one.
#[derive(Debug)]
pub struct Swap {
    parent: Dir,
    record: SwapRecord,
    name: Vec<u8>,
    beside: Vec<u8>,
    /// The new tree's root.
    pub next: Dir,
}

/// Says why a tree cannot be swapped.
///
/// # Errors
/// [`Class::Refused`].
pub fn check_swap(path: &Path, keeps: bool) -> Result<()> {
    let refuse = |why: &str| {
        let what = format!("cannot swap {}: {why}; use --activate in-place", escaped(path));
        Err(Error::new(Class::Refused, what))
    };
    if is_mount_root(path) {
        return refuse("a file system is mounted on it, and a mount point cannot be renamed");
    }
    if keeps {
        return refuse("it holds excluded, special or unreadable content, which a new tree would not have");
    }
    Ok(())
}

fn beside(path: &Path) -> Result<(Dir, Vec<u8>, Vec<u8>)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new(Class::Config, "the root directory cannot be swapped"));
    };
    let parent_dir = Dir::open_root(parent).context(|| format!("open {}", parent.display()))?;
    let name = name.as_bytes().to_vec();
    let mut other = b".syncagent-next.".to_vec();
    other.extend_from_slice(&name);
    if other.len() > 255 {
        other = format!(".syncagent-next.{}", blake3::hash(&name).to_hex()).into_bytes();
    }
    Ok((parent_dir, name, other))
}

impl Swap {
    /// Makes the directory for the new tree, with the lock in it.
    ///
    /// # Errors
    /// The tree's parent cannot be written to, or has something by that name that is not ours.
    pub fn prepare(control: &Control) -> Result<Self> {
        let (parent, name, beside) = beside(&control.path)?;
        let cannot = || format!("make {} beside {}", escape(&beside), control.shown());
        // noted first, without an inode yet: an empty directory must not stay for ever
        control.set_swap_record(&SwapRecord::default())?;
        match parent.mkdir(&beside, 0o700) {
            // ours, from a crash before it was recorded, when it is empty
            Err(Errno::EXIST) => parent.rmdir(&beside).and_then(|()| parent.mkdir(&beside, 0o700)),
            made => made,
        }
        .context(cannot)?;
        let next = parent.open_child(&beside).context(cannot)?;
        let next_ino = next.stat_self().context(cannot)?.id.ino;
        let record = SwapRecord { next_ino, ..SwapRecord::default() };
        control.set_swap_record(&record)?;
        let own = next.ensure_dir(CONTROL_DIR, 0o700).context(cannot)?;
        control.dir.link(LOCK.as_bytes(), &own, LOCK.as_bytes()).context(cannot)?;
        Ok(Self { parent, record, name, beside, next })
    }

    /// Takes the unfinished new tree away.
    pub fn withdraw(self, control: &Control) {
        if remove_tree(&self.parent, &self.beside).is_ok() {
            // else the next start does it
            let _ = control.drop_swap_record();
        }
    }

    /// Exchanges the trees. Gives the new tree's control directory and the paths that somebody changed in
    /// the old one since it was scanned.
    ///
    /// # Errors
    /// Before the exchange: the old tree is in place. After: the next start finishes.
    pub fn exchange(
        self,
        control: &Control,
        staged: &Staged,
        old_index: &Index,
        marker: &Marker,
        pin: Option<&Pin>,
        keep: bool,
    ) -> Result<(Control, Vec<TreePath>)> {
        let cannot = || format!("exchange {} for its new tree", control.shown());
        let next_path = control.path.with_file_name(std::ffi::OsStr::from_bytes(&self.beside));
        let next = Control::open(&next_path)?;
        if let Some(pin) = pin {
            next.set_pin(pin)?;
        }
        next.set_marker(marker)?;
        next.set_swap_record(&SwapRecord { aside: staged.aside.clone(), ..self.record.clone() })?;
        self.next.sync_fs().context(cannot)?;
        if let Some(at) = staged.at {
            wait_for_clock(at);
        }
        self.parent
            .rename_with(&self.beside, &self.parent, &self.name, RenameFlags::EXCHANGE)
            .or_exists(&self)?;
        self.parent.sync_fs().context(cannot)?;
        let new = Control::open(&control.path)?;
        let drift = changed_within(&control.root, &TreePath::root(), ROOT_ID, old_index)?;
        let aside: BTreeSet<&TreePath> = drift.iter().chain(&staged.aside).collect();
        trash::set_aside(&new, &control.root, marker.seq, aside.into_iter())?;
        retire(&new, &self.parent, &self.beside, keep)?;
        Ok((new, drift))
    }
}

trait OrExists {
    fn or_exists(self, swap: &Swap) -> Result<()>;
}

impl OrExists for rustix::io::Result<()> {
    fn or_exists(self, swap: &Swap) -> Result<()> {
        match self {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let what = format!(
                    "the file system of {} cannot exchange two directories; use --activate in-place",
                    escape(&swap.name)
                );
                Err(Error::new(Class::Refused, what))
            }
            other => other.context(|| format!("exchange {} for its new tree", escape(&swap.name))),
        }
    }
}

/// Makes the old tree the newest trash of the new one.
fn retire(new: &Control, parent: &Dir, beside: &[u8], keep: bool) -> Result<()> {
    let cannot = || format!("put the replaced tree of {} into its trash", new.shown());
    let old = parent.open_child(beside).context(cannot)?;
    if let Ok(old_control) = old.open_child(CONTROL_DIR) {
        trash::take_over(new, &old_control)?;
    }
    let seq = new.marker()?.map_or(0, |m| m.seq);
    // in one step: what is kept has no control directory of its own
    remove_tree(&new.dir, OLD_STAGE).context(cannot)?;
    match old.rename(CONTROL_DIR, &new.dir, OLD_STAGE) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e).context(cannot),
    }
    if keep {
        trash::keep_tree(new, parent, beside, seq)?;
    } else {
        remove_tree(parent, beside).context(cannot)?;
    }
    remove_tree(&new.dir, OLD_STAGE).context(cannot)?;
    new.drop_swap_record()
}

/// Finishes or takes back what a crash left of a swap; says whether there was something.
///
/// # Errors
/// The operating system's.
pub fn recover_swap(control: &Control, index: &Index, keep: bool) -> Result<bool> {
    let Some(record) = control.swap_record()? else { return Ok(false) };
    let (parent, _, beside) = beside(&control.path)?;
    let cannot = || format!("finish an interrupted swap of {}", control.shown());
    let ino = |stat: rustix::io::Result<Stat>| stat.map(|s| s.id.ino).ok();
    let other = ino(parent.stat(&*beside));
    if record.next_ino == 0 {
        // made, or not, but nothing was put into it; what is not empty is not ours
        let _ = parent.rmdir(&beside);
    } else if other == Some(record.next_ino) {
        remove_tree(&parent, &beside).context(cannot)?;
    } else if other.is_some() && ino(control.root.stat_self()) == Some(record.next_ino) {
        // what somebody wrote into the old tree before the exchange is drift, also after a crash
        let known = index.row(ROOT_ID)?.is_some();
        if known {
            let old = parent.open_child(&beside).context(cannot)?;
            let seq = control.marker()?.map_or(0, |m| m.seq);
            let drift = changed_within(&old, &TreePath::root(), ROOT_ID, index)?;
            let aside: BTreeSet<&TreePath> = drift.iter().chain(&record.aside).collect();
            trash::set_aside(control, &old, seq, aside.into_iter())?;
        }
        retire(control, &parent, &beside, keep || !known)?;
    }
    control.drop_swap_record()?;
    Ok(true)
}
