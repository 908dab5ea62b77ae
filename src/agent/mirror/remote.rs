//! The source over the network, as the engine sees it: objects from the store that they were fetched into,
//! contents from the peer.

use std::collections::HashMap;
use std::io::{Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;

use super::MirrorTree;
use super::engine::Session;
use crate::apply::seek_trashed;
use crate::disk::Dir;
use crate::error::{Error, Result};
use crate::model::{Content, Digest, Entry, Kind, Node, Object, Root, Source, TreePath, Wanted};
use crate::peer::{Client, Fetched, Want};
use crate::scan::Store;

/// A generation, with its directories fetched.
pub(super) struct Remote<'a> {
    pub(super) client: &'a Client,
    pub(super) store: &'a Store,
    /// As this node describes it: owners as its policy says.
    pub(super) root: Root,
    pub(super) cancel: &'a AtomicBool,
    /// `.syncagent`, when what the source has no more may be taken out of this node's own trash.
    pub(super) trash: Option<&'a Dir>,
}

impl<'a> Remote<'a> {
    pub(super) fn of(tree: &'a MirrorTree, s: &'a Session, root: Root) -> Self {
        Self { client: &tree.client, store: &s.store, root, cancel: &tree.supersede, trash: None }
    }

    /// As [`Remote::of`], for an older generation: the source may have forgotten what this node still has.
    pub(super) fn back_to(tree: &'a MirrorTree, s: &'a Session, root: Root) -> Self {
        Self { trash: Some(&s.control.dir), ..Self::of(tree, s, root) }
    }

    /// What lies of these in this node's trash, by digest.
    fn displaced(&self, gone: &[usize], want: &[Want<'_>]) -> HashMap<Digest, OwnedFd> {
        let (Some(control), false) = (self.trash, gone.is_empty()) else { return HashMap::new() };
        let wanted = gone.iter().filter_map(|i| want.get(*i));
        let mut wanted: HashMap<Digest, (u64, TreePath)> =
            wanted.map(|want| (*want.digest, (want.size, want.dir.join(want.name)))).collect();
        let mut found = HashMap::new();
        let sought = seek_trashed(control, &mut wanted, self.cancel, &mut || (), &mut |digest, displaced| {
            found.extend(displaced.open(control).ok().map(|fd| (digest, fd)));
            true
        });
        if let Err(e) = sought {
            tracing::debug!("looking into the trash: {e}");
        }
        found
    }
}

impl Source for Remote<'_> {
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
        let want: Vec<Want<'_>> = files
            .iter()
            .filter_map(|file| match &file.entry.node {
                Node::File { size, digest } => {
                    let name = &file.entry.name;
                    Some(Want { dir: file.dir, name, size: *size, digest, from: file.from })
                }
                _ => None,
            })
            .collect();
        // looked for here when the answer was read: its connection does not wait for that
        let mut gone = Vec::new();
        self.client.contents(&want, self.cancel, &mut |i, fetched| match fetched {
            Fetched::Stream(stream) => take(i, Ok(Content::Stream(stream))),
            Fetched::Gone if self.trash.is_some() => {
                gone.push(i);
                Ok(())
            }
            Fetched::Gone => take(i, Ok(Content::Vanished)),
            Fetched::Unreadable(why) => take(
                i,
                Err(Error::new(crate::error::Class::Permanent, format!("the source cannot read it: {why}"))),
            ),
        })?;
        let here = self.displaced(&gone, &want);
        for i in gone {
            let file = want.get(i).and_then(|want| here.get(want.digest).map(|fd| (want, fd)));
            let opened = file.and_then(|(want, fd)| {
                let mut file = std::fs::File::from(fd.try_clone().ok()?);
                file.seek(SeekFrom::Start(want.from)).ok().map(|_| file)
            });
            match opened {
                // read as what comes from a peer: what is not what it should be is refused
                Some(mut file) => take(i, Ok(Content::Stream(&mut file)))?,
                None => take(i, Ok(Content::Vanished))?,
            }
        }
        Ok(())
    }
}

/// Refuses what no honest source of ours sends.
pub(super) fn check(object: &Object, setid: bool) -> Result<()> {
    let bad = |e: &&Entry| e.kind() == Kind::File && e.mode & 0o6000 != 0;
    match object.entries.iter().find(bad) {
        Some(e) if !setid => Err(Error::integrity(format!(
            "the source sent {} with a setuid or setgid bit (mode {:04o}), and `setid` is not set for the tree; it is refused",
            crate::model::escape(&e.name),
            e.mode
        ))),
        _ => Ok(()),
    }
}
