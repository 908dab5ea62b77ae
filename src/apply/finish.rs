//! The end of a commit: what it displaced is put away.
//!
//! A crash must not let the renames be carried out again once they are all done: what somebody wrote since
//! would be taken for something that has yet to go. What tells the two apart must change in one step and
//! before anything is taken out of the staging directory, by which a record that was carried out is
//! recognised. So that directory gets another name first:
//!
//! | there | a start |
//! |---|---|
//! | `stage` | carries the journal out, record by record |
//! | `stage.done` | touches nothing in the tree; drift to the trash, the rest to the trash or away |
//! | neither | notes the commit as done, removes the journal |

use std::collections::BTreeSet;

use rustix::io::Errno;

use super::commit::{Cached, Committed, Run};
use super::control::{DONE_STAGE, OLD_STAGE, STAGE};
use super::journal::{Journal, Record, SetAttrs};
use super::trash;
use super::unplaced::Unplaced;
use crate::disk::{FsClass, now, remove_tree, sync_dirs};
use crate::error::{Context as _, Result};
use crate::model::{Kind, TreePath};
use crate::scan::{Index, changed_within};

fn parent(path: &TreePath) -> TreePath {
    path.parent().unwrap_or_default()
}

impl Run<'_> {
    /// `few`: syncs only what the records changed. On FUSE that is synced in any case: `syncfs` may not reach the store.
    pub(super) fn finish(
        mut self,
        index: Option<&Index>,
        seq: u64,
        keep: bool,
        few: bool,
    ) -> Result<Committed> {
        let control = self.control;
        let at = now();
        let by_names = (few || control.class == FsClass::Fuse) && self.sync_changed().is_ok();
        if few && by_names { Ok(()) } else { control.dir.sync_fs() }
            .context(|| format!("sync the file system of {}", control.shown()))?;
        self.renames_are_done(seq)?;
        let (displaced, unstage) = self.after(index)?;
        let drift: Vec<TreePath> = self.drift.iter().cloned().collect();
        if let Some(stage) = &self.stage {
            let all_at_once = drift.is_empty() && self.aside.is_empty() && unstage.is_empty();
            if !(displaced && keep && all_at_once) {
                // single entries are taken out of it from here on
                self.home.sync().context(|| format!("sync the staging path of {}", control.shown()))?;
            }
            for path in unstage {
                let (dir, name) = path.split();
                TreePath::new(dir)
                    .map_err(|_| Errno::INVAL)
                    .and_then(|dir| remove_tree(&stage.open(&dir)?, name))
                    .context(|| format!("unstage {path}"))?;
            }
            trash::set_aside(control, stage, seq, self.drift.union(&self.aside))?;
            let kept =
                (displaced && keep).then(|| trash::keep(control, &self.home, DONE_STAGE, seq)).transpose()?;
            let changed: Vec<_> =
                kept.iter().chain([&control.dir]).map(|dir| (dir, TreePath::root())).collect();
            sync_dirs(&changed).context(|| format!("sync {}/.syncagent", control.shown()))?;
        }
        for name in [DONE_STAGE, OLD_STAGE] {
            remove_tree(&self.home, name)
                .context(|| format!("empty the staging directory of {}", control.shown()))?;
        }
        if let Some(mut marker) = control.marker()? {
            marker.seq = seq;
            // durable with the journal's removal; whichever of them is alone after a power cut says that all is over
            control.put_marker(&marker)?;
        }
        Journal::remove(&control.dir)?;
        if !self.errors.is_empty() {
            // the caller has them now, and must not lose them
            if let Err(e) = Unplaced::remove(control) {
                tracing::warn!("{e}");
            }
        }
        self.errors.sort();
        Ok(Committed { drift, errors: self.errors, failed: self.failed, known: self.known, at })
    }

    /// From here on no start does anything in the tree any more: the staging directory gets another name, in
    /// one step. Before that the errors are written down, which nothing could find out again.
    fn renames_are_done(&mut self, seq: u64) -> Result<()> {
        let control = self.control;
        if self.renamed || self.stage.is_none() {
            return Ok(());
        }
        if !self.errors.is_empty() {
            let unplaced = Unplaced::new(seq, &self.errors, &self.failed);
            if let Err(e) = unplaced.write(control) {
                // on a full disk only what follows gives space back
                tracing::warn!("{e}: after a crash now it would not be known what did not come into place");
            }
        } else {
            // an earlier commit's
            Unplaced::remove(control)?;
        }
        let cannot = || format!("finish the staging directory of {}", control.shown());
        // an earlier commit's, the removal of which a power cut undid
        remove_tree(&self.home, DONE_STAGE).context(cannot)?;
        self.home.rename(STAGE, &self.home, DONE_STAGE).context(cannot)
    }

    /// Makes the directories durable in which names changed, on both sides, and the attributes that were set.
    fn sync_changed(&mut self) -> rustix::io::Result<()> {
        let mut parents = BTreeSet::new();
        let mut files = Vec::new();
        let read = self.journal.each(&mut |record| {
            match record {
                Record::Put { path, .. } | Record::Remove { path, .. } => drop(parents.insert(parent(&path))),
                Record::Move { from, path, id, attrs, .. } => {
                    parents.insert(parent(&from));
                    parents.insert(parent(&path));
                    match id.kind {
                        _ if attrs == SetAttrs::default() => {}
                        Kind::Dir => drop(parents.insert(path)),
                        Kind::File | Kind::Link => files.push(path),
                    }
                }
                Record::Attrs { path, id: Some(_), .. } => files.push(path),
                Record::Attrs { path, .. } | Record::Open { path } => drop(parents.insert(path)),
                Record::Begin { .. } | Record::End { .. } | Record::Aside { .. } => {}
            }
            Ok(())
        });
        if read.is_err() {
            return self.control.dir.sync_fs();
        }
        for path in files {
            let (dir, name) = path.split();
            let dir = TreePath::new(dir).map_err(|_| Errno::INVAL)?;
            // a link cannot be opened, and needs the file system's sync
            rustix::fs::fsync(self.control.root.open(&dir)?.open_file(name)?)?;
        }
        let parents: Vec<_> = parents.into_iter().map(|path| (&self.control.root, path)).collect();
        // what was displaced came into the staging directory in the same renames
        sync_dirs(&parents)
    }

    /// Looks at everything that was displaced; says whether there is anything but drift, and what is still staged because
    /// it did not get into place.
    fn after(&mut self, index: Option<&Index>) -> Result<(bool, Vec<TreePath>)> {
        let mut unstage = Vec::new();
        let Some(stage) = &self.stage else {
            return Ok((false, unstage));
        };
        let mut there = Cached::new(stage);
        let drift = &mut self.drift;
        let (failed, aside) = (&self.failed, &self.aside);
        let mut any = false;
        let mut dirs = Vec::new();
        self.journal.each(&mut |record| {
            let (path, old, row, put) = match record {
                Record::Put { path, old, row, new, .. } => (path, old, row, Some(new)),
                Record::Remove { path, old, row } => (path, Some(old), row, None),
                Record::Move { path, .. } => (path, None, 0, None),
                _ => return Ok(()),
            };
            let (parent, name) = path.split();
            let stat = match there.at(parent).and_then(|dir| dir.stat(name)) {
                Ok(stat) => stat,
                Err(_) => {
                    // nothing was displaced
                    drift.remove(&path);
                    return Ok(());
                }
            };
            if failed.contains(&path) && put.is_some_and(|new| new.is(&stat)) {
                // never got into place
                drift.remove(&path);
                unstage.push(path);
                return Ok(());
            }
            match old {
                Some(old) if old.is(&stat) => {
                    any |= !drift.contains(&path) && !aside.contains(&path);
                    if old.kind == Kind::Dir && row != 0 {
                        dirs.push((path, row));
                    }
                }
                _ => drop(drift.insert(path)),
            }
            Ok(())
        })?;
        if let Some(index) = index {
            for (path, row) in dirs {
                let changed = changed_within(stage, &path, row, index)?;
                drift.extend(changed);
            }
        }
        Ok((any, unstage))
    }
}
