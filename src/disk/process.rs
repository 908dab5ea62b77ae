//! The end of a process that is not our child.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

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
    use super::*;

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
