//! Programs that a killed agent left running. A run that was under way has its list in the state directory, under a name
//! of its own, and all that the run began has that name in its environment. What a run that was over left running has another
//! name, and stays; so does what made itself a session of its own, as servers do: a time limit would not end it either.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, getsid, kill_process};

use crate::disk::boot_ms;
use crate::model::escaped;

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);

/// A name for a run's list: this session, and what tells it from all others.
pub(super) fn name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let session = getsid(None).map_or(0, |pid| pid.as_raw_nonzero().get());
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("changed-{session}-{}-{}-{number}", std::process::id(), boot_ms())
}

/// The session that such a name says.
fn session_of(name: &str) -> Option<i32> {
    name.strip_prefix("changed-")?.split('-').next()?.parse().ok().filter(|session| *session != 0)
}

/// Ends the programs of runs that were under way when their agent died, whose lists are in `dir`: SIGTERM, and SIGKILL
/// two seconds later.
pub(super) async fn end(dir: PathBuf) {
    let found = || {
        let dir = dir.clone();
        async move { tokio::task::spawn_blocking(move || left(&dir)).await.unwrap_or_default() }
    };
    let mut all = found().await;
    if all.is_empty() {
        return;
    }
    tracing::warn!("an earlier agent was killed while {} ran; what it left is ended", escaped(&dir));
    for signal in [Signal::TERM, Signal::KILL] {
        for pid in &all {
            // it may just have ended
            let _ = kill_process(*pid, signal);
        }
        for _ in 0..GRACE.as_millis() / LOOK.as_millis() {
            all = found().await;
            if all.is_empty() {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The processes of runs whose lists are in `dir`.
fn left(dir: &Path) -> Vec<Pid> {
    let lists = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let runs: Vec<(i32, Vec<u8>)> = lists
        .filter_map(|list| {
            let session = session_of(list.file_name().to_str()?)?;
            let mut variable = OsString::from("SYNCAGENT_CHANGED=");
            variable.push(list.path());
            Some((session, variable.as_bytes().to_vec()))
        })
        .collect();
    if runs.is_empty() {
        return Vec::new();
    }
    let of_run = |process: std::fs::DirEntry| {
        let pid: i32 = process.file_name().to_str()?.parse().ok()?;
        let environment = std::fs::read(process.path().join("environ")).ok()?;
        let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
        // PID (NAME) STATE PARENT GROUP SESSION; a name may hold anything
        let session: i32 = stat.rsplit_once(')')?.1.split_whitespace().nth(3)?.parse().ok()?;
        let is_of = |(of, variable): &(i32, Vec<u8>)| {
            *of == session && environment.split(|b| *b == 0).any(|v| v == variable.as_slice())
        };
        runs.iter().any(is_of).then(|| Pid::from_raw(pid))?
    };
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(of_run).collect()
}
