//! Whether somebody has a file open for writing: the kernel refuses a read lease on such a file. The lease is
//! given back at once.
//!
//! While it is held, a writer's `open` waits for it (microseconds; one with `O_NONBLOCK` fails with
//! `EWOULDBLOCK`), and the kernel sends this process SIGIO, whose default action ends it: a program that uses
//! this calls [`ignore_break_signal`] first.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::io::Errno;

use super::FsClass;
use crate::error::{Context as _, Result};

/// Whether anybody has the file open for writing, or mapped so, on this host; `None` when that cannot be told: the
/// file is neither ours nor have we CAP_LEASE, or the file system has no leases. `fd` must be open for
/// reading only, and this process must not have the file open for writing itself.
pub fn open_for_writing(fd: BorrowedFd<'_>) -> Option<bool> {
    // NFS and SMB refuse a lease in the same words when the server gave them no delegation
    if FsClass::of(fd) != FsClass::Local {
        return None;
    }
    match set_lease(fd, libc::F_RDLCK) {
        Ok(()) => {
            let _ = set_lease(fd, libc::F_UNLCK);
            Some(false)
        }
        Err(Errno::AGAIN) => Some(true),
        Err(_) => None,
    }
}

/// Keeps SIGIO from ending the process. Once, at the start.
///
/// # Errors
/// The handler cannot be set.
pub fn ignore_break_signal() -> Result<()> {
    // a handler rather than SIG_IGN, which child processes would inherit
    let unread = Arc::new(AtomicBool::new(false));
    let set = signal_hook::flag::register(signal_hook::consts::SIGIO, unread);
    set.map(drop).context(|| "set a handler for SIGIO".to_owned())
}

/// No crate here offers `F_SETLEASE`.
#[allow(unsafe_code)]
fn set_lease(fd: BorrowedFd<'_>, kind: i32) -> std::result::Result<(), Errno> {
    // SAFETY: an integer command on a descriptor that is open for the call; no memory is passed.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, kind) };
    if done == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd as _;

    /// A directory whose file system has leases; nothing when there is none.
    fn fixture() -> (tempfile::TempDir, std::path::PathBuf) {
        ignore_break_signal().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").unwrap();
        (dir, path)
    }

    #[test]
    fn a_file_that_a_writer_has_open_is_told_from_one_that_none_has() {
        let (_dir, path) = fixture();
        let reader = File::open(&path).unwrap();
        assert_eq!(open_for_writing(reader.as_fd()), Some(false));
        let writer = File::options().append(true).open(&path).unwrap();
        assert_eq!(open_for_writing(reader.as_fd()), Some(true));
        drop(writer);
        // a child that another test is about to start has a copy of the descriptor for a moment
        while open_for_writing(reader.as_fd()) == Some(true) {
            std::thread::yield_now();
        }
        let _other_reader = File::open(&path).unwrap();
        assert_eq!(open_for_writing(reader.as_fd()), Some(false));
    }

    #[test]
    fn the_lease_is_given_back_at_once() {
        let (_dir, path) = fixture();
        let reader = File::open(&path).unwrap();
        assert_eq!(open_for_writing(reader.as_fd()), Some(false));
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        let writer = rustix::fs::open(&path, flags, rustix::fs::Mode::empty());
        assert!(writer.is_ok(), "the lease is still held: {writer:?}");
    }

    #[test]
    fn a_writer_that_breaks_the_lease_does_not_end_the_process() {
        let (_dir, path) = fixture();
        let reader = File::open(&path).unwrap();
        set_lease(reader.as_fd(), libc::F_RDLCK).unwrap();
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        let refused = rustix::fs::open(&path, flags, rustix::fs::Mode::empty());
        assert_eq!(refused.err(), Some(Errno::AGAIN));
        set_lease(reader.as_fd(), libc::F_UNLCK).unwrap();
    }

    #[test]
    fn where_there_are_no_leases_nothing_is_claimed() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(open_for_writing(reader.as_fd()), None);
    }
}
