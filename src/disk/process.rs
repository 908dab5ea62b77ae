//! Processes that are not our children: what the kernel says of one, and its end.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What `/proc/PID/stat` says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// It has ended, and only its parent has not heard yet.
    pub is_zombie: bool,
    /// Its parent's number; 0 outside of our pid namespace, as the next two.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// When it started, in clock ticks since the boot: with its number what tells it from all others.
    pub started: u64,
}

impl Stat {
    /// Of the process `pid`; `None` when there is none, or it cannot be read.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // PID (NAME) STATE PARENT GROUP SESSION, and the start as field 22; a name may hold anything
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let is_zombie = fields.next().is_some_and(|state| ["Z", "X"].contains(&state));
        let mut number = || fields.next()?.parse().ok();
        let (parent, group, session) = (number()?, number()?, number()?);
        Some(Self { is_zombie, parent, group, session, started: fields.nth(15)?.parse().ok()? })
    }

    /// Of this process.
    pub fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }
}

/// The kernel is asked anew so often, should it ever miss to tell.
const AGAIN: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// Waits until `is_there` says that the process `pid` is not; it is asked when the kernel tells of an end, and every
/// `every` where the kernel cannot tell.
pub fn process_end(pid: i32, every: Duration, is_there: &dyn Fn() -> bool) {
    let fd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    while is_there() {
        let told = fd.as_ref().map(|fd| poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&AGAIN)));
        if !matches!(told, Some(Ok(0))) {
            // a zombie is told of as well; one that is still there is looked at again
            std::thread::sleep(if matches!(told, Some(Ok(_))) { Duration::from_millis(5) } else { every });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;

    use super::*;

    #[test]
    fn the_kernel_tells_of_parent_group_session_and_start() {
        let own = Stat::own().unwrap();
        assert_eq!(u32::try_from(own.parent).unwrap(), std::os::unix::process::parent_id());
        assert!(!own.is_zombie && own.started > 0);
        let mut child = std::process::Command::new("true").process_group(0).spawn().unwrap();
        let pid = child.id() as i32;
        let stat = Stat::of(pid).unwrap();
        // of our own session the number may be 0: it may have begun outside of our pid namespace
        assert_eq!((stat.parent, stat.group, stat.session), (std::process::id() as i32, pid, own.session));
        while Stat::of(pid).is_some_and(|stat| !stat.is_zombie) {
            std::thread::yield_now();
        }
        assert!(Stat::of(pid).unwrap().started >= own.started);
        child.wait().unwrap();
        assert_eq!(Stat::of(pid), None);
    }

    #[test]
    fn the_end_of_a_process_is_noticed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let there = move || std::path::Path::new(&format!("/proc/{pid}")).exists();
        let waiter = std::thread::spawn(move || process_end(pid, Duration::from_millis(10), &there));
        assert!(!waiter.is_finished());
        child.kill().unwrap();
        child.wait().unwrap();
        waiter.join().unwrap();
    }
}
