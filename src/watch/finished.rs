//! Whether a changed file is finished, asked with the file open, right after it was hashed: a writer that
//! comes later changes the file after the state that was hashed, and raises another event.

use std::fmt;
use std::os::fd::BorrowedFd;

use super::archive;
use crate::disk::open_for_writing;

/// Why a file must not be published yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// A writer has it open.
    Open,
    /// It changed less than the settle time ago.
    Recent {
        /// Milliseconds since its last change.
        for_ms: u64,
    },
    /// An archive without its end.
    Archive(String),
    /// It changed while it was read.
    Changing,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("a program has it open for writing"),
            Self::Recent { for_ms } => write!(f, "it changed {for_ms} ms ago"),
            Self::Archive(why) => write!(f, "the archive is not complete: {why}"),
            Self::Changing => f.write_str("it changes while it is read"),
        }
    }
}

/// Whether a writer has the file open, or it is an archive without its end. `fd`: open for reading only, and
/// nowhere in this process for writing; see also [`crate::disk::ignore_break_signal`]. `name`: its last component.
pub fn unfinished(fd: BorrowedFd<'_>, name: &[u8], size: u64) -> Option<Unfinished> {
    if open_for_writing(fd) == Some(true) {
        return Some(Unfinished::Open);
    }
    if !archive::is_archive(name) {
        return None;
    }
    let read_at =
        |buf: &mut [u8], at| Ok(rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut *buf, at))?);
    archive::check(read_at, size).err().map(Unfinished::Archive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd as _;

    const WAR: &[u8] = include_bytes!("../../fixtures/wso2-ei/server/webapps/order-monitor.war");

    #[test]
    fn an_open_writer_then_a_missing_end_then_nothing() {
        crate::disk::ignore_break_signal().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("A.WAR");
        let half = WAR.len() / 2;
        std::fs::write(&path, &WAR[..half]).unwrap();
        let ask = |name: &[u8]| {
            let fd = File::open(&path).unwrap();
            unfinished(fd.as_fd(), name, fd.metadata().unwrap().len())
        };
        let writer = File::options().append(true).open(&path).unwrap();
        assert_eq!(ask(b"A.WAR"), Some(Unfinished::Open));
        drop(writer);
        // a child that another test is about to start has a copy of the descriptor for a moment
        while ask(b"A.WAR") == Some(Unfinished::Open) {
            std::thread::yield_now();
        }
        assert!(matches!(ask(b"A.WAR"), Some(Unfinished::Archive(_))));
        assert_eq!(ask(b"A.txt"), None, "only an archive has an end that can be missing");
        std::fs::write(&path, WAR).unwrap();
        assert_eq!(ask(b"A.WAR"), None);
    }
}
