//! One look at one entry: what the index knows of it counts as long as nothing about it changed.

use rustix::io::Errno;

use super::index::listed_name;
use super::list::Listed;
use super::row::EntryId;
use super::spec::{file_mode, owner_of};
use super::state::Tree;
use crate::disk::{Dir, FileKind, Stat};
use crate::error::Result;
use crate::model::{Digest, Entry, Kind, Mtime, Name, Node, Owner, TreePath};

/// One look at one entry.
pub(super) struct Seen<'a> {
    pub(super) tree: &'a Tree<'a>,
    pub(super) handle: &'a Dir,
    pub(super) dir: &'a TreePath,
    pub(super) looked: Mtime,
    pub(super) long_ago: bool,
    pub(super) to_hash: Option<Stat>,
}

impl Seen<'_> {
    pub(super) fn entry(
        &mut self,
        name: &[u8],
        listed: &Listed,
        before: Option<(Entry, EntryId)>,
    ) -> Result<Option<(Entry, EntryId)>> {
        let name = listed_name(name)?;
        let stat = match &listed.stat {
            Ok(stat) => stat,
            Err(e) => {
                self.tree.error(self.dir.join(&name), "stat", *e);
                let node = Node::Unreadable { kind: Kind::File };
                let entry = Entry { name, mode: 0, mtime: Mtime::default(), owner: Owner::default(), node };
                return Ok(Some((entry, EntryId { racy: true, keeps: true, ..EntryId::default() })));
            }
        };
        let same = before.filter(|(entry, id)| {
            id.id == stat.id
                && entry.mtime == stat.mtime
                && (entry.kind() != Kind::File || entry.size() == stat.size)
        });
        let seen_before = self.long_ago && same.is_some();
        let mut id = EntryId {
            id: stat.id,
            racy: self.tree.racy(stat, self.looked, seen_before),
            shared: stat.nlink > 1 && stat.kind != FileKind::Dir,
            ..EntryId::default()
        };
        let (mode, node) = match stat.kind {
            FileKind::Dir => {
                id = EntryId { id: stat.id, ..EntryId::default() };
                id.id.ctime = Mtime::default();
                (stat.mode, Node::Dir { object: Digest([0; 32]), content: Digest([0; 32]) })
            }
            FileKind::Link => match self.link(&name, same)? {
                Some(node) => (0o777, node),
                None => return Ok(None),
            },
            _ => (file_mode(self.tree.spec, stat), self.file(&name, stat, same)),
        };
        let entry = Entry { name, mode, mtime: stat.mtime, owner: owner_of(self.tree.spec, stat), node };
        Ok(Some((entry, id)))
    }

    pub(super) fn file(&mut self, name: &Name, stat: &Stat, same: Option<(Entry, EntryId)>) -> Node {
        let spec = self.tree.spec;
        let known = match same {
            Some((entry, id)) if !spec.rehash && !id.racy => match entry.node {
                Node::File { digest, .. } => Some(digest),
                _ => None,
            },
            _ => None,
        };
        let known = known.or_else(|| spec.known.and_then(|known| known(self.dir, name, stat)));
        if known.is_none() {
            self.to_hash = Some(*stat);
        }
        Node::File { size: stat.size, digest: known.unwrap_or(Digest([0; 32])) }
    }

    pub(super) fn link(&self, name: &Name, same: Option<(Entry, EntryId)>) -> Result<Option<Node>> {
        if let Some((Entry { node: node @ Node::Link { .. }, .. }, id)) = same
            && !id.racy
            && !self.tree.spec.rehash
        {
            return Ok(Some(node));
        }
        match self.handle.read_link(name) {
            Ok(target) => Ok(Some(Node::Link { target: target.into() })),
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(e) => {
                self.tree.error(self.dir.join(name), "read the link", e);
                Ok(Some(Node::Unreadable { kind: Kind::Link }))
            }
        }
    }
}
