//! The contents that a rollback needs: where they are, and handing them out.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::sync::OnceLock;

use rustix::io::Errno;

use super::super::engine::{Engine, Session};
use super::super::retain::{Retention, drop_kept, open_kept};
use super::super::seek::open_sought;
use super::NAMED;
use crate::apply::{Control, Displaced, content_of, seek_trashed};
use crate::disk::Dir;
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{
    Content, Digest, GenId, Node, Object, Root, Source, TreePath, Wanted, counted, counted_as, listed,
};
use crate::peer::Sought;
use crate::plan::Side as _;
use crate::scan::{Indexed, Scanned, Store};

/// Where a content is that is not among what is kept.
pub(super) enum Place {
    Trash(Displaced),
    Tree(TreePath),
}

/// The old generation as a source of a plan: its directories from the store, its contents from this host.
pub(super) struct Old<'a> {
    pub(super) store: &'a Store,
    pub(super) root: Root,
    pub(super) tree: &'a Dir,
    pub(super) control: &'a Dir,
    pub(super) keep: Option<Dir>,
    /// What mirrors sent.
    pub(super) sought: Option<Dir>,
    /// Set once it was looked for.
    pub(super) found: OnceLock<HashMap<Digest, Place>>,
}

impl Source for Old<'_> {
    fn root(&self) -> Root {
        self.root.clone()
    }

    fn objects(&self, want: &[Digest]) -> Result<Vec<Object>> {
        want.iter().map(|digest| self.store.object(digest)).collect()
    }

    fn contents(
        &self,
        files: &[Wanted<'_>],
        take: &mut dyn FnMut(usize, Result<Content<'_>>) -> Result<()>,
    ) -> Result<()> {
        for (i, file) in files.iter().enumerate() {
            let Node::File { size, digest } = &file.entry.node else { continue };
            if *size == 0 {
                take(i, Ok(Content::Stream(&mut std::io::empty())))?;
                continue;
            }
            let fd = match self.found.get().and_then(|found| found.get(digest)) {
                Some(Place::Trash(displaced)) => displaced.open(self.control),
                Some(Place::Tree(path)) => self.tree.open_file_at(path),
                None => {
                    let sought = self.sought.as_ref().and_then(|dir| open_sought(dir, digest).ok());
                    let kept = || self.keep.as_ref().and_then(|keep| open_kept(keep, digest, *size));
                    sought.or_else(kept).ok_or(Errno::NOENT)
                }
            };
            match fd {
                Ok(fd) => take(i, Ok(Content::File(fd.as_fd())))?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => take(i, Ok(Content::Vanished))?,
                Err(e) => {
                    take(i, Err(e).context(|| format!("read the kept {}", file.dir.join(&file.entry.name))))?;
                }
            }
        }
        Ok(())
    }
}

impl Engine {
    /// Where each needed content is; the inner error is what is nowhere.
    #[allow(clippy::type_complexity)]
    pub(super) fn find(
        &self,
        s: &Session,
        control: &Control,
        keep: Option<&Dir>,
        scanned: &Scanned,
        needed: HashMap<Digest, (u64, TreePath)>,
    ) -> Result<Result<HashMap<Digest, Place>, Vec<Sought>>> {
        let mut found = HashMap::new();
        let mut missing: HashMap<Digest, (u64, TreePath)> = HashMap::new();
        for (digest, (size, path)) in needed {
            if let Some(keep) = keep
                && let Some(fd) = open_kept(keep, &digest, size)
            {
                let is_right = content_of(&fd, size, &self.tree.stop) == Some(digest);
                if self.stopped() {
                    return Err(Error::new(Class::Interrupted, "interrupted"));
                }
                if is_right {
                    continue;
                }
                tracing::warn!(
                    tree = self.name(),
                    "the kept content of {path} is damaged, and forgotten now"
                );
                drop_kept(keep, &digest);
                self.tree.retain.dropped();
            }
            missing.insert(digest, (size, path));
        }
        if !missing.is_empty() {
            self.find_in_tree(s, scanned, &mut missing, &mut found)?;
        }
        seek_trashed(&control.dir, &mut missing, &self.tree.stop, &mut || (), &mut |digest, displaced| {
            found.insert(digest, Place::Trash(displaced));
            true
        })?;
        let gone = missing.into_iter().map(|(digest, (size, path))| Sought { digest, size, path });
        let mut gone: Vec<Sought> = gone.collect();
        gone.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(if gone.is_empty() { Ok(found) } else { Err(gone) })
    }

    /// Looks for contents anywhere in the tree as it was scanned.
    fn find_in_tree(
        &self,
        s: &Session,
        scanned: &Scanned,
        missing: &mut HashMap<Digest, (u64, TreePath)>,
        found: &mut HashMap<Digest, Place>,
    ) -> Result<()> {
        let index = Indexed(&s.index);
        let mut visited = HashSet::new();
        let mut stack = vec![(scanned.root.object, TreePath::root())];
        while let Some((object, path)) = stack.pop() {
            if missing.is_empty() || !visited.insert(object) {
                continue;
            }
            for item in index.load(&object)? {
                let path = path.join(&item.entry.name);
                match (&item.entry.node, item.dir) {
                    (_, Some(dir)) => stack.push((dir, path)),
                    (Node::File { digest, .. }, None) if missing.remove(digest).is_some() => {
                        found.insert(*digest, Place::Tree(path));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

pub(in crate::agent::source) fn gone_text(
    name: &str,
    to: GenId,
    gone: &[TreePath],
    retention: &Retention,
    mirrors: &str,
) -> String {
    let named = listed(gone.iter(), NAMED, ", ");
    let why = match retention {
        Retention { generations: 0, .. } => "keep = 0: nothing is kept for rollbacks".to_owned(),
        r => format!(
            "{} kept before the current one within {} (keep, keep-bytes), and uses {}",
            counted_as(r.generations, "generation", ("is", "are")),
            counted(r.limit, "byte"),
            counted(r.bytes, "byte")
        ),
    };
    format!(
        "{name} cannot be rolled back to {to}: the content of {} is gone: {named} ({why}). Nothing was changed; \
         mirrors: {mirrors}",
        counted(gone.len(), "file")
    )
}
