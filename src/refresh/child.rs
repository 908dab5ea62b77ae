//! A program that is run: in a process group of its own, so that a time limit ends all that it began; what it
//! prints goes to the log, within bounds.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::disk::ProcessStat;
use crate::error::lock;
use crate::model::escape;

/// Lines and bytes of output that reach the log.
const LINES: usize = 100;
const BYTES: usize = 16 * 1024;
/// A line in the log is no longer.
const LINE: usize = 1000;
/// Characters of the last line that an error quotes.
const QUOTED: usize = 200;
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// A program that has ended has its output read for so long: what it left running may hold the pipe.
const REST: Duration = Duration::from_millis(300);

/// What systemd tells this service, and no other.
const OURS: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Runs `argv` with `env` added, for `limit` at most, and until `cancel`. Then its whole process group gets
/// SIGTERM, and SIGKILL two seconds later. `label` begins its lines in the log.
///
/// # Errors
/// It could not be started, ended with something else than 0, or was ended.
pub(super) async fn run(
    argv: &[impl AsRef<OsStr>],
    env: &[(&str, &OsStr)],
    limit: Duration,
    cancel: &CancellationToken,
    label: &str,
) -> Result<(), String> {
    let Some((program, arguments)) = argv.split_first() else { return Err("names no program".into()) };
    let shown = escape(program.as_ref().as_encoded_bytes());
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/").process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    OURS.iter().for_each(|name| {
        command.env_remove(name);
    });
    command.envs(env.iter().copied());
    let child = command.spawn().map_err(|e| format!("cannot start {shown}: {e}"))?;
    let mut group = Group::new(child);
    let output = Arc::new(Mutex::new(Output { label: label.to_owned(), ..Output::default() }));
    let reader = |from: Option<Box<dyn AsyncRead + Send + Unpin>>, pipe: Pipe| {
        let output = output.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            if let Some(from) = from {
                drain(from, pipe, &output).await;
            }
        }))
    };
    let out = reader(group.child.stdout.take().map(|pipe| Box::new(pipe) as _), Pipe::Out);
    let err = reader(group.child.stderr.take().map(|pipe| Box::new(pipe) as _), Pipe::Err);
    let ended = tokio::select! {
        status = timeout(limit, group.child.wait()) => status.ok(),
        () = cancel.cancelled() => {
            group.end().await;
            return Err("interrupted".into());
        }
    };
    let result = match ended {
        None => {
            group.end().await;
            Err(format!("{shown} took longer than {} and was ended", seconds(limit)))
        }
        Some(Err(e)) => Err(format!("cannot wait for {shown}: {e}")),
        Some(Ok(status)) => {
            group.gone = true;
            match (status.code(), status.signal()) {
                (Some(0), _) => Ok(()),
                (Some(code), _) => Err(format!("{shown} ended with {code}")),
                (None, signal) => Err(format!("{shown} was ended by signal {}", signal.unwrap_or(0))),
            }
        }
    };
    let _ = timeout(REST, async { (out.await, err.await) }).await;
    let mut output = lock(&output);
    output.finish();
    // which of two pipes was written to last nobody can tell; what went wrong stands in the second
    let last = output.last.iter().rev().find(|line| !line.is_empty());
    let last = last.map(|line| format!(": {}", line.chars().take(QUOTED).collect::<String>()));
    result.map_err(|what| what + &last.unwrap_or_default())
}

pub(super) fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}

/// A child and all that it began. Dropped before its end, all are killed.
struct Group {
    child: Child,
    id: Option<Pid>,
    /// The child was waited for, and its id may be another's.
    gone: bool,
}

impl Group {
    fn new(child: Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Self { child, id, gone: false }
    }

    fn signal(&self, signal: Signal) {
        if let (Some(id), false) = (self.id, self.gone) {
            // nobody left to get it is fine
            let _ = kill_process_group(id, signal);
        }
    }

    async fn end(&mut self) {
        self.signal(Signal::TERM);
        // not waited for by its handle: its id must stay taken until the others are killed
        tokio::time::sleep(Duration::from_millis(50)).await;
        for _ in 0..20 {
            if !self.anybody() {
                break;
            }
            tokio::time::sleep(GRACE / 20).await;
        }
        self.signal(Signal::KILL);
        let _ = timeout(GRACE, self.child.wait()).await;
        self.gone = true;
    }

    /// Whether a process of the group still runs; one that only waits to be collected does not.
    fn anybody(&self) -> bool {
        let Some(id) = self.id else { return false };
        let of_group = |entry: std::io::Result<std::fs::DirEntry>| {
            let stat = ProcessStat::of(entry.ok()?.file_name().to_str()?.parse().ok()?)?;
            (stat.group == id.as_raw_nonzero().get() && !stat.is_zombie).then_some(())
        };
        std::fs::read_dir("/proc").is_ok_and(|mut all| all.any(|entry| of_group(entry).is_some()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Where a program's words come from.
#[derive(Clone, Copy)]
enum Pipe {
    Out,
    Err,
}

/// What reached the log.
#[derive(Default)]
struct Output {
    label: String,
    lines: usize,
    bytes: usize,
    /// Lines that did not.
    more: usize,
    /// The last line of each pipe that is not empty, and no hint.
    last: [String; 2],
}

impl Output {
    fn line(&mut self, line: &[u8], pipe: Pipe) {
        let line = escape(line.trim_ascii_end());
        if line.is_empty() {
            return;
        }
        if self.lines < LINES && self.bytes + line.len() <= BYTES {
            (self.lines, self.bytes) = (self.lines + 1, self.bytes + line.len());
            tracing::info!("{}: {line}", self.label);
        } else {
            self.more += 1;
        }
        let last = &mut self.last[pipe as usize];
        if last.is_empty() || !is_hint(&line) {
            *last = line;
        }
    }

    fn finish(&mut self) {
        if self.more > 0 {
            tracing::info!("{}: … and {} more", self.label, self.more);
        }
    }
}

/// What systemctl says after the cause: where to look for more.
fn is_hint(line: &str) -> bool {
    ["See \"systemctl ", "See 'systemctl ", "See system logs and "].iter().any(|hint| line.starts_with(hint))
}

/// Reads to the end, whether it is kept or not: a full pipe would stop the program.
async fn drain(mut from: impl AsyncRead + Unpin, pipe: Pipe, output: &Mutex<Output>) {
    let mut line = Vec::new();
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        for part in buffer[..read].split_inclusive(|&b| b == b'\n') {
            line.extend_from_slice(&part[..part.len().min(LINE - line.len())]);
            if part.ends_with(b"\n") {
                lock(output).line(&line, pipe);
                line.clear();
            }
        }
    }
    lock(output).line(&line, pipe);
}
