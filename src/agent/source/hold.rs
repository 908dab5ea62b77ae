//! Holds: while a deploy job writes, nothing is published; when it succeeded, all of it is, as one generation. When it
//! failed or died, the tree stays held, because nobody knows what is half-written.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{Engine, Session};
use super::publish::Published;
use super::{Order, SourceTree, lock};
use crate::agent::orders::{Held, Phase, Process};
use crate::agent::role::{HoldOrder, Reply};
use crate::disk::{process_end, wall_ms};
use crate::error::{Class, Error, Result};
use crate::model::{Cause, counted, counted_as};
use crate::scan::Scanned;

/// Whether it is a rollback that keeps the tree back, and no job.
pub(super) fn is_rollback(hold: &Held) -> bool {
    hold.id == ROLLBACK
}

/// A process is looked at so often where the kernel cannot tell of its end.
const LOOK: Duration = Duration::from_millis(500);
/// Why a hold failed whose process ended.
pub(super) const DIED: &str = "the process that held it ended without saying how its command went";
/// The id of a hold that is no job's: see [`Engine::hold_by_rollback`].
const ROLLBACK: &str = "rollback";
/// Unfinished files that an answer names.
const NAMED: usize = 3;

impl SourceTree {
    /// Sends [`Order::HolderEnded`] when the process of the hold `id` ends. One thread does that for each hold, however
    /// often the tree is opened anew.
    fn watch_holder(self: &Arc<Self>, id: &str, process: Process) -> Result<()> {
        if lock(&self.watched).replace(id.to_owned()).is_some_and(|watched| watched == id) {
            return Ok(());
        }
        let (tree, hold) = (Arc::downgrade(self), id.to_owned());
        let end = move || {
            process_end(process.pid, LOOK, &|| process.is_there());
            if let Some(tree) = tree.upgrade() {
                // an engine that ended reads the record at its next start
                let _ = tree.orders.send(Order::HolderEnded(hold.clone()));
                // and a session that could not write its end down asks again
                lock(&tree.watched).take_if(|watched| *watched == hold);
            }
        };
        let thread = std::thread::Builder::new().name("holder".into()).spawn(end);
        thread.map(drop).map_err(|e| {
            *lock(&self.watched) = None;
            Error::io(e, "cannot start a thread")
        })
    }
}

impl Engine {
    /// Goes on with a hold that the agent left when it ended.
    ///
    /// # Errors
    /// What the tree says of a hold cannot be written down here.
    pub(super) fn restore_hold(&self) -> Result<()> {
        self.reconcile_mark()?;
        let held = self.tree.shared().orders.hold.clone();
        let Some(held) = held.filter(|h| h.phase == Phase::Running) else { return Ok(()) };
        if let Err(e) = self.tree.watch_holder(&held.id, held.process) {
            tracing::error!(tree = self.name(), "{e}");
            self.fail(&held.id, "its process cannot be watched");
        }
        Ok(())
    }

    pub(super) fn is_publishing_hold(&self) -> bool {
        self.tree.shared().orders.hold.as_ref().is_some_and(|h| h.phase == Phase::Publishing)
    }

    /// What a publication comes from that ends a hold.
    pub(super) fn hold_cause(&self) -> Option<Cause> {
        let shared = self.tree.shared();
        let hold = shared.orders.hold.as_ref().filter(|h| h.phase == Phase::Publishing)?;
        Some(Cause::Hold { who: format!("{}: {}", hold.who, hold.command) })
    }

    /// Whether an operator or a deploy job keeps everything back.
    pub(super) fn is_kept_back(&self) -> bool {
        let shared = self.tree.shared();
        shared.orders.paused.is_some()
            || shared.orders.hold.as_ref().is_some_and(|h| h.phase != Phase::Publishing)
    }

    pub(super) fn hold(&mut self, s: &mut Session, order: HoldOrder, reply: Reply) -> Result<()> {
        let answer = match order {
            HoldOrder::Begin { id, who, pid, command } => self.begin(id, who, pid, command),
            HoldOrder::Publish { id } => return self.end(s, &id, reply),
            HoldOrder::Fail { id, why } => {
                self.fail(&id, &why);
                Ok(format!("{} stays held: {why}", self.name()))
            }
            HoldOrder::NotBegun { id } => {
                let done = self.not_begun(&id);
                let ended = done.is_ok();
                let _ = reply.send(done);
                if ended {
                    s.be_thorough();
                    self.look(s, false)?;
                }
                return Ok(());
            }
            HoldOrder::Release { who } => {
                let done = self.release(&who);
                let released = done.is_ok();
                let _ = reply.send(done);
                if released {
                    s.be_thorough();
                    self.look(s, false)?;
                }
                return Ok(());
            }
        };
        // who asked may have gone
        let _ = reply.send(answer);
        Ok(())
    }

    fn begin(&self, id: String, who: String, pid: i32, command: String) -> Result<String> {
        let gone = || Error::new(Class::Transient, "the process that asked for the hold is gone");
        let process = Process::of(pid).ok_or_else(gone)?;
        let held = Held {
            id: id.clone(),
            who,
            command,
            at_ms: wall_ms(),
            process,
            phase: Phase::Running,
            failed_at_ms: None,
            before: None,
        };
        let (name, command) = (self.name().to_owned(), held.command.clone());
        let mut known = false;
        self.tree.order(|orders| {
            known = orders.hold.as_ref().is_some_and(|h| h.id == id && h.process == process);
            if known {
                // it asks again, for its answer was lost when the agent restarted
                return Ok(());
            }
            // one whose end could not be written down is no other job
            let goes_on = |h: &&Held| match h.phase {
                Phase::Running => h.process.is_there(),
                Phase::Publishing => true,
                Phase::Failed(_) => false,
            };
            if orders.hold.as_ref().is_some_and(|h| h.id == ROLLBACK) {
                let why = orders.hold.as_ref().and_then(|h| h.show(wall_ms()).failed).unwrap_or_default();
                let what = format!(
                    "{name} is held, because {why}; first repeat the rollback, or publish the tree as it is by syncagent hold \
                     {name} --release"
                );
                return Err(Error::new(Class::Refused, what));
            }
            if let Some(other) = orders.hold.as_ref().filter(goes_on) {
                let what = format!("{name} is held already, by {}, for {}", other.who, other.command);
                return Err(Error::new(Class::Busy, what));
            }
            let before = orders.hold.take().map(|mut before| {
                if before.phase == Phase::Running {
                    before.fails(DIED);
                }
                Box::new(Held { before: None, ..before })
            });
            orders.hold = Some(Held { before, ..held });
            Ok(())
        })?;
        // before the command begins
        self.set_mark();
        if known {
            return Ok(format!("{} is held", self.name()));
        }
        self.tree.watch_holder(&id, process).inspect_err(|e| self.fail(&id, &e.to_string()))?;
        tracing::info!(tree = self.name(), command, "held");
        Ok(format!("{} is held", self.name()))
    }

    /// Keeps everything back until somebody decides what becomes of a rollback, or another commit, that came only partly
    /// into place.
    pub(super) fn hold_by_rollback(&self, of: &str, why: String) -> Result<()> {
        tracing::error!(tree = self.name(), "held until it is released: {why}");
        self.tree.order(|orders| {
            let hold = Held {
                id: ROLLBACK.into(),
                who: "syncagent".into(),
                command: of.to_owned(),
                at_ms: wall_ms(),
                process: Process { pid: 0, started: 0 },
                phase: Phase::Failed(why),
                failed_at_ms: None,
                before: None,
            };
            match &mut orders.hold {
                // a job's own word counts
                Some(job) if !matches!(job.phase, Phase::Failed(_)) => job.before = Some(Box::new(hold)),
                other => *other = Some(hold),
            }
            Ok(())
        })?;
        self.set_mark();
        Ok(())
    }

    /// Whether nothing but such a rollback keeps the tree back.
    pub(super) fn is_held_by_rollback(&self) -> bool {
        let shared = self.tree.shared();
        shared.orders.paused.is_none() && shared.orders.hold.as_ref().is_some_and(|h| h.id == ROLLBACK)
    }

    /// All of a rollback is in place.
    pub(super) fn end_hold_by_rollback(&self) -> Result<()> {
        if !self.is_held_by_rollback() {
            return Ok(());
        }
        let void = self.drop_mark()?;
        self.tree.order(|orders| {
            orders.hold.take_if(|hold| hold.id == ROLLBACK);
            orders.void_mark = void;
            Ok(())
        })
    }

    pub(super) fn fail(&self, id: &str, why: &str) {
        let mut failed = false;
        let done = self.tree.order(|orders| {
            if let Some(hold) = orders.hold.as_mut().filter(|h| h.id == id && h.phase == Phase::Running) {
                hold.fails(why);
                failed = true;
            }
            Ok(())
        });
        if let Err(e) = done {
            // it is held all the same
            tracing::error!(tree = self.name(), "{e}");
        } else if failed {
            tracing::warn!(tree = self.name(), "held until it is released: {why}");
        }
    }

    /// The command of this hold never began: everything is as it was before it.
    fn not_begun(&self, id: &str) -> Result<String> {
        let before = self.tree.shared().orders.hold.as_ref().filter(|h| h.id == id).map(|h| h.before.clone());
        let Some(before) = before else { return Ok(format!("{} is not held for that", self.name())) };
        let void = if before.is_none() { self.drop_mark()? } else { None };
        self.tree.order(|orders| {
            orders.hold = before.clone().map(|before| *before);
            orders.void_mark = void;
            Ok(())
        })?;
        self.set_mark();
        Ok(match before {
            Some(before) => format!("{} stays held since {} failed", self.name(), before.command),
            None => format!("{} is not held any more", self.name()),
        })
    }

    fn release(&self, who: &str) -> Result<String> {
        let mut was = None;
        let is_held = self.tree.shared().orders.hold.is_some();
        let void = if is_held { self.drop_mark()? } else { None };
        self.tree.order(|orders| {
            was = orders.hold.take();
            orders.void_mark = void;
            let none = || Error::new(Class::Config, format!("nobody holds {}", self.name()));
            was.as_ref().map(|_| ()).ok_or_else(none)
        })?;
        let by = was.map(|h| format!(" (it was held by {}, for {})", h.who, h.command)).unwrap_or_default();
        tracing::info!(tree = self.name(), "released by {who}{by}");
        Ok(format!("{} is released by {who}{by}", self.name()))
    }

    /// The job succeeded. Its answer is sent when what it wrote is published, or cannot be.
    fn end(&mut self, s: &mut Session, id: &str, reply: Reply) -> Result<()> {
        let (hold, ended) = {
            let shared = self.tree.shared();
            (shared.orders.hold.clone(), shared.orders.ended.clone())
        };
        let refused = |why: &str| Err(Error::new(Class::Permanent, why.to_owned()));
        let answer = match (hold, ended) {
            (_, Some((last, what))) if last == id => Ok(what),
            (Some(hold), _) if hold.id == id => match hold.phase {
                Phase::Failed(why) => refused(&format!("the hold ended before: {why}; the tree stays held")),
                _ => {
                    self.ending = Some(reply);
                    return self.publish_hold(s);
                }
            },
            (Some(hold), _) => {
                refused(&format!("the tree is held by {} now, for {}", hold.who, hold.command))
            }
            (None, _) => {
                refused("the hold was released meanwhile; what was written is published as any change is")
            }
        };
        let _ = reply.send(answer);
        Ok(())
    }

    fn publish_hold(&mut self, s: &mut Session) -> Result<()> {
        let noted = self.tree.order(|orders| {
            if let Some(hold) = &mut orders.hold {
                hold.phase = Phase::Publishing;
            }
            Ok(())
        });
        if let Err(e) = noted {
            self.answer_hold(Err(Error::new(e.class, e.to_string())));
            return Ok(());
        }
        s.be_thorough();
        self.look(s, true)
    }

    fn answer_hold(&mut self, answer: Result<String>) {
        if let Some(reply) = self.ending.take() {
            // who asked may have gone, and asks again
            let _ = reply.send(answer);
        }
    }

    /// What the job wrote was looked at, and published or not: the hold is over.
    pub(super) fn hold_ended(&mut self, scanned: &Scanned, published: &Published) {
        if !self.is_publishing_hold() {
            return;
        }
        let head = self.tree.head.borrow().clone();
        let head = head.map(|h| h.id.to_string()).unwrap_or_default();
        let (plan, paused) = {
            let shared = self.tree.shared();
            (shared.plan.clone(), shared.orders.paused.is_some())
        };
        let answer = match published {
            Published::Yes | Published::Unchanged if !scanned.errors.is_empty() => {
                let named: Vec<String> =
                    scanned.errors.iter().take(NAMED).map(|e| format!("{} ({})", e.path, e.error)).collect();
                let what = format!(
                    "published as generation {head}, but for {} that cannot be read: {}",
                    counted(scanned.errors.len(), "path"),
                    named.join(", ")
                );
                Err(Error::new(Class::Permanent, what))
            }
            Published::Yes | Published::Unchanged if !scanned.held.is_empty() => {
                let named: Vec<String> =
                    scanned.held.iter().take(NAMED).map(|(path, why)| format!("{path} ({why})")).collect();
                let what = format!(
                    "published as generation {head}, but for {} not finished: {}",
                    counted_as(scanned.held.len(), "file", ("that is", "that are")),
                    named.join(", ")
                );
                Err(Error::new(Class::Permanent, what))
            }
            Published::Yes => Ok(format!("published as generation {head}")),
            Published::Unchanged => Ok(format!("nothing was changed; generation {head} stays")),
            Published::Not if paused => {
                let what =
                    format!("{} is paused; what was written is published when it goes on", self.name());
                Err(Error::new(Class::Refused, format!("not published: {what}")))
            }
            Published::Not => {
                let why = plan.map_or_else(
                    || "see `syncagent status`".to_owned(),
                    |p| {
                        format!(
                            "{}; to let exactly this through: syncagent approve {} {}",
                            p.reason,
                            self.name(),
                            p.id
                        )
                    },
                );
                Err(Error::new(Class::Refused, format!("not published: {why}")))
            }
        };
        let said = match &answer {
            Ok(said) => said.clone(),
            Err(e) => e.to_string(),
        };
        let void = self.drop_mark().unwrap_or_else(|e| {
            // the next start finds it, and holds the tree once more: better than once too little
            tracing::warn!(tree = self.name(), "{e}");
            None
        });
        let done = self.tree.order(|orders| {
            orders.void_mark = void;
            let id = orders.hold.take().map(|h| h.id).unwrap_or_default();
            orders.ended = answer.is_ok().then_some((id, said.clone()));
            Ok(())
        });
        if let Err(e) = done {
            tracing::error!(tree = self.name(), "{e}");
        }
        tracing::info!(tree = self.name(), "the hold is over: {said}");
        self.answer_hold(answer);
    }
}
