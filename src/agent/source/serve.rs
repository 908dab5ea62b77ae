//! What the data port answers of this tree. Everything but objects and contents comes from memory.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Order, SourceTree, lock, retain};
use crate::config::Allow;
use crate::disk::{Dir, boot_ms};
use crate::error::{Class, Error, Result};
use crate::model::{Digest, GenId, Generation, Name, Node, NodeId, Report, TreePath, counted};
use crate::peer::{self, Behind, Piece, Sought};
use crate::plan::CONTROL_DIR;

impl peer::Serve for SourceTree {
    fn allows(&self, node: &NodeId) -> bool {
        match &self.role.allow {
            Allow::Any => true,
            Allow::Nodes(nodes) => nodes.contains(node),
        }
    }

    fn head(&self) -> watch::Receiver<Option<Arc<Generation>>> {
        self.head.clone()
    }

    fn heard(&self, node: &NodeId, known: Option<GenId>) {
        let news = {
            let mut shared = self.shared();
            shared.nodes.heard(node, known, boot_ms());
            shared.nodes.has_news()
        };
        if news {
            // written down now
            self.wake();
        }
    }

    fn behind(&self, node: &NodeId, known: Option<GenId>, seen: Option<(GenId, Digest)>) -> Result<Behind> {
        let now = boot_ms();
        let head = self.head.borrow().clone();
        let mut shared = self.shared();
        if let Some((id, root)) = seen {
            if !id.is_plausible() {
                return Err(Error::new(Class::Config, format!("no source has ever come to generation {id}")));
            }
            let newest = head.as_ref().map_or(GenId::default(), |h| h.id);
            // after the loss of the state directory only the tree knows how far this source came
            let unknown = shared.opened && id > newest.max(shared.high)
                || head.is_some_and(|h| id == h.id && root != h.root.object);
            if unknown && shared.superseded.as_ref().is_none_or(|(known, _)| id > *known) {
                shared.superseded = Some((id, node.clone()));
                drop(shared);
                self.wake();
                shared = self.shared();
            }
            if id > newest && shared.superseded.is_none() {
                return Err(Error::new(
                    Class::Transient,
                    "the source has not published its next generation yet",
                ));
            }
        }
        if let Some((id, by)) = &shared.superseded {
            return Err(Error::new(Class::Refused, superseded(self.config.name.as_str(), *id, by)));
        }
        let age_ms = shared.published.head(now).map_or(0, |(_, age)| age);
        let late = shared.published.behind(known, now);
        Ok(Behind { age_ms, oldest: late.oldest, behind: late.count })
    }

    fn objects(&self, want: &[Digest]) -> Result<Vec<Option<Vec<u8>>>> {
        want.iter().map(|digest| self.store.body(digest)).collect()
    }

    fn root(&self) -> Result<Arc<Dir>> {
        self.root_handle()
    }

    fn publishes(&self, dir: &TreePath, name: &Name, digest: &Digest) -> bool {
        let Some(head) = self.head.borrow().clone() else { return false };
        let found = self.store.find(&head.root.object, &dir.join(name));
        matches!(found.map(|entry| entry.node), Some(Node::File { digest: d, .. }) if d == *digest)
    }

    fn kept(&self, digest: &Digest, size: u64) -> Option<std::os::fd::OwnedFd> {
        retain::open_kept(&self.keep()?, digest, size)
    }

    fn seeks(&self) -> Option<watch::Receiver<u64>> {
        Some(self.seek.number())
    }

    fn sought(&self, node: &NodeId, round: u64, from: usize) -> Option<Vec<Sought>> {
        self.seek.sought(node, round, from)
    }

    fn found(&self, node: &NodeId, round: u64, found: &[u32], done: bool) -> Option<Vec<u32>> {
        self.seek.found(node, round, found, done)
    }

    fn piece(&self, node: &NodeId, piece: Piece, bytes: &[u8]) -> Result<()> {
        self.seek.piece(node, piece, bytes)
    }

    fn report(&self, node: &NodeId, report: Report) {
        let now = boot_ms();
        for (id, ms) in &report.converged {
            self.history.converged(*id, node, *ms);
        }
        self.shared().nodes.reported(node, report, now);
    }

    fn suspect(&self, node: &NodeId, paths: Vec<TreePath>) {
        tracing::warn!(
            tree = self.config.name,
            %node,
            "content of {} arrived there and was not what its digest says; it is read again",
            counted(paths.len(), "file")
        );
        let _ = self.orders.send(Order::Suspect(paths));
    }

    fn connected(&self, node: &NodeId, delta: i32) {
        lock(&self.shared).nodes.connected(node, delta, boot_ms());
    }
}

impl SourceTree {
    fn keep(&self) -> Option<Dir> {
        let control = self.root_handle().ok()?.open_child(CONTROL_DIR).ok()?;
        control.open_child(retain::KEEP).ok()
    }

    /// What was sent may have been a kept content that is damaged.
    pub(super) fn forget_kept(&self, paths: &[TreePath]) {
        let (Some(head), Some(keep)) = (self.head.borrow().clone(), self.keep()) else { return };
        for path in paths {
            if let Some(Node::File { digest, size }) =
                self.store.find(&head.root.object, path).map(|e| e.node)
                && retain::drop_if_damaged(&keep, &digest, size, &self.stop)
            {
                self.retain.dropped();
            }
        }
    }
}

pub(super) fn superseded(tree: &str, id: GenId, by: &NodeId) -> String {
    format!(
        "node {by} has generation {id}, which this source never made: was it restored from a backup? It publishes \
         nothing until `syncagent source reset {tree} --approve`"
    )
}
