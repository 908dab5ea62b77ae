//! Errors by what the caller can do about them. Code retries on a [`Class`], never on a text.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::TreePath;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// May pass by itself: try again later.
    Transient,
    /// Will fail again in the same way until somebody changes something.
    Permanent,
    /// Content is not what its digest says, or our own data is damaged.
    Integrity,
    /// Wrong usage or configuration.
    Config,
    /// Somebody else holds the lock.
    Busy,
    /// A guard said no; nothing was changed.
    Refused,
    /// The user or the system asked the program to stop.
    Interrupted,
}

/// An error with what was attempted, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{what}{}", source_text(.source))]
pub struct Error {
    /// What the caller can do.
    pub class: Class,
    /// What was attempted and where, and a hint when there is one.
    pub what: String,
    /// The operating system's answer, when there was one.
    pub source: Option<io::Error>,
}

fn source_text(source: &Option<io::Error>) -> String {
    source.as_ref().map(|e| format!(": {e}")).unwrap_or_default()
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a cause from the operating system.
    pub fn new(class: Class, what: impl Into<String>) -> Self {
        Self { class, what: what.into(), source: None }
    }

    /// An operating-system error, with what was attempted; the class follows from the code.
    pub fn io(source: impl Into<io::Error>, what: impl Into<String>) -> Self {
        let source = source.into();
        if class_of(&source) == Class::Interrupted {
            return Self::new(Class::Interrupted, "interrupted");
        }
        Self { class: class_of(&source), what: what.into(), source: Some(source) }
    }

    /// Damaged or lying data.
    pub fn integrity(what: impl Into<String>) -> Self {
        Self::new(Class::Integrity, what)
    }

    /// The errno, when the operating system gave one.
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        self.source.as_ref().and_then(rustix::io::Errno::from_io_error)
    }
}

fn class_of(e: &io::Error) -> Class {
    // what our own loops give when they are asked to end
    if rustix::io::Errno::from_io_error(e) == Some(rustix::io::Errno::CANCELED) {
        return Class::Interrupted;
    }
    match e.kind() {
        io::ErrorKind::Interrupted
        | io::ErrorKind::TimedOut
        | io::ErrorKind::WouldBlock
        | io::ErrorKind::StaleNetworkFileHandle => Class::Transient,
        _ => Class::Permanent,
    }
}

/// Adds to an operating-system error what was attempted and on which path.
pub trait Context<T> {
    /// `attempt` reads as "cannot {attempt}".
    fn context(self, attempt: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, attempt: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::io(e, format!("cannot {}", attempt())))
    }
}

/// A path of the tree that could not be brought over, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathError {
    /// Relative to the tree's root.
    pub path: TreePath,
    /// What was attempted and the cause, one line.
    pub error: String,
}

/// Locks, also after a panic elsewhere: that one is in the log, and no state behind our locks is left half changed by it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
