//! Programs that a killed agent left running. A run that was under way has its list in the state directory, under a name
//! of its own, and all that the run began has that name in its environment. What a run that was over left running has another
//! name, and stays; so does what made itself a session of its own, as servers do: a time limit would not end it either. Nor is
//! this agent ended, or who started it, when that was begun by such a run itself, as by a hook that puts in a new version.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::disk::{ProcessStat, boot_ms};
use crate::model::escaped;

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);

/// A name for a run's list: this session, and what tells it from all others.
pub(super) fn name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    // 0 for a session that began outside of our pid namespace, as of all that stay in it
    let session = ProcessStat::own().map_or_else(|| "unknown".to_owned(), |stat| stat.session.to_string());
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("changed-{session}-{}-{}-{number}", std::process::id(), boot_ms())
}

/// The session that such a name says.
fn session_of(name: &str) -> Option<i32> {
    name.strip_prefix("changed-")?.split('-').next()?.parse().ok()
}

/// Ends the programs of runs that were under way when their agent died, whose lists are in `dir`: SIGTERM, and SIGKILL
/// two seconds later.
pub(super) async fn end(dir: PathBuf) {
    let found = || {
        let dir = dir.clone();
        async move { tokio::task::spawn_blocking(move || left(&dir)).await.unwrap_or_default() }
    };
    if found().await.is_empty() {
        return;
    }
    tracing::warn!("an earlier agent was killed while {} ran; what it left is ended", escaped(&dir));
    for signal in [Signal::TERM, Signal::KILL] {
        // a number that was found before may be another process's by now
        for pid in found().await {
            // it may just have ended
            let _ = kill_process(pid, signal);
        }
        for _ in 0..GRACE.as_millis() / LOOK.as_millis() {
            if found().await.is_empty() {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// This process, and all that it descends from.
fn ancestors() -> Vec<i32> {
    let own = i32::try_from(std::process::id()).ok();
    let parent = |pid: &i32| ProcessStat::of(*pid).map(|stat| stat.parent).filter(|parent| *parent > 0);
    std::iter::successors(own, parent).collect()
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
    let ours = ancestors();
    let of_run = |process: std::fs::DirEntry| {
        let pid: i32 = process.file_name().to_str()?.parse().ok().filter(|pid| !ours.contains(pid))?;
        let environment = std::fs::read(process.path().join("environ")).ok()?;
        let session = ProcessStat::of(pid)?.session;
        let is_of = |(of, variable): &(i32, Vec<u8>)| {
            *of == session && environment.split(|b| *b == 0).any(|v| v == variable.as_slice())
        };
        runs.iter().any(is_of).then(|| Pid::from_raw(pid))?
    };
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(of_run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_and_who_started_it_come_first() {
        let own = [std::process::id(), std::os::unix::process::parent_id()];
        assert_eq!(ancestors()[..2], own.map(|pid| i32::try_from(pid).unwrap()));
    }
}
