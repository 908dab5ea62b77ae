//! `syncagent rollback`: an older generation's content comes back into the tree, and is published as a new generation.
//!
//! Order: what is there is scanned → the plan to the old state → every content that it needs is found (in the tree, among
//! what is kept, in the trash, else by [`seek`](super::seek) at the mirrors) → the guard → staged → journal → renames →
//! published at once. Until the journal nothing in the tree changes; after it a crash is rolled forward at the next start.
//! When not all of it can be put in place, the tree is held until somebody decides. What is displaced goes to the
//! trash within `keep`; what was never published, or what somebody wrote meanwhile, as drift, whatever `keep` is.

mod bring;
mod contents;
mod displaced;
mod order;
mod publish;
mod record;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::OnceLock;
use std::sync::mpsc::Sender;
use std::time::Instant;

use contents::Old;
pub(super) use contents::gone_text;
pub use order::{RollbackAnswer, RollbackOrder};
use order::{counts, partly};
use record::Phase;
pub(super) use record::Rolling;

use super::engine::{Engine, Gated, Session};
use super::publish::Published;
use super::retain::KEEP;
use super::seek::SOUGHT;
use crate::apply::{Control, Journal, discard_stage, is_undecided, prune};
use crate::error::{Class, Error, Result};
use crate::model::{Cause, Digest, GenId, Generation, Node, NodeId, Object, TreePath};
use crate::peer::Sought;
use crate::plan::{Counted, Diff, Facts, Op, Options, PlanId, Tally, count, judge};
use crate::scan::{Objects, OldTree, Only, ROOT_ID, Scanned};

/// Paths that a message names.
const NAMED: usize = 20;

/// What came of an order.
pub(super) enum Tried {
    Done(Box<RollbackAnswer>),
    /// Nothing was done, because these contents are not on this host.
    Lacks {
        /// The generation that it shall go to, and the one that it was planned against.
        to: GenId,
        head: GenId,
        lacks: Vec<Sought>,
    },
}

/// What is known when an order is planned anew.
#[derive(Clone, Default)]
pub(super) struct Again {
    /// What mirrors have, or have sent.
    pub(super) sought: HashMap<Digest, NodeId>,
    /// What it was planned against before.
    pub(super) head: Option<GenId>,
}

impl Engine {
    /// Rolls back, and answers; an error is one that ends the session.
    pub(super) fn roll_back(
        &mut self,
        s: &mut Session,
        order: &RollbackOrder,
        again: &Again,
        reply: &Sender<Result<Tried>>,
    ) -> Result<()> {
        let done = self.try_rollback(s, order, again);
        self.approved = None;
        self.cause = None;
        let ends = match &done {
            Ok(_) => None,
            // whatever became of it, the next session finds out
            Err(e) if self.rolling.is_some() && !self.rolled => {
                Some(Error::new(Class::Transient, e.to_string()))
            }
            Err(e) if e.class == Class::Integrity => Some(Error::new(e.class, e.to_string())),
            // what was decided is carried out by the next session
            Err(e) => match Journal::pending(&Control::open(&s.path)?.dir) {
                Ok(None) => None,
                _ => Some(Error::new(Class::Transient, e.to_string())),
            },
        };
        // who asked may have gone
        let _ = reply.send(done);
        ends.map_or(Ok(()), Err)
    }

    fn try_rollback(
        &mut self,
        s: &mut Session,
        order: &RollbackOrder,
        Again { sought, head: expected }: &Again,
    ) -> Result<Tried> {
        let begun = Instant::now();
        let name = self.name().to_owned();
        let refused = |what: String| Err(Error::new(Class::Refused, what));
        if s.own_high.is_none() {
            let what = format!("{name} cannot be written to by the agent; see its log");
            return Err(Error::new(Class::Permanent, what));
        }
        if self.is_superseded() {
            return refused(format!("{name} publishes nothing at present; see `syncagent status`"));
        }
        let paused = self.tree.shared().orders.paused.as_ref().map(|by| by.who.clone());
        if let Some(who) = paused {
            return refused(format!("{name} is paused by {who}; syncagent resume {name} first"));
        }
        if self.may_not_publish() && !self.is_held_by_rollback() {
            return refused(format!("{name} is held; nothing is published while it is"));
        }
        if self.is_publishing_hold() {
            return refused(format!(
                "what a hold of {name} wrote is being published; try again when that is done"
            ));
        }
        let approve =
            order.approve.as_deref().map(|id| id.parse::<PlanId>().map_err(|e| Error::new(Class::Config, e)));
        let approve = approve.transpose()?;
        let target = self.target(order.to)?;
        let head = self.tree.head.borrow().as_ref().map(|head| head.id).unwrap_or_default();
        if expected.is_some_and(|expected| expected != head) {
            return refused(format!(
                "{name} published generation {head} while contents were sought among the mirrors; nothing was changed. See \
                 `syncagent history {name}`, and order it again if it is still right"
            ));
        }
        let control = Control::open(&s.path)?;
        let scanned = self.as_it_is(s)?;
        // until something is changed, what the next look finds must be judged again
        Self::judge_again(s);
        let (old, tree) = (OldTree(&s.index), self.tree.clone());
        let source = Old {
            store: &tree.store,
            root: target.root.clone(),
            tree: &s.dir,
            control: &control.dir,
            keep: control.dir.open_child(KEEP).ok(),
            sought: control.dir.open_child(SOUGHT).ok().filter(|_| !sought.is_empty()),
            found: OnceLock::new(),
        };
        let new = Objects(&source);
        let diff = Diff {
            old: &old,
            old_root: Some(ROOT_ID),
            new: &new,
            new_root: target.root.object,
            options: Options::default(),
        };
        let plan = if scanned.root.object == target.root.object {
            Counted { moves: Default::default(), tally: Tally::new(false), conflicts: Vec::new() }
        } else {
            count(&diff, false)?
        };
        if let Some(e) = plan.conflicts.first() {
            return refused(format!("{}: {}; nothing was changed", e.path, e.error));
        }
        let mut needed: HashMap<Digest, (u64, TreePath)> = HashMap::new();
        diff.walk(&plan.moves, &mut |step| {
            if let (Op::Create | Op::Update, Some(new)) = (step.op, step.new)
                && let Node::File { size, digest } = &new.node
                && *size > 0
            {
                needed.entry(*digest).or_insert_with(|| (*size, step.path.clone()));
            }
            Ok(())
        })?;
        let aside = self.never_published(s, &scanned, &diff)?;
        let approved = self.judged(&target, approve)?;
        let mut mirrors: BTreeMap<NodeId, u64> = BTreeMap::new();
        for node in needed.keys().filter_map(|digest| sought.get(digest)) {
            *mirrors.entry(node.clone()).or_default() += 1;
        }
        needed.retain(|digest, _| !sought.contains_key(digest));
        let found = match self.find(s, &control, source.keep.as_ref(), &scanned, needed)? {
            Ok(found) => found,
            Err(lacks) => return Ok(Tried::Lacks { to: target.id, head, lacks }),
        };
        let _ = source.found.set(found);
        let root_attrs = scanned.root.header != target.root.header;
        let mut answer = RollbackAnswer {
            message: String::new(),
            to: target.id,
            generation: None,
            created: plan.tally.created,
            updated: plan.tally.updated,
            attrs: plan.tally.attrs + u64::from(root_attrs),
            moved: plan.tally.moved,
            deleted: plan.tally.deleted,
            bytes: plan.tally.bytes,
            mirrors,
            retention: self.tree.retain.status(),
        };
        if order.dry_run {
            answer.message = format!("would roll {name} back to {}: {}", target.id, counts(&answer));
            return Ok(Tried::Done(Box::new(answer)));
        }
        let rolling = Rolling {
            to: target.id,
            root: target.root.clone(),
            approved: approved.map(|p| p.to_string()),
            phase: Phase::Begun,
            against: Some(head),
            before: None,
            taken_up: false,
        };
        let (before, was_rolled) = (self.rolling.clone(), self.rolled);
        self.begin_record(rolling)?;
        let steps = answer.created + answer.updated + answer.attrs + answer.moved + answer.deleted;
        let mut seq = None;
        let mut touched = BTreeSet::new();
        if steps > 0 {
            let header = root_attrs.then_some(&target.root.header);
            let (number, dirs, done) =
                match self.bring_back(s, &control, &source, (&diff, aside), &plan, header) {
                    Ok(brought) => brought,
                    Err(e) => {
                        let begun = self.rolling.as_ref().is_some_and(|r| r.phase == Phase::Begun);
                        if begun || is_undecided(&control)? {
                            self.back_to(before, was_rolled)?;
                            // the index may hold what was staged
                            (s.full, s.distrust) = (true, true);
                            discard_stage(&control)?;
                        }
                        return Err(e);
                    }
                };
            if !done.errors.is_empty() {
                self.tree.retain.trash_changed();
                self.came_partly(target.id, &done.errors)?;
                if let Err(e) = self.forget_rollback() {
                    // the next start holds the tree for it once more
                    tracing::warn!(tree = name, "{e}");
                }
                s.be_thorough();
                let what = format!(
                    "{}; {name} is held now. When the cause is gone: syncagent rollback {name} --to {}. What was displaced is \
                     in the trash of commit {number}. To publish the tree as it is: syncagent hold {name} --release",
                    partly(target.id, &done.errors),
                    target.id
                );
                return Err(Error::new(Class::Permanent, what));
            }
            seq = Some(number);
            touched = dirs;
        }
        self.rolled = true;
        self.enter(Phase::Done)?;
        self.end_hold_by_rollback()?;
        let before = self.tree.head.borrow().as_ref().map(|h| h.id);
        self.cause = Some(Cause::Rollback { to: target.id });
        let published = self.publish_now(s, &touched, approved)?;
        let head = self.tree.head.borrow().clone();
        let head = head.filter(|h| Some(h.id) > before);
        if let Err(e) = prune(&control, self.trash_keep()) {
            tracing::warn!(tree = name, "{e}");
        }
        self.tree.retain.trash_changed();
        let Some(head) = head else {
            if steps == 0 {
                answer.message =
                    format!("{name} is as generation {} already; nothing was changed", target.id);
                return Ok(Tried::Done(Box::new(answer)));
            }
            if matches!(published, Published::Unchanged) {
                let (to, counts) = (target.id, counts(&answer));
                answer.message = format!(
                    "{name} is as its newest generation {to} again: {counts}; there is nothing new to publish"
                );
                return Ok(Tried::Done(Box::new(answer)));
            }
            // it is published as that with the next look
            let what = format!(
                "the tree is as generation {} again, but it could not be published at once: somebody wrote into it \
                 meanwhile, or the guard refused; see `syncagent status {name}`",
                target.id
            );
            return Err(Error::new(Class::Transient, what));
        };
        if let Some(seq) = seq {
            self.tree.history.commit(seq, head.id);
        }
        answer.generation = Some(head.id);
        answer.message =
            format!("rolled {name} back to {}: {}; published as {}", target.id, counts(&answer), head.id);
        if head.root.object != target.root.object {
            answer.message +=
                "; what somebody wrote meanwhile, or what is excluded keeps in it, is in it, too";
        }
        tracing::info!(
            tree = name,
            generation = %head.id,
            to = %target.id,
            took_ms = begun.elapsed().as_millis() as u64,
            "rolled back"
        );
        Ok(Tried::Done(Box::new(answer)))
    }

    /// The generation to go back to.
    fn target(&self, to: Option<GenId>) -> Result<Generation> {
        let name = self.name();
        let bad = |what: String| Error::new(Class::Config, what);
        let all = self.tree.store.generations(super::publish::KEPT)?;
        let head =
            self.tree.head.borrow().clone().ok_or_else(|| bad(format!("{name} never published anything")))?;
        let found = match to {
            Some(id) => all.into_iter().find(|g| g.id == id).ok_or_else(|| {
                bad(format!(
                    "{name} has no generation {id} (any more); `syncagent history {name}` shows which it has"
                ))
            })?,
            None => all.into_iter().find(|g| g.id < head.id && g.root != head.root).ok_or_else(|| {
                bad(format!("{name} has no generation before {} that was different", head.id))
            })?,
        };
        if !self.tree.store.has(&found.root.object)? {
            let what = format!(
                "what was in generation {} is not known any more: directories are kept of the newest generations only \
                 (`keep` of the tree, at least 8); nothing was changed",
                found.id
            );
            return Err(Error::new(Class::Refused, what));
        }
        if found.filter != self.filter.id() {
            let what = format!(
                "generation {} was published with other include and exclude patterns; with those of now it cannot come \
                 back as it was. Nothing was changed",
                found.id
            );
            return Err(Error::new(Class::Refused, what));
        }
        Ok(found)
    }

    /// What is in the tree now, finished or not.
    fn as_it_is(&mut self, s: &mut Session) -> Result<Scanned> {
        self.gather(s);
        let everything = s.full || s.watcher.degraded().is_some();
        let only = (!everything).then(|| {
            let mut dirs = s.dirty.to_list();
            dirs.extend(s.settle.held().filter_map(|held| held.path.parent()));
            Only::new(dirs.iter(), s.dirty.deep.iter().cloned().collect())
        });
        self.scan_as(s, only.as_ref(), Gated::Not)
    }

    /// Without events nobody knows which files are not finished: the next look is at everything.
    fn judge_again(s: &mut Session) {
        s.full |= s.watcher.degraded().is_some();
    }

    /// The guard, as for a publication. Gives the approved plan.
    fn judged(&self, target: &Generation, approve: Option<PlanId>) -> Result<Option<PlanId>> {
        let Some(base) = &self.base else { return Ok(None) };
        let published = crate::scan::Published(&self.tree.store);
        let diff = Diff {
            old: &published,
            old_root: Some(base.root.object),
            new: &published,
            new_root: target.root.object,
            options: Options::default(),
        };
        let tally = count(&diff, false)?.tally;
        let is_empty = target.root.object == Digest::of(&Object::default().encode());
        let facts = Facts { there: base.files, source_is_empty: is_empty, unmanaged: false };
        let plan = tally.plan_id();
        match judge(&tally, facts, self.tree.config.max_delete) {
            None => Ok(None),
            Some(_) if approve == Some(plan) => Ok(approve),
            Some(refusal) => {
                let reason = super::publish::explain(&refusal, self.tree.config.max_delete);
                let what = format!(
                    "{reason}; nothing was changed. To let exactly this through: syncagent rollback {} --to {} --approve \
                     {plan}",
                    self.name(),
                    target.id
                );
                Err(Error::new(Class::Refused, what))
            }
        }
    }
}
