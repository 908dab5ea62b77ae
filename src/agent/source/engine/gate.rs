//! Which files a scan of the source takes for finished.

use crate::disk::Stat;
use crate::model::{Digest, Entry, TreePath};
use crate::scan::{Gate, Store};
use crate::watch::{Settle, unfinished};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Which files a scan describes as they were published.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::agent::source) enum Gated {
    /// Those that are not finished, or changed shortly ago.
    Fully,
    /// Those that are not finished, whatever their times are.
    ByUse,
    /// None: all are described as they are. What is not finished is judged anew by the next scan.
    Not,
}

/// Which files are not finished, and what was published of them.
pub(super) struct Looked<'a> {
    pub(super) settle: &'a Settle,
    pub(super) quiet: Option<Duration>,
    pub(super) store: &'a Store,
    pub(super) base: Option<Digest>,
    /// Whoever wrote says that it is done: quiet time is not waited for.
    pub(super) done: bool,
    pub(super) only_marks: bool,
}

impl Gate for Looked<'_> {
    fn unfinished(&self, path: &TreePath, fd: BorrowedFd<'_>, stat: &Stat) -> Option<String> {
        let changed = |ms: u128| Some(format!("it changed {ms} ms ago"));
        let now = Instant::now();
        let busy = if self.done { self.settle.is_open(path, now) } else { self.settle.is_busy(path, now) };
        if let Some(quiet) = busy {
            return changed(quiet.as_millis());
        }
        let age = crate::disk::now().nanos() - stat.id.ctime.max(stat.mtime).nanos();
        if !self.done && self.quiet.is_some_and(|quiet| (0..quiet.as_nanos() as i128).contains(&age)) {
            return changed(age.unsigned_abs() / 1_000_000);
        }
        unfinished(fd, path.split().1, stat.size).map(|why| why.to_string())
    }

    fn published(&self, path: &TreePath) -> Option<Entry> {
        self.store.find(&self.base?, path)
    }

    fn only_marks(&self) -> bool {
        self.only_marks
    }
}
