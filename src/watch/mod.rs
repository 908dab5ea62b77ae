//! What changed in a tree, as a hint; and whether a changed file is finished.
//!
//! A hint, because events get lost, and see neither mapped writes nor what other hosts do: they say where to
//! look soon, and a full scan now and then finds the rest. Nothing is ever deleted on an event's word.

mod archive;
mod changes;
mod events;
mod finished;
mod native;
mod settle;

pub use changes::{Changes, Touched};
pub use finished::{Unfinished, unfinished};
pub use native::Watcher;
pub use settle::{Held, Settle};

/// The check of an archive.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let read = |buf: &mut [u8], at: u64| {
        let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    };
    let _ = archive::check(read, bytes.len() as u64);
}
