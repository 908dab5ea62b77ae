//! What the supervisor and the local socket see of a tree, whichever role this node has in it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::history::HistoryEntry;
use super::orders::Ordered;
use super::source::{Retention, RollbackAnswer, RollbackOrder};
use super::state::TreeState;
use super::trash::{TrashAnswer, TrashOrder};
use crate::config;
use crate::disk::boot_ms;
use crate::error::{Class, Error, Result};
use crate::model::{self, GenId, NodeId, TreeStatus};
use crate::plan::PlanId;
use crate::refresh::{Refresher, Setup};

/// Why nothing can be done with a tree at present.
pub(super) const NOT_OPEN: &str = "the tree cannot be used at present; see `syncagent status`";

/// Where an answer goes: a sentence for the operator.
pub(super) type Reply = Sender<Result<String>>;

/// A tree on this node.
pub trait Role: Send + Sync {
    /// As it is now; from memory.
    fn status(&self) -> TreeStatus;

    /// Lets a refused plan through.
    ///
    /// # Errors
    /// There is no such plan.
    fn approve(&self, id: PlanId) -> Result<String>;

    /// Begins a new epoch.
    ///
    /// # Errors
    /// This node is not the source.
    fn reset(&self) -> Result<String>;

    /// Nothing is published here or applied, until [`Role::resume`].
    ///
    /// # Errors
    /// The state directory cannot be written to.
    fn pause(&self, by: Ordered) -> Result<String>;

    /// Goes on.
    ///
    /// # Errors
    /// It is not paused.
    fn resume(&self) -> Result<String>;

    /// A deploy job's hold.
    ///
    /// # Errors
    /// This node is not the source, another job holds the tree, or what was held cannot be published.
    fn hold(&self, order: HoldOrder) -> Result<String>;

    /// Makes sure that all that was written until now is published, or heard of. Gives what [`Role::is_flushed`] takes.
    fn flush(&self) -> u64;

    /// Whether that is so.
    fn is_flushed(&self, token: u64) -> bool;

    /// Whether everything was looked at (or asked for) since then, or cannot be at present.
    fn has_looked(&self, token: u64) -> bool;

    /// Who tells the local server, where it is told.
    fn refresher(&self) -> Option<Arc<Refresher>>;

    /// A node that went back from a generation tries it again. Gives which.
    ///
    /// # Errors
    /// It is paused, or the order cannot be written down.
    fn try_again(&self) -> Result<Option<GenId>> {
        Ok(None)
    }

    /// The node was drained, or is not any more.
    fn node_changed(&self) {}

    /// A mirror that is gone for good is not known any more.
    ///
    /// # Errors
    /// This node is not the source, the mirror is not known or is connected, or that cannot be written down.
    fn forget(&self, node: &NodeId) -> Result<String> {
        let what = format!(
            "this node is not the tree's source (or the tree could not be started); {node} is forgotten on its source"
        );
        Err(Error::new(Class::Config, what))
    }

    /// Lists, restores or frees what commits displaced.
    ///
    /// # Errors
    /// The tree cannot be used at present, something is in the way, or the operating system's.
    fn trash(&self, _order: TrashOrder) -> Result<TrashAnswer> {
        Err(Error::new(Class::Transient, NOT_OPEN))
    }

    /// The newest `limit` generations, newest first.
    ///
    /// # Errors
    /// The history cannot be read.
    fn history(&self, _limit: usize) -> Result<Vec<HistoryEntry>> {
        Err(Error::new(Class::Transient, NOT_OPEN))
    }

    /// Publishes an older generation's content again. Nothing is begun any more once `gone` is set: whoever ordered it left.
    ///
    /// # Errors
    /// This node is not the source, the content is gone, a guard refused, or it failed.
    fn rollback(&self, _order: RollbackOrder, _gone: &AtomicBool) -> Result<RollbackAnswer> {
        let what = "this node is not the tree's source (or the tree could not be started); a rollback belongs on its source";
        Err(Error::new(Class::Config, what))
    }

    /// What is kept for rollbacks; `None` where nothing ever is.
    fn retention(&self) -> Option<Retention> {
        None
    }

    /// Asks it to end at a consistent point.
    fn stop(&self);

    /// Whether its disk work has ended.
    fn has_ended(&self) -> bool;
}

/// What becomes of a deploy job's hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldOrder {
    /// Begin one.
    Begin {
        /// Chosen by the job.
        id: String,
        /// Who asks, as the kernel says.
        who: String,
        /// The process whose end ends it.
        pid: i32,
        /// What it runs.
        command: String,
    },
    /// The command succeeded: publish what it wrote.
    Publish {
        /// The hold's.
        id: String,
    },
    /// The command could not be run: nothing was written.
    NotBegun {
        /// The hold's.
        id: String,
    },
    /// The command failed.
    Fail {
        /// The hold's.
        id: String,
        /// How.
        why: String,
    },
    /// Whatever holds the tree: let it go.
    Release {
        /// Who asks, as the kernel says.
        who: String,
    },
}

/// Sends an order with a place for the answer, and waits for it.
pub(super) fn ask<O>(orders: &Sender<O>, order: impl FnOnce(Reply) -> O) -> Result<String> {
    let (reply, answer) = std::sync::mpsc::channel();
    let gone = || Error::new(Class::Transient, "the tree is being stopped; try again");
    orders.send(order(reply)).map_err(|_| gone())?;
    match answer.recv_timeout(Duration::from_secs(60)) {
        Ok(answer) => answer,
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Err(gone()),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
            let what =
                "it was noted, but the tree is busy and has not answered within 60 s; see `syncagent status`";
            Err(Error::new(Class::Transient, what))
        }
    }
}

/// Has something done in the thread that has the tree, and waits for it however long it takes.
///
/// # Errors
/// The thread ended before, or what was done failed.
pub(super) fn have_done<O, T: Send + 'static>(
    orders: &Sender<O>,
    order: impl FnOnce(Sender<Result<T>>) -> O,
) -> Result<T> {
    let (reply, answer) = std::sync::mpsc::channel();
    let gone = || Error::new(Class::Transient, "the tree is being stopped; try again");
    orders.send(order(reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// What a tree's refresher is made of; it tells nobody of news, and goes back from nothing.
pub(super) fn refresh_of(config: &config::Tree, node: &NodeId, state: &TreeState) -> Setup {
    Setup {
        tree: config.name.clone(),
        node: node.clone(),
        path: config.path.clone(),
        rules: config.refresh.clone(),
        state: state.path().to_owned(),
        news: Arc::new(|| {}),
        on_rollback: None,
    }
}

/// Something that is wrong, and since when.
#[derive(Debug, Default)]
pub(super) struct Trouble(Option<(String, u64)>);

impl Trouble {
    /// Notes what is wrong; the same text keeps its beginning. Says whether it is news.
    pub(super) fn set(&mut self, what: String) -> bool {
        match &self.0 {
            Some((known, _)) if *known == what => false,
            _ => {
                self.0 = Some((what, boot_ms()));
                true
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    pub(super) fn report(&self, now: u64) -> Option<model::Trouble> {
        self.0
            .as_ref()
            .map(|(what, since)| model::Trouble { what: what.clone(), for_ms: now.saturating_sub(*since) })
    }
}
