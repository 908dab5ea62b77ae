//! What was changed here by somebody else, and what the guard refuses.

use super::super::engine::{Engine, Session};
use super::super::remote::Remote;
use super::fetch::GONE;
use crate::agent::apply::TreeDiff;
use crate::agent::unpublished::{Unpublished, unpublished};
use crate::error::{Class, Error, Result};
use crate::model::{Digest, GenId, Generation, Kind, RefusedPlan, Root, State, counted};
use crate::plan::{Moves, Op, Refusal, Tally};
use crate::scan::{Objects, OldTree};

/// What drifted is named in the log up to so many paths.
const NAMED: u64 = 20;

impl Engine {
    /// What was changed here since `applied` came into place, and what of that was written here; `None` when nothing
    /// was changed.
    pub(super) fn drift(
        &self,
        s: &Session,
        applied: Option<(GenId, Digest)>,
        newest: &Generation,
        (diff, whole): (&TreeDiff<'_, '_>, &Tally),
    ) -> Result<Option<(Tally, Unpublished)>> {
        let Some((id, object)) = applied else {
            // managed by a sync before: nothing of it is known to be a generation's, nor to be written here
            return Ok((whole.lost > 0).then(|| (whole.clone(), Unpublished::default())));
        };
        let everything = || Ok(Some((whole.clone(), unpublished(diff)?)));
        if id == newest.id {
            let changed = whole.created + whole.updated + whole.attrs + whole.moved + whole.deleted;
            return if changed > 0 { everything() } else { Ok(None) };
        }
        let root = Root { object, ..newest.root.clone() };
        if s.store.has(&object)? && self.described(s, &root)?.object == s.scanned.root.object {
            return Ok(None);
        }
        let was = match self.fetch(s, &root) {
            Ok(was) => was,
            Err(e) if matches!(e.class, Class::Interrupted | Class::Integrity) => return Err(e),
            Err(e) if e.what.contains(GONE) => {
                // nobody knows any more what was applied: everything is judged
                return everything();
            }
            Err(e) => return Err(Error { class: Class::Transient, ..e }),
        };
        if was.object == s.scanned.root.object {
            return Ok(None);
        }
        let remote = Remote::of(&self.tree, s, was);
        let trees = s.against(&remote, &self.owners);
        let (old, new) = (OldTree(&s.index), Objects(&remote));
        let diff = trees.diff(&old, &new, false);
        name_drift(self.tree.name(), &diff)?;
        Ok(Some((trees.plan(&diff, false)?.tally, unpublished(&diff)?)))
    }

    pub(super) fn refuse(&self, id: &str, refusal: &Refusal, lost: u64) {
        let reason = match refusal {
            Refusal::Takeover { lost, replaced } => format!(
                "the tree here was never managed by syncagent (or holds excluded content that nobody handed over), is not \
                 empty, and would lose {} by deletion and {replaced} by replacement",
                counted(*lost, "file")
            ),
            Refusal::TooManyDeletions { lost, there, limit } => format!(
                "{lost} of {there} files that were added or changed here would be lost, more than max-delete = {limit} allows"
            ),
            refusal @ Refusal::EmptySource { .. } => refusal.to_string(),
        };
        let name = self.tree.name();
        let hint =
            format!("{reason}. To let exactly this through, on this node: syncagent approve {name} {id}");
        self.tree.shared().plan = Some(RefusedPlan { id: id.to_owned(), reason, lost });
        self.trouble(State::Refused, hint);
    }
}

pub(super) fn name_drift(tree: &str, diff: &TreeDiff<'_, '_>) -> Result<()> {
    let mut count = 0;
    diff.walk(&Moves::default(), &mut |step| {
        count += 1;
        if count <= NAMED {
            let how = match step.op {
                Op::Create => "was removed here",
                Op::Delete => "was added here",
                Op::Attrs if step.kind() == Kind::Dir => return Ok(()),
                _ => "was changed here",
            };
            tracing::warn!(tree, "drift: {} {how}", step.path);
        }
        Ok(())
    })?;
    if count > NAMED {
        tracing::warn!(tree, "drift: and {} more", counted(count - NAMED, "path"));
    }
    Ok(())
}
