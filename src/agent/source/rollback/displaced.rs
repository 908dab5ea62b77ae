//! What a rollback would displace although it was never published: nobody else has that.

use std::collections::BTreeSet;

use super::super::engine::{Engine, Session};
use super::NAMED;
use crate::agent::unpublished::unpublished;
use crate::error::{Class, Error, Result};
use crate::model::{TreePath, listed};
use crate::plan::{Diff, Options, Side};
use crate::scan::{OldTree, Published, ROOT_ID, Scanned};

impl Engine {
    /// The paths of the tree at which something lies that the newest generation has not. What of them the rollback
    /// (`diff`) displaces goes to the trash whatever `keep` is.
    ///
    /// # Errors
    /// [`Class::Refused`]: it would be more than the trash takes, and so be lost.
    pub(super) fn never_published<N: Side>(
        &self,
        s: &Session,
        scanned: &Scanned,
        diff: &Diff<'_, OldTree<'_>, N>,
    ) -> Result<BTreeSet<TreePath>> {
        let Some(base) = self.base.as_ref().filter(|base| base.root.object != scanned.root.object) else {
            return Ok(BTreeSet::new());
        };
        let published = Published(&self.tree.store);
        let written = unpublished(&Diff {
            old: &OldTree(&s.index),
            old_root: Some(ROOT_ID),
            new: &published,
            new_root: base.root.object,
            options: Options::default(),
        })?;
        let displaced = unpublished(diff)?.bytes.min(written.bytes);
        let most = self.trash_keep().bytes;
        if displaced > most {
            let named = listed(written.paths.iter(), NAMED, ", ");
            let what = format!(
                "{} has {displaced} bytes that were never published and would be lost, because the trash takes {most} bytes \
                 (keep-bytes): {named}; nothing was changed. Save them elsewhere, have them published, or raise keep-bytes",
                self.name(),
            );
            return Err(Error::new(Class::Refused, what));
        }
        Ok(written.paths)
    }
}
