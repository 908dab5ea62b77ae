//! The trash of a source's tree: what rollbacks displaced, and what is left of a time as a mirror.

use super::engine::Session;
use super::{Order, SourceTree};
use crate::agent::role::{NOT_OPEN, have_done};
use crate::agent::trash::{Into, Trash, TrashAnswer, TrashOrder, read_only};
use crate::apply::Control;
use crate::error::{Class, Error, Result};
use crate::model::GenId;

impl SourceTree {
    pub(super) fn trashed(&self, order: TrashOrder) -> Result<TrashAnswer> {
        if order.reads_only() {
            // waits for nothing that is under way
            return read_only(
                self.path(),
                &order,
                &|commit| self.history.generation_of(commit),
                Into::Allowed,
            );
        }
        let tree = self.config.name.clone();
        have_done(&self.orders, |reply| {
            Order::Job(Box::new(move |open| {
                let done = match open {
                    Some((engine, s)) => {
                        let done =
                            s.trash(&tree, &order, &|commit| engine.tree.history.generation_of(commit));
                        engine.tree.retain.trash_changed();
                        done
                    }
                    None => Err(Error::new(Class::Transient, NOT_OPEN)),
                };
                // who asked may have gone
                let _ = reply.send(done);
                Ok(())
            }))
        })
    }
}

impl Session {
    /// Changes the tree's trash, or the tree from it; what comes into the tree is a change like any other.
    pub(super) fn trash(
        &self,
        tree: &str,
        order: &TrashOrder,
        generation: &dyn Fn(u64) -> Option<GenId>,
    ) -> Result<TrashAnswer> {
        if self.own_high.is_none() {
            let what = format!("{tree} cannot be written to by the agent; see its log");
            return Err(Error::new(Class::Permanent, what));
        }
        let control = Control::open(&self.path)?;
        Trash { root: &self.dir, control: &control.dir, generation, into: Into::Allowed }.carry_out(order)
    }
}
