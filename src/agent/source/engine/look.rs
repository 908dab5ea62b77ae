//! A look at the tree: what may have changed is scanned, and what is finished is published.

use super::super::publish::Published;
use super::gate::Gated;
use super::gate::Looked;
use super::{Engine, PIN, Session};
use crate::agent::pin;
use crate::apply::Pin;
use crate::disk::boot_ms;
use crate::error::{Error, Result};
use crate::model::{HeldPath, State, TreePath, WatchStatus, escaped};
use crate::scan::{Counters, Only, Scanned, Spec, scan};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Held files that status names.
const MAX_HELD: usize = 100;

impl Engine {
    /// Scans what may have changed, and publishes what is finished; when `asked` to, also what is not quiet yet.
    pub(in crate::agent::source) fn look(&mut self, s: &mut Session, asked: bool) -> Result<()> {
        self.gather(s);
        s.settle.started();
        let asked = asked || self.is_publishing_hold();
        let flush = self.tree.shared().flush.0;
        let begun = Instant::now();
        let dirty = std::mem::take(&mut s.dirty);
        let only = (!std::mem::take(&mut s.full)).then(|| {
            let mut dirs = dirty.to_list();
            dirs.extend(s.settle.held().filter_map(|held| held.path.parent()));
            Only::new(dirs.iter(), dirty.deep.into_iter().collect())
        });
        if only.is_none() {
            s.next_full = begun + self.tree.role.scan_interval;
            s.flush = flush;
        }
        let scanned = match self.scan(s, only.as_ref()) {
            Ok(scanned) => scanned,
            Err(e) => {
                // the next session begins with everything
                self.tree.woken.store(false, Ordering::Release);
                return Err(e);
            }
        };
        s.look_took = begun.elapsed();
        // what happened meanwhile may be the second half of what the scan saw
        self.gather(s);
        let now = Instant::now();
        s.looked = now;
        let finished = s.settle.scanned(&scanned.held, now);
        let may_publish = finished && (asked || s.settle.is_quiet(now));
        self.show(s);
        if !may_publish {
            self.show_pending(s);
            self.tree.shared().looked = s.flush;
            return Ok(());
        }
        let published = self.publish(s, &scanned, only.is_none())?;
        self.hold_ended(&scanned, &published);
        match published {
            Published::Yes | Published::Unchanged => {
                s.settle.published();
                let mut shared = self.tree.shared();
                // what cannot be read is not published either; a part says nothing of what lies elsewhere
                let unread = !scanned.errors.is_empty() || only.is_some() && s.unreadable;
                if scanned.held.is_empty() && !unread {
                    shared.flush.1 = shared.flush.1.max(s.flush);
                }
                shared.state = State::Current;
                shared.plan = None;
                match scanned.errors.first() {
                    // a part says nothing of what cannot be read elsewhere
                    None if only.is_some() && s.unreadable => {}
                    None => shared.trouble.clear(),
                    Some(e) => {
                        let more = scanned.errors.len() - 1;
                        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
                        shared.trouble.set(format!("{}: {}{more}", e.path, e.error));
                    }
                }
                if only.is_none() {
                    s.unreadable = !scanned.errors.is_empty();
                    drop(shared);
                    let now = pin::of(&s.dir, &s.path, &s.mount, &scanned.mounts)?;
                    if self.tree.state.read::<Pin>(PIN).as_ref() != Some(&now) {
                        self.tree.state.write(PIN, &now)?;
                    }
                }
            }
            // tried again when something changes, and with every full scan
            Published::Not => {}
        }
        self.show_pending(s);
        self.tree.shared().looked = s.flush;
        Ok(())
    }

    fn scan(&self, s: &mut Session, only: Option<&Only>) -> Result<Scanned> {
        self.scan_as(s, only, Gated::Fully)
    }

    /// As `gated` says, files that are not finished are described as they were published.
    pub(in crate::agent::source) fn scan_as(
        &self,
        s: &mut Session,
        only: Option<&Only>,
        gated: Gated,
    ) -> Result<Scanned> {
        self.check_mounts(s)?;
        let looked = Looked {
            settle: &s.settle,
            // without events only the times tell
            quiet: s.watcher.degraded().filter(|_| gated != Gated::ByUse).map(|_| self.tree.role.settle),
            store: &self.tree.store,
            base: self.base.as_ref().map(|b| b.root.object),
            done: self.is_publishing_hold(),
            only_marks: gated == Gated::Not,
        };
        let entering = |dir: &TreePath| s.watcher.watch(dir);
        let spec = Spec {
            root: &s.dir,
            shown: &escaped(&s.path),
            index: &s.index,
            filter: &self.filter,
            policy: &self.policy,
            owners: &self.owners,
            rehash: std::mem::take(&mut s.distrust),
            setid: self.tree.config.setid,
            gate: Some(&looked),
            entering: Some(&entering),
            only,
            known: None,
            counters: &Counters::default(),
        };
        s.index.begin()?;
        let scanned = scan(&[spec], self.threads, &self.tree.stop)?.pop();
        s.index.commit()?;
        self.check_mounts(s)?;
        let scanned = scanned.ok_or_else(|| Error::integrity("the scan lost a tree"))?;
        if only.is_none() {
            let now = pin::of(&s.dir, &s.path, &s.mount, &scanned.mounts)?;
            if let Some(old) = self.tree.state.read::<Pin>(PIN) {
                pin::check_below(&old, &now, &self.remedy())?;
            }
            s.mounts = scanned.mounts.iter().cloned().zip(now.mounts.into_iter().map(|m| m.mount)).collect();
        }
        Ok(scanned)
    }

    /// The tree is where it was, and so is everything that is mounted in it.
    fn check_mounts(&self, s: &Session) -> Result<()> {
        pin::check_again(&s.dir, &s.path, &s.mount)?;
        pin::check_mounts(&s.dir, &s.mounts, &self.remedy())
    }

    /// Puts what the look found where status reads it.
    pub(super) fn show(&self, s: &Session) {
        let mut held: Vec<HeldPath> = s
            .settle
            .held()
            .map(|h| HeldPath {
                path: h.path.to_string(),
                why: h.why.to_owned(),
                for_ms: u64::try_from(h.since.elapsed().as_millis()).unwrap_or(0),
            })
            .collect();
        let reason = s.watcher.degraded();
        let watch = WatchStatus {
            native: reason.is_none(),
            directories: s.watcher.count() as u64,
            reason: reason.clone(),
        };
        let count = held.len() as u64;
        held.truncate(MAX_HELD);
        let before = {
            let mut shared = self.tree.shared();
            (shared.held_count, shared.held) = (count, held);
            std::mem::replace(&mut shared.watch, watch)
        };
        // not under the lock: who reads the log may hang
        if let Some(reason) = &reason
            && before.reason.as_ref() != Some(reason)
        {
            tracing::warn!(tree = self.name(), "{reason}");
        }
    }

    /// How old the oldest unpublished change is, and whether anything waits to settle.
    pub(super) fn show_pending(&self, s: &Session) {
        let now = Instant::now();
        let age = s.settle.unpublished_age(now);
        // what is flagged waits for itself alone
        let waits =
            s.settle.due().is_some() && (s.settle.held().count() == 0 || s.settle.held().any(|h| !h.flagged));
        let mut shared = self.tree.shared();
        shared.unpublished_since =
            age.map(|age| boot_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(0)));
        if shared.state == State::Current && waits {
            shared.state = State::Settling;
        }
    }
}
