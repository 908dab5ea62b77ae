//! A last-in-first-out queue of jobs for a few threads. Last in, first out walks a tree depth first, so
//! that what is in flight stays small however large the tree is.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::error::{Result, lock};

struct State<J> {
    jobs: Vec<J>,
    running: usize,
    failed: bool,
}

/// The queue.
pub(crate) struct Pool<J> {
    state: Mutex<State<J>>,
    wake: Condvar,
}

impl<J: Send> Pool<J> {
    /// A queue with its first jobs.
    pub(crate) fn new(jobs: Vec<J>) -> Self {
        Self { state: Mutex::new(State { jobs, running: 0, failed: false }), wake: Condvar::new() }
    }

    /// Adds jobs; the last one is taken first.
    pub(crate) fn push(&self, jobs: impl IntoIterator<Item = J>) {
        let mut state = lock(&self.state);
        state.jobs.extend(jobs);
        drop(state);
        self.wake.notify_all();
    }

    /// Runs all jobs, and those that they add, on `threads` threads. The first error ends it.
    ///
    /// # Errors
    /// The first error of a job.
    pub(crate) fn run(&self, threads: usize, work: impl Fn(J) -> Result<()> + Sync) -> Result<()> {
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(|| self.work(&work))).collect();
            let mut result = self.work(&work);
            for helper in helpers {
                let other = helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result = result.and(other);
            }
            result
        })
    }

    fn work(&self, work: &(impl Fn(J) -> Result<()> + Sync)) -> Result<()> {
        let mut state = lock(&self.state);
        loop {
            if state.failed {
                return Ok(());
            }
            if let Some(job) = state.jobs.pop() {
                state.running += 1;
                drop(state);
                let done = Finish { pool: self };
                let result = work(job);
                drop(done);
                state = lock(&self.state);
                if result.is_err() {
                    state.failed = true;
                    self.wake.notify_all();
                    return result;
                }
            } else if state.running == 0 {
                self.wake.notify_all();
                return Ok(());
            } else {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Counts a job as finished even when it panics, so that the other threads end.
struct Finish<'a, J> {
    pool: &'a Pool<J>,
}

impl<J> Drop for Finish<'_, J> {
    fn drop(&mut self) {
        let mut state = lock(&self.pool.state);
        state.running -= 1;
        state.failed |= std::thread::panicking();
        if state.running == 0 || state.failed {
            self.pool.wake.notify_all();
        }
    }
}
