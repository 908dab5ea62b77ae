//! Calls that may hang on a dead mount. They run beside the runtime's workers, and only so many at a time: a
//! thread that hangs is never given up, so there must not be one more with each attempt.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Calls of one tree that may hang at once.
const AT_ONCE: usize = 2;

/// The door to the blocking threads.
#[derive(Clone)]
pub(super) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }

    /// Calls `work`; whoever waits for it has a time limit.
    ///
    /// # Errors
    /// What `work` gives, or that earlier calls still hang.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let permit = self.0.clone().try_acquire_owned();
        let permit = permit.map_err(|_| "earlier attempts still hang in the file system".to_owned())?;
        let work = move || {
            let done = work();
            drop(permit);
            done
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| "the attempt broke down".to_owned())?
    }
}
