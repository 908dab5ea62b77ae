//! Connections for blocking threads. Each has its own small runtime that only runs while a thread waits in it: the
//! thread that waits for the bytes is the one that the kernel wakes, which was measured 10 % faster than
//! waiting for a shared runtime's thread to pass the word on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::link::Link;
use crate::error::{Class, Context as _, Error, Result};

/// Fewer than a node may have requests under way.
const LANES: usize = 6;
/// How often a thread that found none free looks again.
const AGAIN: Duration = Duration::from_millis(5);

/// The lanes of one client.
#[derive(Default)]
pub(super) struct Lanes([Mutex<Lane>; LANES]);

/// A connection, once it was opened, and what drives it.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) link: Option<Link>,
    runtime: Option<Runtime>,
}

impl Lanes {
    /// Waits for a free lane; it gives itself back.
    pub(super) fn take(&self, cancel: &AtomicBool) -> Result<MutexGuard<'_, Lane>> {
        while !cancel.load(Ordering::Relaxed) {
            for lane in &self.0 {
                match lane.try_lock() {
                    Ok(lane) => return Ok(lane),
                    // its link was taken out before it was used
                    Err(TryLockError::Poisoned(lane)) => return Ok(lane.into_inner()),
                    Err(TryLockError::WouldBlock) => {}
                }
            }
            std::thread::sleep(AGAIN);
        }
        Err(Error::new(Class::Interrupted, "interrupted"))
    }
}

impl Lane {
    /// Runs `work` on this thread.
    pub(super) fn block_on<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let runtime = match &mut self.runtime {
            Some(runtime) => runtime,
            none => {
                let new = Builder::new_current_thread().enable_all().build();
                none.insert(new.context(|| "set up a connection".to_owned())?)
            }
        };
        runtime.block_on(work)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.link = None;
        // the last clone of a client may go in async code, and a name look-up may hang
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
