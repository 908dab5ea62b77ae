//! Files that changed are read, and asked whether they are finished.

use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;

use super::hash::hash_stable;
use super::spec::{Gate, file_mode};
use super::state::{Dirent, ToHash};
use super::walk::Scan;
use crate::disk::{Dir, FsClass};
use crate::error::{Class, Error, PathError, Result, lock};
use crate::model::{Kind, Node};

impl Scan<'_> {
    pub(super) fn hash(&self, dir: &Dirent, handle: &Dir, files: &[ToHash]) -> Result<()> {
        let tree = &self.trees[dir.tree];
        for ToHash { at, stat } in files {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::new(Class::Interrupted, "interrupted"));
            }
            let name = lock(&dir.state).entries[*at].name.clone();
            let path = dir.path.join(&name);
            let hashed = hash_stable(handle, &path, &name, self.cancel);
            tree.spec.counters.hashed.fetch_add(1, Ordering::Relaxed);
            tree.spec.counters.hashed_bytes.fetch_add(stat.size, Ordering::Relaxed);
            let unfinished = match (&hashed, tree.spec.gate) {
                (Ok(Some((fd, now, _))), Some(gate)) => gate.unfinished(&path, fd.as_fd(), now),
                (Err(e), Some(_)) if e.class == Class::Transient => {
                    Some("it changes while it is read".into())
                }
                _ => None,
            };
            let as_it_is = tree.spec.gate.is_some_and(Gate::only_marks);
            let marked = as_it_is && unfinished.is_some();
            let unfinished = unfinished.filter(|_| !as_it_is);
            let before = unfinished.as_ref().and_then(|_| tree.spec.gate?.published(&path));
            let mut state = lock(&dir.state);
            if let Some(why) = unfinished {
                // looked at again next time
                state.racy = true;
                state.ids[*at].racy = true;
                match before.filter(|entry| entry.kind() == Kind::File) {
                    Some(before) => state.entries[*at] = before,
                    None => state.gone.push(*at),
                }
                lock(&tree.held).push((path, why));
                continue;
            }
            match hashed {
                Ok(Some((_, now, digest))) => {
                    let entry = &mut state.entries[*at];
                    entry.node = Node::File { size: now.size, digest };
                    entry.mode = file_mode(tree.spec, &now);
                    entry.mtime = now.mtime;
                    if marked {
                        state.ids[*at].racy = true;
                        state.racy = true;
                    }
                    if !now.same_state(stat) && tree.class != FsClass::Fuse {
                        // it changed after the listing: the listing's digest is not this state's
                        state.ids[*at].id = now.id;
                        state.ids[*at].racy = true;
                        state.racy = true;
                    }
                }
                Ok(None) => state.gone.push(*at),
                Err(e) if e.class == Class::Interrupted => return Err(e),
                Err(e) => {
                    // looked at again next time, and named again
                    state.ids[*at].racy = true;
                    state.racy = true;
                    state.entries[*at].node = Node::Unreadable { kind: Kind::File };
                    state.keeps = true;
                    let error = e.to_string();
                    lock(&tree.errors).push(PathError { path, error });
                }
            }
        }
        Ok(())
    }
}
