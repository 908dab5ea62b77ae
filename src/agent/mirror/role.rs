//! A mirrored tree, as operators and the supervisor see it.

use super::super::history::HistoryEntry;
use super::super::orders::Ordered;
use super::super::role::{HoldOrder, NOT_OPEN, Role, have_done};
use super::super::trash::{self, Into, Trash, TrashAnswer, TrashOrder};
use super::{MirrorTree, Order};
use crate::disk::boot_ms;
use crate::error::{Class, Error, Result, lock};
use crate::model::{GenId, NodeStatus, TreeStatus, escaped};
use crate::plan::PlanId;
use crate::refresh::Refresher;
use std::sync::Arc;
use std::sync::atomic::Ordering;
impl Role for MirrorTree {
    fn status(&self) -> TreeStatus {
        let now = boot_ms();
        let shared = self.shared();
        let convergence = Some(shared.history.summary(now));
        let own = NodeStatus { convergence, ..self.own(&shared, now) };
        TreeStatus {
            head: shared.newest.as_ref().map(|g| g.id),
            content: shared.content,
            files: Some(shared.files),
            watch: shared.watch.clone(),
            lock: shared.lock.clone(),
            unwritable: shared.unwritable.clone(),
            convergence,
            recent: shared.recent.list(now),
            nodes: vec![own],
            ..TreeStatus::new(&self.config.name, &escaped(&self.config.path))
        }
    }

    fn approve(&self, id: PlanId) -> Result<String> {
        super::super::role::ask(&self.orders, |reply| Order::Approve(id, reply))
    }

    fn reset(&self) -> Result<String> {
        let what = format!("this node is a mirror of {}; the reset belongs on its source", self.name());
        Err(Error::new(Class::Config, what))
    }

    fn pause(&self, by: Ordered) -> Result<String> {
        self.order(|orders| {
            orders.paused = Some(by);
            Ok(())
        })?;
        // a run under way ends before it commits; what is staged is used later
        self.supersede.store(true, Ordering::Relaxed);
        self.wake();
        Ok(format!("{} is paused on this node: nothing is applied until `syncagent resume {0}`", self.name()))
    }

    fn resume(&self) -> Result<String> {
        self.order(|orders| orders.resume(format!("{} is not paused on this node", self.name())))?;
        let _ = self.orders.send(Order::Again);
        Ok(format!("{} goes on", self.name()))
    }

    fn hold(&self, _order: HoldOrder) -> Result<String> {
        let what = format!("this node is a mirror of {}; a hold belongs on its source", self.name());
        Err(Error::new(Class::Config, what))
    }

    fn flush(&self) -> u64 {
        let now = boot_ms();
        self.shared().wanted = now;
        self.again.notify_one();
        now
    }

    fn is_flushed(&self, token: u64) -> bool {
        self.shared().answered >= token
    }

    fn has_looked(&self, token: u64) -> bool {
        let shared = self.shared();
        // a source that cannot be reached is asked again when it is
        shared.answered >= token || !shared.connected && shared.contact.report(boot_ms()).is_some()
    }

    fn refresher(&self) -> Option<Arc<Refresher>> {
        self.refresher.get().cloned()
    }

    fn try_again(&self) -> Result<Option<GenId>> {
        self.try_newest_again()
    }

    fn node_changed(&self) {
        self.news.notify_one();
    }

    fn trash(&self, order: TrashOrder) -> Result<TrashAnswer> {
        let generation = |commit| self.happened.generation_of(commit);
        let into =
            format!("{} is a mirror here: what is put into it is drift, and taken out again", self.name());
        if order.reads_only() {
            // waits for nothing that is under way
            return trash::read_only(&self.config.path, &order, &generation, Into::Refused(into));
        }
        have_done(&self.orders, |reply| {
            Order::Job(Box::new(move |open| {
                let done = match open {
                    Some((tree, s)) => {
                        let (root, control) = (&s.control.root, &s.control.dir);
                        tree.pruning.halt();
                        let trash = Trash { root, control, generation: &|_| None, into: Into::Refused(into) };
                        let done = trash.carry_out(&order);
                        tree.prune_trash(&s.control);
                        done
                    }
                    None => Err(Error::new(Class::Transient, NOT_OPEN)),
                };
                // who asked may have gone
                let _ = reply.send(done);
            }))
        })
    }

    fn history(&self, limit: usize) -> Result<Vec<HistoryEntry>> {
        Ok(self.happened.of_mirror(&self.node, limit))
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.supersede.store(true, Ordering::Relaxed);
        self.cancel.cancel();
        if let Some(refresher) = self.refresher.get() {
            refresher.stop();
        }
        self.arrived.notify_all();
        let _ = self.orders.send(Order::Stop);
        self.shared().deferred.wake();
        self.pruning.wake();
    }

    fn has_ended(&self) -> bool {
        let kept = lock(&self.keeper).as_ref().is_none_or(std::thread::JoinHandle::is_finished);
        kept && self.thread_has_ended()
            && self.pruning.has_ended()
            && self.refresher.get().is_none_or(|r| r.has_ended())
    }
}
