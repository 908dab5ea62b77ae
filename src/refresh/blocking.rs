//! Calls that may hang on a dead mount, or on a file that is none. They run beside the runtime's workers, and only so many
//! at a time: a thread that hangs is never given up, so there must not be one more with each attempt. But what hangs stands
//! in nobody's way who wants other files, nor in that of a file which took the place of the one that hangs.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::error::lock;

/// Calls about the same files that may hang at once.
const AT_ONCE: usize = 2;
/// Calls of one tree, about whatever.
const MOST: usize = 32;

/// What a call is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum About {
    /// Which files these are.
    Names(Vec<PathBuf>),
    /// Device and inode of each; `None` for one that is not there. What hangs in a file keeps its inode from another one.
    Files(Vec<Option<(u64, u64)>>),
}

/// The door to the blocking threads.
#[derive(Clone)]
pub(super) struct Gate(Arc<Mutex<HashMap<About, usize>>>);

/// A call's place, given back when dropped.
struct Place(Gate, About);

impl Gate {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// Calls `work`, which is about these files; whoever waits for it has a time limit.
    ///
    /// # Errors
    /// What `work` gives, or that earlier calls still hang.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        files: Vec<PathBuf>,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let named = files.clone();
        let look =
            move || Ok(named.iter().map(|f| std::fs::metadata(f).ok().map(|m| (m.dev(), m.ino()))).collect());
        // also this hangs on a dead mount
        let files = if files.is_empty() { Vec::new() } else { self.place(About::Names(files), look).await? };
        self.place(About::Files(files), work).await
    }

    async fn place<T: Send + 'static>(
        &self,
        about: About,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let place = self.enter(about).ok_or("earlier attempts still hang in the file system")?;
        let work = move || {
            let done = work();
            drop(place);
            done
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| "the attempt broke down".to_owned())?
    }

    fn enter(&self, about: About) -> Option<Place> {
        let mut places = lock(&self.0);
        let taken = places.get(&about).copied().unwrap_or(0);
        if taken >= AT_ONCE || places.values().sum::<usize>() >= MOST {
            return None;
        }
        places.insert(about.clone(), taken + 1);
        Some(Place(self.clone(), about))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = lock(&self.0.0);
        if let Some(taken) = places.get_mut(&self.1) {
            *taken -= 1;
            if *taken == 0 {
                places.remove(&self.1);
            }
        }
    }
}
