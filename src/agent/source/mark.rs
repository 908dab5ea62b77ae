//! A hold is marked in the tree itself, too (`.syncagent/hold`): when the state directory is lost, what a job has half
//! written must not be published because nobody remembers the job.
//!
//! The mark is set after the hold is written down and before the command begins, and is taken away before the hold is
//! struck out. So a mark without a hold means one thing only: the record of the hold was lost. Where the tree cannot be
//! written to, and the mark stays, what strikes the hold out notes whose mark is void.

use std::io::Read as _;

use rustix::io::Errno;

use super::engine::Engine;
use super::hold::is_rollback;
use crate::agent::orders::{Held, Phase, Process};
use crate::disk::{Dir, wall_ms, write_atomic};
use crate::error::{Context as _, Error, Result};
use crate::plan::CONTROL_DIR;

const MARK: &str = "hold";
/// A mark is short.
const MAX: u64 = 64 << 10;
const LOST: &str = "the state directory was lost while this job held the tree, and nobody knows how it ended";

fn read(control: &Dir) -> Result<Option<Held>> {
    let cannot = || format!("read .syncagent/{MARK}");
    let file = match control.open_file(MARK.as_bytes()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e).context(cannot),
    };
    let mut text = Vec::new();
    std::fs::File::from(file).take(MAX).read_to_end(&mut text).context(cannot)?;
    // a hold it is, whatever is left of it
    let unknown = |_| Held {
        id: "damaged".into(),
        who: "unknown".into(),
        command: "unknown".into(),
        at_ms: wall_ms(),
        process: Process { pid: 0, started: 0 },
        phase: Phase::Running,
        failed_at_ms: None,
        before: None,
    };
    Ok(Some(serde_json::from_slice(&text).unwrap_or_else(unknown)))
}

impl Engine {
    /// The tree was opened: what it says of a hold, and what is written down, become one.
    ///
    /// # Errors
    /// The mark cannot be read, or a hold that was lost cannot be written down: then nothing may be published.
    pub(super) fn reconcile_mark(&self) -> Result<()> {
        let Some(control) = &self.control else { return Ok(()) };
        let marked = read(control)?;
        let (hold, void) = {
            let orders = &self.tree.shared().orders;
            (orders.hold.as_ref().map(|h| h.id.clone()), orders.void_mark.clone())
        };
        match (marked, hold) {
            (None, None) => {}
            (Some(marked), Some(id)) if marked.id == id => {}
            // of a version that knew no mark, or the tree's own directory was lost
            (_, Some(_)) => self.set_mark(),
            // its rollback was finished by this start, or it ended when the tree could not be written to
            (Some(marked), None)
                if self.rolled && is_rollback(&marked) || void.as_ref() == Some(&marked.id) =>
            {
                self.drop_mark()?;
            }
            (Some(marked), None) => self.adopt(marked)?,
        }
        if void.is_none() {
            return Ok(());
        }
        self.tree.order(|orders| {
            orders.void_mark = None;
            Ok(())
        })
    }

    /// Whether the control directory of a tree that cannot be written to tells of a hold that nobody remembers.
    ///
    /// # Errors
    /// The mark cannot be read.
    pub(super) fn is_marked(&self, control: &Dir) -> Result<bool> {
        let (held, void) = {
            let orders = &self.tree.shared().orders;
            (orders.hold.is_some(), orders.void_mark.clone())
        };
        Ok(!held && read(control)?.is_some_and(|marked| Some(marked.id) != void))
    }

    /// Nobody remembers the hold that the tree is marked with.
    fn adopt(&self, marked: Held) -> Result<()> {
        // a job that still runs can say itself how it ends
        let goes_on = marked.process.is_there();
        let who = format!("{}, for {}", marked.who, marked.command);
        let mut hold = marked;
        match &hold.phase {
            Phase::Failed(_) => {}
            _ if goes_on => hold.phase = Phase::Running,
            _ => hold.fails(LOST),
        }
        self.tree.order(|orders| {
            orders.hold = Some(hold);
            Ok(())
        })?;
        let what = if goes_on { "the state directory was lost; the job still runs" } else { LOST };
        tracing::warn!(tree = self.name(), "held by {who}: {what}");
        Ok(())
    }

    /// Marks the tree with the hold that is in force. Without a mark it is a hold all the same.
    pub(super) fn set_mark(&self) {
        let Some(control) = &self.control else { return };
        let Some(hold) = self.tree.shared().orders.hold.clone() else { return };
        let text = serde_json::to_vec(&hold).map_err(|e| Error::integrity(e.to_string()));
        let cannot =
            || format!("write .syncagent/{MARK}; should the state directory be lost, so is this hold");
        let written = text.and_then(|text| write_atomic(control, MARK, &text).context(cannot));
        if let Err(e) = written {
            tracing::warn!(tree = self.name(), "{e}");
        }
    }

    /// Takes the mark away. Where the tree cannot be written to, gives whose mark stays: that goes into
    /// [`Orders::void_mark`](crate::agent::orders::Orders) together with the end of the hold.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn drop_mark(&self) -> Result<Option<String>> {
        let Some(control) = &self.control else {
            let cannot = || format!("read .syncagent/{MARK}");
            // while the tree is being opened: `reconcile_mark` follows
            let Ok(root) = self.tree.root_handle() else { return Ok(None) };
            return match root.open_child(CONTROL_DIR) {
                Ok(control) => Ok(read(&control)?.map(|marked| marked.id)),
                Err(Errno::NOENT) => Ok(None),
                Err(e) => Err(e).context(cannot),
            };
        };
        let cannot = || format!("remove .syncagent/{MARK}");
        match control.unlink(MARK.as_bytes()) {
            Ok(()) => control.sync().context(cannot),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e).context(cannot),
        }?;
        Ok(None)
    }
}
