//! The command of a hold, which is not to outlive it: a job that goes on unseen after `hold` was killed would write
//! into a tree that the next hold publishes. The kernel tells it (SIGTERM) when its parent dies, but only a process itself can ask for
//! that: so the program is run once more, asks, and becomes the command.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

use crate::error::{Context as _, Result};

/// This very program, also when the package was replaced meanwhile.
const SELF: &str = "/proc/self/exe";
/// The name of the process until it is the command: a program that was executed has its own.
const NAME: &std::ffi::CStr = c"hold: not begun";
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Starts `command`, which must not be empty.
///
/// # Errors
/// The operating system's, before anything was run.
pub(super) fn spawn(command: &[OsString]) -> std::io::Result<Child> {
    let own = getpid().as_raw_nonzero().to_string();
    Command::new(SELF).args(["hold-exec", &own, "--"]).args(command).spawn()
}

/// Becomes the command; gives the exit code where it cannot.
pub(in crate::cli) fn become_command(parent: i32, command: &[OsString]) -> u8 {
    let [program, rest @ ..] = command else { return CANNOT_RUN };
    if let Err(e) = ask(parent) {
        let _ = writeln!(std::io::stderr(), "syncagent: hold: {e}");
        return CANNOT_RUN;
    }
    let e = Command::new(program).args(rest).exec();
    let _ = writeln!(std::io::stderr(), "syncagent: hold: cannot run {}: {e}", program.to_string_lossy());
    if e.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN }
}

fn ask(parent: i32) -> Result<()> {
    let cannot = || "see to it that the command ends with hold".to_owned();
    rustix::thread::set_name(NAME).context(cannot)?;
    set_parent_process_death_signal(Some(Signal::TERM)).context(cannot)?;
    // it may have died before that
    if getppid() != Pid::from_raw(parent) {
        return Err(rustix::io::Errno::SRCH).context(|| "begin: hold has been killed".to_owned());
    }
    Ok(())
}

/// Whether a child that has ended, and was not waited for yet, never became the command.
pub(super) fn never_began(child: Pid) -> bool {
    let name = std::fs::read(format!("/proc/{}/comm", child.as_raw_nonzero()));
    name.is_ok_and(|name| name.strip_suffix(b"\n") == Some(NAME.to_bytes()))
}
