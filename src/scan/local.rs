//! A local directory as a source: objects from its index, contents from its files.

use rustix::io::Errno;

use super::{Index, Scanned, Store};
use crate::disk::Dir;
use crate::error::{Context as _, Error, Result};
use crate::model::{Content, Digest, Entry, Node, Object, Root, Source, TreePath, Wanted};
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
}

impl Source for LocalSource<'_> {
    fn root(&self) -> Root {
        self.scanned.root.clone()
    }

    fn objects(&self, want: &[Digest]) -> Result<Vec<Object>> {
        let missing = || Error::integrity("the source's index lost a directory; run again");
        want.iter().map(|d| Object::decode(&self.index.object(d)?.ok_or_else(missing)?)).collect()
    }

    fn contents(
        &self,
        files: &[Wanted<'_>],
        take: &mut dyn FnMut(usize, Result<Content<'_>>) -> Result<()>,
    ) -> Result<()> {
        let mut at: Option<(&TreePath, rustix::io::Result<Dir>)> = None;
        for (i, file) in files.iter().enumerate() {
            if at.as_ref().is_none_or(|(dir, _)| *dir != file.dir) {
                at = Some((file.dir, self.dir.open(file.dir)));
            }
            let fd = match &at {
                Some((_, Ok(dir))) => dir.open_file(&file.entry.name),
                Some((_, Err(e))) => Err(*e),
                None => Err(Errno::NOENT),
            };
            match fd {
                Ok(fd) => take(i, Ok(Content::File(fd.as_fd())))?,
                Err(e) => take(i, gone_or(e, &file.dir.join(&file.entry.name)))?,
            }
        }
        Ok(())
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
        Ok(object.entries.into_iter().map(item).collect())
    }
}

/// A published tree as a side of a plan.
#[derive(Debug)]
pub struct Published<'a>(pub &'a Store);

impl Side for Published<'_> {
    type Handle = Digest;

    fn load(&self, dir: &Digest) -> Result<Vec<Item<Digest>>> {
        Ok(self.0.object(dir)?.entries.into_iter().map(item).collect())
    }
}

/// What an index knows, by object digest, as a side of a plan.
#[derive(Debug)]
pub struct Indexed<'a>(pub &'a Index);

impl Side for Indexed<'_> {
    type Handle = Digest;

    fn load(&self, dir: &Digest) -> Result<Vec<Item<Digest>>> {
        let missing = || Error::integrity("the source's index lost a directory; run again");
        let object = Object::decode(&self.0.object(dir)?.ok_or_else(missing)?)?;
        Ok(object.entries.into_iter().map(item).collect())
    }
}

fn item(entry: Entry) -> Item<Digest> {
    Item {
        dir: if let Node::Dir { object, .. } = entry.node { Some(object) } else { None },
        entry,
        keeps: false,
        shared: false,
        id: None,
    }
}
