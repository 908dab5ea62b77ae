//! A local directory as a source: objects from its index, contents from its files.

use std::sync::atomic::AtomicBool;

use rustix::io::Errno;

use super::hash::hash_stable;
use super::{Index, Scanned};
use crate::disk::Dir;
use crate::error::{Context as _, Error, Result};
use crate::model::{Content, Digest, Entry, Node, Object, Root, Source, TreePath};
use crate::plan::{Item, Side};
use std::os::fd::AsFd as _;

/// A scanned local directory.
#[derive(Debug)]
pub struct LocalSource<'a> {
    /// The directory.
    pub dir: &'a Dir,
    /// Its index, as the scan left it.
    pub index: &'a Index,
    /// What the scan found.
    pub scanned: &'a Scanned,
    /// Set to end.
    pub cancel: &'a AtomicBool,
}

impl Source for LocalSource<'_> {
    fn root(&self) -> Root {
        self.scanned.root.clone()
    }

    fn objects(&self, want: &[Digest]) -> Result<Vec<Object>> {
        let missing = || Error::integrity("the source's index lost a directory; run again");
        want.iter().map(|d| self.index.object(d)?.ok_or_else(missing)).collect()
    }

    fn contents(
        &self,
        dir: &TreePath,
        files: &[&Entry],
        take: &mut dyn FnMut(usize, Result<Content<'_>>) -> Result<()>,
    ) -> Result<()> {
        let handle = match self.dir.open(dir) {
            Ok(handle) => handle,
            Err(e) => {
                for i in 0..files.len() {
                    take(i, gone_or(e, dir))?;
                }
                return Ok(());
            }
        };
        for (i, entry) in files.iter().enumerate() {
            match handle.open_file(&entry.name) {
                Ok(fd) => take(i, Ok(Content::File(fd.as_fd())))?,
                Err(e) => take(i, gone_or(e, &dir.join(&entry.name)))?,
            }
        }
        Ok(())
    }

    fn current(&self, dir: &TreePath, entry: &Entry) -> Result<Option<Entry>> {
        let path = dir.join(&entry.name);
        let handle = match self.dir.open(dir) {
            Ok(handle) => handle,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(e) => return Err(e).context(|| format!("open {dir}")),
        };
        Ok(hash_stable(&handle, &path, &entry.name, self.cancel)?.map(|(stat, digest)| Entry {
            mode: stat.mode,
            mtime: stat.mtime,
            node: Node::File { size: stat.size, digest },
            ..entry.clone()
        }))
    }
}

/// What vanished, or became something else, is not an error: the next run sees what it is now.
fn gone_or<'a>(e: Errno, path: &TreePath) -> Result<Content<'a>> {
    match e {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Ok(Content::Vanished),
        e => Err(e).context(|| format!("read {path}")),
    }
}

/// A source read as the new side of a plan: directories by object digest.
pub struct Objects<'a>(pub &'a dyn Source);

impl Side for Objects<'_> {
    type Handle = Digest;

    fn load(&self, dir: &Digest) -> Result<Vec<Item<Digest>>> {
        let object = self.0.objects(std::slice::from_ref(dir))?.pop().unwrap_or_default();
        let item = |entry: Entry| Item {
            dir: if let Node::Dir { object, .. } = entry.node { Some(object) } else { None },
            entry,
            keeps: false,
            shared: false,
            id: None,
        };
        Ok(object.entries.into_iter().map(item).collect())
    }
}
