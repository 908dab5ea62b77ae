//! Exit codes: one documented enum.

use crate::error::Class;

/// What the process's exit code says. Where several apply: 130, 4, 1, 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Partly done; each path that failed was named.
    Partial = 3,
    /// A guard refused; nothing was changed.
    Refused = 4,
    /// `verify` found drift.
    Drift = 5,
    /// Somebody else holds the lock.
    Locked = 6,
    /// A time ran out.
    TimedOut = 7,
    /// Interrupted by a signal.
    Interrupted = 130,
}

impl From<Class> for Exit {
    fn from(class: Class) -> Self {
        match class {
            Class::Transient | Class::Permanent | Class::Integrity => Self::Failed,
            Class::Config => Self::Usage,
            Class::Busy => Self::Locked,
            Class::Refused => Self::Refused,
            Class::Interrupted => Self::Interrupted,
        }
    }
}
