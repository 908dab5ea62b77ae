//! One flock'd file per tree and node. The owner record in it is only informative: the kernel drops
//! the lock when its holder dies, so it cannot go stale. The only place that knows fs2.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Dir, Stat, stat_fd};
use crate::error::{Class, Context as _, Error, Result};

/// Who holds a lock. All informative.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// The process's start time in clock ticks since boot, so that a reused pid can be told apart.
    pub started: u64,
    /// The boot in which pid and start time mean something.
    pub boot_id: String,
    /// Host name.
    pub host: String,
    /// The command line.
    pub command: String,
    /// Since when, RFC 3339.
    pub since: String,
}

/// What became of an attempt to lock.
#[derive(Debug)]
pub enum Locked {
    /// Ours until dropped.
    Yes(Lock),
    /// Somebody else's.
    No(Option<Holder>),
}

/// A held lock; dropping it, or the process's end, releases it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Holder {
    /// This process.
    pub fn this_process() -> Self {
        let read = |p: &str| std::fs::read_to_string(p).unwrap_or_default().trim().to_owned();
        let command: Vec<String> = std::env::args_os().map(|a| crate::model::escape(a.as_bytes())).collect();
        Self {
            pid: std::process::id(),
            started: super::ProcessStat::own().map_or(0, |stat| stat.started),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            host: read("/proc/sys/kernel/hostname"),
            command: command.join(" "),
            since: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }
    }
}

impl Lock {
    /// Takes the lock `name` in `dir`, waiting at most `wait`.
    ///
    /// # Errors
    /// The file cannot be opened or locked at all (not: it is held by another).
    pub fn acquire(
        dir: &Dir,
        name: &str,
        wait: Duration,
        shown: &str,
        cancel: &AtomicBool,
    ) -> Result<Locked> {
        let open = || dir.open_own_file(name).map(File::from).context(|| format!("open the lock {shown}"));
        let mut file = open()?;
        let deadline = Instant::now() + wait;
        loop {
            // std's inherent try_lock would shadow a method call
            match fs2::FileExt::try_lock_exclusive(&file) {
                Ok(()) => {
                    // whoever gave up an unmanaged directory removed the file that we waited for
                    let ino = |stat: rustix::io::Result<Stat>| stat.map(|s| s.id.ino).ok();
                    if ino(stat_fd(&file)) == ino(dir.stat(name)) {
                        break;
                    }
                    file = open()?;
                    continue;
                }
                Err(e) if e.raw_os_error() == fs2::lock_contended_error().raw_os_error() => {}
                Err(e) => return Err(e).context(|| format!("lock {shown}")),
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::new(Class::Interrupted, "interrupted"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let mut text = String::new();
                let holder =
                    file.read_to_string(&mut text).ok().and_then(|_| serde_json::from_str(&text).ok());
                return Ok(Locked::No(holder));
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        let record = serde_json::to_vec(&Holder::this_process()).unwrap_or_default();
        // the record is a courtesy: a full disk must not stop a run that may free it
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(&record));
        Ok(Locked::Yes(Lock { _file: file }))
    }
}
