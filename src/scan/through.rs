//! Passing through a directory on the way to those below it that must be looked at: its entries are taken from
//! the index, so that a change deep in a wide tree costs no listing of the directories above it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::spec::owner_of;
use super::state::{Dirent, Job, Kid, State};
use super::walk::Scan;
use crate::disk::{Dir, FileKind, FsClass, Stat};
use crate::error::Result;
use crate::error::lock;
use crate::model::Node;

impl Scan<'_> {
    /// The jobs for the subdirectories to look at, the directory's state being taken over from the index. `None`:
    /// it must be listed, because that is asked for or the index does not fit what is there.
    pub(super) fn pass_through(
        &self,
        dir: &Arc<Dirent>,
        handle: &Dir,
        stat: &Stat,
    ) -> Result<Option<Vec<Job>>> {
        let tree = &self.trees[dir.tree];
        let (Some(only), Some(old)) = (tree.spec.only, &dir.old) else { return Ok(None) };
        let fits = tree.same_view && !tree.spec.rehash && !old.racy && old.ino == stat.id.ino;
        let distrust = dir.distrust.load(Ordering::Relaxed) || tree.class == FsClass::Fuse;
        if !fits || distrust || only.lists(&dir.path) {
            return Ok(None);
        }
        let Some((object, ids)) = tree.spec.index.body(old.id)? else { return Ok(None) };
        let mut state = State { ino: old.ino, stat: old.stat, keeps: old.keeps, ids, ..State::default() };
        let mut jobs = Vec::new();
        for (mut entry, id) in object.entries.into_iter().zip(&state.ids) {
            match entry.node {
                Node::Dir { object, content } => {
                    let path = dir.path.join(&entry.name);
                    let mut kid = Kid::Done { object, content, keeps: id.keeps, row: id.row };
                    if only.has(&path) {
                        // its own attributes are this directory's to describe
                        let Ok(now) = handle.stat(&*entry.name) else { return Ok(None) };
                        let row = tree.spec.index.row(id.row)?.filter(|row| row.parent == dir.row);
                        let Some(row) = row.filter(|row| now.kind == FileKind::Dir && row.ino == now.id.ino)
                        else {
                            return Ok(None);
                        };
                        (entry.mode, entry.mtime) = (now.mode, now.mtime);
                        entry.owner = owner_of(tree.spec, &now);
                        kid = Kid::Open;
                        let kid = Dirent {
                            tree: dir.tree,
                            path,
                            parent: Some((dir.clone(), state.kids.len())),
                            row: row.id,
                            old: Some(row),
                            open: AtomicUsize::new(1),
                            mount: AtomicU64::new(0),
                            distrust: AtomicBool::new(false),
                            state: Default::default(),
                        };
                        jobs.push(Job::Dir(Arc::new(kid)));
                    }
                    state.kids.push((entry.name.clone(), id.id.ino, kid));
                }
                Node::Unreadable { .. } => return Ok(None),
                _ => {}
            }
            state.entries.push(entry);
        }
        *lock(&dir.state) = state;
        Ok(Some(jobs))
    }
}
