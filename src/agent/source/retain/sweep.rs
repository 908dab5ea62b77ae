//! Removing what no kept generation needs, and what is too much.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Keeper;
use super::bounds::{beside, within};
use super::store::{Used, each_kept, is_kept};
use crate::agent::source::{lock, publish};
use crate::disk::{Dir, FileKind, remove_tree};
use crate::error::{Context as _, Result};
use crate::model::{Digest, Generation, Node};
use crate::scan::Store;

/// What no generation needs is looked for so often at most, and so many times its duration apart.
const SWEEP: Duration = Duration::from_secs(60);
const SWEEP_FACTOR: u32 = 20;

impl Keeper {
    /// Removes what none of the kept generations has, and the oldest ones' contents while it is too much.
    pub(super) fn sweep(&mut self, keep: &Dir, head: &Generation) -> Result<()> {
        let begun = Instant::now();
        let clones = lock(&self.tree.retain.status).clones;
        let count = usize::try_from(self.generations).unwrap_or(usize::MAX).saturating_add(1);
        let kept = self.tree.store.generations(count.min(publish::KEPT))?;
        let mut seen: HashSet<Digest> = HashSet::new();
        let mut visited = HashSet::new();
        let mut order = Vec::new();
        for generation in &kept {
            let free = clones && generation.id == head.id;
            each_file(&self.tree.store, generation, &mut visited, &mut |digest, size| {
                if !seen.contains(digest) && is_kept(keep, digest, size) {
                    seen.insert(*digest);
                    order.push((*digest, if free { 0 } else { size }));
                }
            });
            if self.stopped() {
                return Ok(());
            }
        }
        // what clones hold is no longer free, and what was copied when there was space may be in the way now
        let free = rustix::fs::fstatvfs(keep).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
        let live = within(&order, beside(self.trash, self.budget), free);
        let mut used = Used::default();
        let cannot = || "sweep .syncagent/keep".to_owned();
        let passed = each_kept(keep, &mut |dir, name, digest, stat| {
            let removed =
                if live.contains(digest) { Ok(false) } else { remove_tree(dir, name).map(|()| true) };
            // what cannot be removed still has its space
            if removed != Ok(true) && stat.kind == FileKind::File {
                used.files += 1;
                used.bytes += stat.size;
            }
            removed.map(drop)
        })
        .context(cannot)?;
        if let Some(text) = passed.text() {
            self.tell(text);
        }
        self.used = Some(used);
        // what was left out may have a place now
        self.considered.clear();
        self.swept = Some(head.id);
        self.next_sweep = Instant::now() + SWEEP.max(begun.elapsed() * SWEEP_FACTOR);
        Ok(())
    }
}

/// Calls `each` for the files of a generation whose directories were not visited yet.
fn each_file(
    store: &Store,
    generation: &Generation,
    visited: &mut HashSet<Digest>,
    each: &mut dyn FnMut(&Digest, u64),
) {
    let mut stack = vec![generation.root.object];
    while let Some(object) = stack.pop() {
        if !visited.insert(object) {
            continue;
        }
        // of an old generation the directories may be gone: nothing can be brought back to it then
        let Ok(object) = store.object(&object) else { continue };
        for entry in &object.entries {
            match &entry.node {
                Node::Dir { object, .. } => stack.push(*object),
                Node::File { size, digest } => each(digest, *size),
                _ => {}
            }
        }
    }
}
