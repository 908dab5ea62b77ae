//! Native events (inotify, by notify). Not notify's recursion, which loses files in new nested directories: the
//! scan watches every directory just before it lists it. What happens after the watch raises an event, and what
//! happened before is in the listing.
//!
//! Ordering: a directory enters the set of watched ones before notify is asked, so that an event that ends the
//! watch can take it out again at any time; when it was taken out meanwhile, the new watch is given up (the
//! same event made somebody look at the directory again). Locks: `native` before `state`; events only
//! take `state`, because a call of notify waits for the thread that handles them.
//!
//! After lost events no watch can be trusted (a rename may be among them), so all are dropped and the scan
//! that must follow sets them anew.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use notify::event::EventKindMask as Kinds;
use notify::{Config, ErrorKind, INotifyWatcher, RecursiveMode, WatchPathConfig, Watcher as _};

use rustix::io::Errno;

use super::changes::Changes;
use super::events::State;
use crate::disk::{Dir, FsClass, MountId};
use crate::error::{Context as _, Result, lock};
use crate::model::TreePath;
use crate::plan::CONTROL_DIR;

/// How long a failed watch waits for another try.
const RETRY: Duration = Duration::from_secs(5);

/// What happens in a tree, for the directories that were given to [`Watcher::watch`].
pub struct Watcher {
    shared: Arc<Shared>,
    native: Mutex<Option<INotifyWatcher>>,
    trouble: Mutex<Option<Trouble>>,
    /// The file system's type, when others can change it without an event here.
    foreign: Option<String>,
}

struct Shared {
    root: PathBuf,
    state: Mutex<(u64, State)>,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// Why directories are not watched.
struct Trouble {
    why: Why,
    retry_at: Instant,
}

enum Why {
    Watches,
    Instances(notify::Error),
    Other(String),
}

enum Added {
    Yes,
    /// Not there, or not ours to read; its parent's events tell when that changes.
    Needless,
    No(Why),
}

impl Watcher {
    /// Watches nothing yet. `root`: absolute, without links. `wake` is called from another thread when something
    /// is pending that was not before; it must be cheap and must not call back.
    ///
    /// # Errors
    /// The root cannot be opened.
    pub fn new(root: &Path, wake: impl Fn() + Send + Sync + 'static) -> Result<Self> {
        let dir = Dir::open_root(root).context(|| format!("open {}", root.display()))?;
        let foreign = (FsClass::of(&dir) != FsClass::Local)
            .then(|| MountId::of(&dir).map_or_else(|_| "this file system".to_owned(), |id| id.fs_type));
        let shared = Shared { root: root.to_owned(), state: Mutex::default(), wake: Box::new(wake) };
        Ok(Self { shared: Arc::new(shared), native: Mutex::default(), trouble: Mutex::default(), foreign })
    }

    /// Watches a directory of the tree unless it is watched. To be called right before it is listed, by one
    /// thread per directory. Never fails: a limit reached or another error shows in
    /// [`degraded`](Self::degraded), and [`take`](Self::take) tries again now and then.
    pub fn watch(&self, dir: &TreePath) {
        {
            let state = &mut lock(&self.shared.state).1;
            // the next `take` drops all watches when events were lost
            if state.watched.contains(dir) || state.missed.contains(dir) || state.lost {
                return;
            }
        }
        if dir.components().any(|part| part == CONTROL_DIR) {
            return;
        }
        // a limit that was reached is not asked for every directory again
        let full = matches!(&*lock(&self.trouble), Some(t) if !matches!(t.why, Why::Other(_)));
        if full {
            lock(&self.shared.state).1.missed.insert(dir);
        } else if let Added::No(why) = self.add(dir) {
            self.missed(dir, why);
        }
    }

    /// Everything that happened since the last call. With [`Changes::all`] after lost events all watches were
    /// dropped: the scan that follows must call [`watch`](Self::watch) for every directory.
    pub fn take(&self) -> Changes {
        if lock(&self.shared.state).1.lost {
            self.reset();
        }
        self.retry();
        std::mem::take(&mut lock(&self.shared.state).1.changes)
    }

    /// `None`: events tell of every change. `Some(reason)`: they do not, and the caller must poll.
    pub fn degraded(&self) -> Option<String> {
        let foreign =
            self.foreign.as_ref().map(|fs| format!("{fs}: other nodes' changes raise no events here"));
        let (watched, missed) = {
            let state = &lock(&self.shared.state).1;
            (state.watched.len(), state.missed.len())
        };
        let trouble = lock(&self.trouble);
        let limit = trouble.as_ref().filter(|_| missed > 0).map(|t| t.why.text(watched, missed));
        match (limit, foreign) {
            (Some(limit), Some(foreign)) => Some(format!("{limit}; {foreign}")),
            (limit, foreign) => limit.or(foreign),
        }
    }

    /// Directories watched now.
    pub fn count(&self) -> usize {
        lock(&self.shared.state).1.watched.len()
    }

    /// Drops all watches (the tree was swapped or mounted anew). The next [`take`](Self::take) says `all`.
    pub fn reset(&self) {
        let old = {
            let mut native = lock(&self.native);
            let mut state = lock(&self.shared.state);
            let changes = std::mem::take(&mut state.1.changes);
            *state = (state.0 + 1, State { changes: Changes { all: true, ..changes }, ..State::default() });
            native.take()
        };
        drop(old);
        *lock(&self.trouble) = None;
    }

    /// Asks for the watch; the path is in `watched` when this gives `Yes`, unless an event took it out.
    fn add(&self, dir: &TreePath) -> Added {
        let path = self.shared.path(dir);
        let mut native = lock(&self.native);
        let watcher = match &mut *native {
            Some(watcher) => watcher,
            none => match self.open() {
                Ok(watcher) => none.insert(watcher),
                Err(e) => return Added::No(Why::Instances(e)),
            },
        };
        lock(&self.shared.state).1.watched.insert(dir);
        let config = WatchPathConfig::new(RecursiveMode::NonRecursive).with_dereference_symlinks(false);
        let done = watcher.watch_with(&path, config);
        let mut state = lock(&self.shared.state);
        let Err(e) = done else {
            let ended = !state.1.watched.contains(dir);
            drop(state);
            if ended {
                let _ = watcher.unwatch(&path);
            }
            return Added::Yes;
        };
        state.1.watched.remove(dir);
        match &e.kind {
            ErrorKind::MaxFilesWatch => Added::No(Why::Watches),
            ErrorKind::PathNotFound => Added::Needless,
            ErrorKind::Io(io)
                if matches!(Errno::from_io_error(io), Some(Errno::NOTDIR | Errno::ACCESS | Errno::LOOP)) =>
            {
                Added::Needless
            }
            _ => Added::No(Why::Other(format!("{dir}: {e}"))),
        }
    }

    fn open(&self) -> notify::Result<INotifyWatcher> {
        let shared = self.shared.clone();
        let mine = lock(&shared.state).0;
        // not opening and not closing after reading: what a scan does must raise no events
        let kinds = Kinds::CREATE | Kinds::REMOVE | Kinds::ALL_MODIFY | Kinds::ACCESS_CLOSE;
        let config = Config::default().with_follow_symlinks(false).with_event_kinds(kinds);
        INotifyWatcher::new(move |event| shared.note(mine, event), config)
    }

    fn missed(&self, dir: &TreePath, why: Why) {
        lock(&self.shared.state).1.missed.insert(dir);
        *lock(&self.trouble) = Some(Trouble { why, retry_at: Instant::now() + RETRY });
    }

    /// Tries the missed directories again, once in a while. What was not watched so far must be looked at.
    fn retry(&self) {
        let due = lock(&self.trouble).as_ref().is_some_and(|t| t.retry_at <= Instant::now());
        if !due {
            return;
        }
        *lock(&self.trouble) = None;
        let mut failed = Vec::new();
        loop {
            let dir = {
                let state = &mut lock(&self.shared.state).1;
                let Some(dir) = state.missed.first() else { break };
                state.missed.remove(&dir);
                dir
            };
            match self.add(&dir) {
                Added::Yes => lock(&self.shared.state).1.changes.descend(dir),
                Added::Needless => {}
                Added::No(why) => {
                    let full = !matches!(why, Why::Other(_));
                    failed.push((dir, why));
                    if full {
                        break;
                    }
                }
            }
        }
        failed.into_iter().for_each(|(dir, why)| self.missed(&dir, why));
    }
}

impl Shared {
    fn path(&self, dir: &TreePath) -> PathBuf {
        if dir.is_root() {
            return self.root.clone();
        }
        self.root.join(std::ffi::OsStr::from_bytes(dir.as_bytes()))
    }

    /// An event, of the watcher number `of`.
    fn note(&self, of: u64, event: notify::Result<notify::Event>) {
        let is_dir = |path: &TreePath| std::fs::symlink_metadata(self.path(path)).is_ok_and(|m| m.is_dir());
        let mut state = lock(&self.state);
        if state.0 != of {
            return;
        }
        let before = state.1.changes.is_empty();
        state.1.note(&self.root, event, Instant::now(), &is_dir);
        let wake = before && !state.1.changes.is_empty();
        drop(state);
        if wake {
            (self.wake)();
        }
    }
}

impl Why {
    fn text(&self, watched: usize, missed: usize) -> String {
        let all = watched + missed;
        match self {
            Self::Watches => {
                // the second is this user namespace's own
                let limits = ["fs.inotify.max_user_watches", "user.max_inotify_watches"];
                let (name, value) = smallest(&limits);
                let enough = (value + all as u64).next_power_of_two();
                format!(
                    "inotify: {name} is {value}, and only {watched} of {all} directories are watched; \
                     raise it: sysctl {name}={enough}"
                )
            }
            Self::Instances(e) => {
                let limits = ["fs.inotify.max_user_instances", "user.max_inotify_instances"];
                let (name, value) = smallest(&limits);
                let enough = (value + 1).next_power_of_two();
                format!("inotify: {e}; {name} is {value}; raise it: sysctl {name}={enough}")
            }
            Self::Other(e) => {
                format!("inotify: {missed} of {all} directories cannot be watched, the last: {e}")
            }
        }
    }
}

/// The kernel setting with the smallest value.
fn smallest<'a>(names: &[&'a str]) -> (&'a str, u64) {
    let value = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
        text.trim().parse().ok()
    };
    let known = names.iter().filter_map(|&name| Some((name, value(name)?)));
    known.min_by_key(|&(_, value)| value).unwrap_or(("fs.inotify", 0))
}

#[cfg(test)]
#[path = "native_tests.rs"]
mod tests;
