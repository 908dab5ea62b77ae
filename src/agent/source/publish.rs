//! Judging a scanned state against the published one, and making it the next generation.
//!
//! Order: objects stored → number durable → generation stored → announced. A crash in between leaves a
//! number that was never announced and is skipped; no number is ever used twice.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::engine::{Engine, Session};
use crate::disk::{boot_ms, wall_ms};
use crate::error::{Class, Error, Result};
use crate::model::{Cause, Changes, Digest, GenId, Generation, Object, RefusedPlan, State, counted};
use crate::plan::{Diff, Facts, MaxDelete, Moves, Options, PlanId, Refusal, Step, Tally, count, judge};
use crate::refresh::Changed;
use crate::scan::{self, Index, Scanned};

/// Generations that are kept for the history, and those whose directory objects are.
pub(super) const KEPT: usize = 1_000;
const KEPT_OBJECTS: u64 = 8;
/// What is no longer needed is swept out after so many publications.
const SWEEP_EVERY: u64 = 64;

/// What became of a scanned state.
pub(super) enum Published {
    Yes,
    /// It is what was published last.
    Unchanged,
    /// Refused, held, or superseded; status says which.
    Not,
}

impl Engine {
    pub(super) fn publish(&mut self, s: &mut Session, scanned: &Scanned, full: bool) -> Result<Published> {
        if self.is_superseded() {
            return Ok(Published::Not);
        }
        let head = self.tree.head.borrow().clone();
        if head.is_some_and(|h| h.root == scanned.root && h.id >= self.high.get()) {
            self.forget_rollback()?;
            return Ok(Published::Unchanged);
        }
        if self.is_held() || self.is_unclear(scanned)? {
            return Ok(Published::Not);
        }
        let begun = Instant::now();
        let base = self.base.clone();
        let tally = base.as_ref().map(|base| self.compare(&s.index, base, scanned)).transpose()?;
        let there = base.as_ref().map_or(0, |b| b.files);
        let files = match &tally {
            Some(tally) if !full => there.saturating_add_signed(tally.net),
            _ => scanned.files,
        };
        let mut approved = None;
        if let Some(tally) = &tally {
            let plan = tally.plan_id();
            let facts = Facts { there, source_is_empty: is_empty(scanned), unmanaged: false };
            if let Some(refusal) = judge(tally, facts, self.tree.config.max_delete) {
                if self.approved != Some(plan) && !self.rolled_back(scanned, Some(plan)) {
                    self.refuse(plan, &refusal, tally.lost);
                    return Ok(Published::Not);
                }
                approved = Some(plan.to_string());
            }
        }
        let judged = begun.elapsed();
        let high = self.high.get();
        let id = GenId { epoch: high.epoch.max(1), number: high.number + 1 };
        let changes = tally.as_ref().map_or_else(
            || Changes { created: scanned.entries, ..Changes::default() },
            |t| Changes {
                created: t.created,
                updated: t.updated,
                attrs: t.attrs,
                moved: t.moved,
                deleted: t.deleted,
                bytes: t.bytes,
            },
        );
        let generation = Generation {
            id,
            root: scanned.root.clone(),
            filter: self.filter.id(),
            origin: self.tree.node.clone(),
            at_ms: wall_ms(),
            files,
            changes,
            judged: tally.is_some() || high == GenId::default(),
            cause: match (
                self.cause.clone().or_else(|| self.rollback_to(scanned)).or_else(|| self.hold_cause()),
                &approved,
            ) {
                (Some(cause), _) => cause,
                (None, Some(plan)) => Cause::Approved { plan: plan.clone() },
                (None, None) => Cause::Change,
            },
            approved,
        };
        let changed = self.changed(&s.index, base.as_ref(), scanned)?;
        self.announce(s, generation)?;
        if let (Some(refresher), Some(changed)) = (self.tree.refresher.get(), changed) {
            refresher.applied(id, changed)?;
        }
        if let Err(e) = self.forget_rollback() {
            // what was planned against an older generation counts no more
            tracing::warn!(tree = self.name(), "{e}");
        }
        tracing::info!(
            tree = self.name(),
            generation = %id,
            files,
            created = changes.created,
            updated = changes.updated,
            moved = changes.moved,
            deleted = changes.deleted,
            bytes = changes.bytes,
            scan_ms = ms(s.look_took),
            judge_ms = ms(judged),
            publish_ms = ms(begun.elapsed() - judged),
            held = scanned.held.len(),
            "published"
        );
        Ok(Published::Yes)
    }

    /// What turns the published state into the scanned one.
    fn compare(&self, index: &Index, head: &Generation, scanned: &Scanned) -> Result<Tally> {
        let mut tally = self.with_diff(index, head, scanned, |diff| count(diff, false))?.tally;
        tally.attrs += u64::from(head.root.header != scanned.root.header);
        Ok(tally)
    }

    /// Hands out the difference of the published state and the scanned one.
    fn with_diff<T>(
        &self,
        index: &Index,
        head: &Generation,
        scanned: &Scanned,
        work: impl FnOnce(&Diff<'_, scan::Published<'_>, scan::Indexed<'_>>) -> T,
    ) -> T {
        let (old, new) = (scan::Published(&self.tree.store), scan::Indexed(index));
        work(&Diff {
            old: &old,
            old_root: Some(head.root.object),
            new: &new,
            new_root: scanned.root.object,
            options: Options::default(),
        })
    }

    /// The paths that changed, for the local server where one is told.
    fn changed(
        &self,
        index: &Index,
        base: Option<&Generation>,
        scanned: &Scanned,
    ) -> Result<Option<Changed>> {
        if self.tree.refresher.get().is_none() {
            return Ok(None);
        }
        let Some(base) = base else { return Ok(Some(Changed::Everything)) };
        let mut changed = Changed::default();
        let mut add = |step: Step<'_, _>| {
            changed.add(step.path);
            Ok(())
        };
        self.with_diff(index, base, scanned, |diff| diff.walk(&Moves::default(), &mut add))?;
        Ok(Some(changed))
    }

    /// What was published when the agent ended, and the local server may not have been told of.
    pub(super) fn tell_of_what_is_published(&self) -> Result<()> {
        let (Some(refresher), Some(base)) = (self.tree.refresher.get(), &self.base) else { return Ok(()) };
        if refresher.in_place() != Some(base.id) || refresher.is_unsure() {
            refresher.applied(base.id, Changed::Everything)?;
        }
        Ok(())
    }

    /// Whether a mirror has what this source never made; status says so.
    pub(super) fn is_superseded(&self) -> bool {
        let by = self.tree.shared().superseded.clone();
        if let Some((id, node)) = &by {
            self.trouble(State::Superseded, super::serve::superseded(self.name(), *id, node));
        }
        by.is_some()
    }

    /// Whether something forbids publications at present; status says what.
    pub(super) fn may_not_publish(&self) -> bool {
        self.is_held()
    }

    fn is_held(&self) -> bool {
        if self.is_kept_back() {
            // status says by whom; and the tree was just read, whatever failed before
            let mut shared = self.tree.shared();
            if shared.state == State::Failed {
                shared.state = State::Settling;
                shared.trouble.clear();
            }
            return true;
        }
        let Some(path) = &self.tree.role.hold_file else { return false };
        let (parent, name) = path.split();
        let parent = crate::model::TreePath::new(parent).unwrap_or_default();
        let root = self.tree.root_handle();
        let there = root.is_ok_and(|root| root.open(&parent).and_then(|d| d.stat(name)).is_ok());
        if there {
            self.trouble(
                State::Held,
                format!("the hold file {path} is there; nothing is published while it is"),
            );
        }
        there
    }

    fn refuse(&self, plan: PlanId, refusal: &Refusal, lost: u64) {
        let reason = explain(refusal, self.tree.config.max_delete);
        let name = self.name();
        let id = plan.to_string();
        self.trouble(
            State::Refused,
            format!("{reason}. To let exactly this through: syncagent approve {name} {id}"),
        );
        self.tree.shared().plan = Some(RefusedPlan { id, reason, lost });
    }

    fn announce(&mut self, s: &mut Session, generation: Generation) -> Result<()> {
        let index = &s.index;
        let id = generation.id;
        let lost = || Error::integrity("the source's index lost a directory");
        self.tree.store.take_in(&generation.root.object, &mut |want| {
            want.iter().map(|digest| index.object(digest)?.ok_or_else(lost)).collect()
        })?;
        self.high.raise(id)?;
        self.tree.store.add_generation(&generation)?;
        let mut shared = self.tree.shared();
        shared.published.publish(id, boot_ms());
        shared.recent.push(&generation, boot_ms() as i64);
        shared.high = id;
        drop(shared);
        self.base = Some(generation.clone());
        self.tree.announce(generation);
        self.tree.retain.wake();
        if let Some(own) = &mut s.own_high
            && let Err(e) = own.raise(id)
        {
            tracing::warn!(tree = self.name(), "{e}");
        }
        if id.number.is_multiple_of(SWEEP_EVERY)
            && let Err(e) = self.sweep()
        {
            tracing::warn!(tree = self.name(), "{e}");
        }
        Ok(())
    }

    fn sweep(&self) -> Result<()> {
        let kept = self.tree.store.generations(KEPT)?;
        if let Some(oldest) = kept.last() {
            self.tree.store.forget_before(oldest.id)?;
        }
        // what is kept for rollbacks needs its directories
        let objects =
            usize::try_from(KEPT_OBJECTS.max(self.tree.config.keep.saturating_add(1))).unwrap_or(KEPT);
        let roots: Vec<_> = kept.iter().take(objects).map(|g| g.root.object).collect();
        let gone = self.tree.store.sweep(&roots)?;
        tracing::debug!(tree = self.name(), gone, "swept");
        Ok(())
    }

    pub(super) fn approve(
        &mut self,
        s: &mut Session,
        id: PlanId,
        reply: &Sender<Result<String>>,
    ) -> Result<()> {
        let waiting = self.tree.shared().plan.clone();
        let answer = match waiting {
            None => {
                Err(Error::new(Class::Config, format!("no plan of {} waits for an approval", self.name())))
            }
            Some(plan) if plan.id != id.to_string() => Err(Error::new(
                Class::Config,
                format!("plan {id} does not wait (any more); {} does: {}", plan.id, plan.reason),
            )),
            Some(plan) => {
                self.approved = Some(id);
                s.be_thorough();
                let looked = self.look(s, true);
                self.approved = None;
                if let Err(e) = looked {
                    let _ = reply.send(Err(Error::new(e.class, e.to_string())));
                    return Err(e);
                }
                let head = self.tree.head.borrow().clone();
                match head.filter(|h| h.approved.as_deref() == Some(&plan.id)) {
                    Some(head) => Ok(format!("published as generation {}", head.id)),
                    None => {
                        let what = "the tree changed meanwhile, or a file in it is not finished; see `syncagent status`";
                        Err(Error::new(Class::Transient, what))
                    }
                }
            }
        };
        // who asked may have gone
        let _ = reply.send(answer);
        Ok(())
    }

    pub(super) fn reset(&mut self, s: &mut Session, reply: &Sender<Result<String>>) -> Result<()> {
        let by = self.tree.shared().superseded.take();
        let highest = by.map_or(GenId::default(), |(id, _)| id).max(self.high.get());
        let next = GenId { epoch: highest.epoch + 1, number: 0 };
        self.high.raise(next)?;
        self.tree.shared().high = next;
        s.be_thorough();
        self.cause = Some(Cause::Reset);
        let looked = self.look(s, true);
        self.cause = None;
        if let Err(e) = looked {
            let _ = reply.send(Err(Error::new(e.class, e.to_string())));
            return Err(e);
        }
        let head = self.tree.head.borrow().clone();
        let answer = match head.filter(|h| h.id.epoch > highest.epoch) {
            Some(head) => Ok(format!("what is in the tree now is published as generation {}", head.id)),
            None => Ok(format!(
                "epoch {} begins with the next publication; see `syncagent status`",
                highest.epoch + 1
            )),
        };
        let _ = reply.send(answer);
        Ok(())
    }
}

/// Nothing is in it at all.
fn is_empty(scanned: &Scanned) -> bool {
    scanned.root.object == Digest::of(&Object::default().encode())
}

/// A refusal in the words of a source.
pub(super) fn explain(refusal: &Refusal, limit: MaxDelete) -> String {
    match refusal {
        Refusal::EmptySource { there } => {
            format!(
                "the tree is empty now, and was published with {}: is it really there?",
                counted(*there, "file")
            )
        }
        Refusal::TooManyDeletions { lost, there, .. } => {
            format!(
                "{lost} of {there} files would be deleted on every mirror, more than max-delete = {limit} allows"
            )
        }
        refusal @ Refusal::Takeover { .. } => refusal.to_string(),
    }
}

/// Milliseconds, to the tenth.
fn ms(d: Duration) -> f64 {
    (d.as_secs_f64() * 10_000.0).round() / 10.0
}
