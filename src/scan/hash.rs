//! Hashing files that others may write at the same time. `read`, not `mmap`: a file that shrinks under
//! a map raises SIGBUS.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::disk::{Dir, FileKind, Stat, stat_fd};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{Digest, TreePath};

const BUFFER: usize = 256 * 1024;
/// A file that changes while it is read is read again so often.
pub(crate) const TRIES: u32 = 3;

thread_local! {
    static SPACE: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Lends the calling thread's read buffer.
pub(crate) fn with_buffer<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    SPACE.with_borrow_mut(|space| {
        space.resize(BUFFER, 0);
        f(space)
    })
}

/// Reads until the buffer is full or the file ends.
pub(crate) fn read_full(fd: impl AsFd, buf: &mut [u8]) -> rustix::io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match rustix::io::read(&fd, &mut buf[n..]) {
            Ok(0) => break,
            Ok(m) => n += m,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

/// Hashes an open file of about `size` bytes from where it stands to its end; `CANCELED` when asked to stop.
pub(crate) fn hash_fd(fd: impl AsFd, size: u64, cancel: &AtomicBool) -> rustix::io::Result<(Digest, u64)> {
    with_buffer(|buf| {
        // one byte more than expected shows the end without another read
        let first = usize::try_from(size.saturating_add(1)).unwrap_or(BUFFER).min(BUFFER);
        let mut n = read_full(&fd, &mut buf[..first])?;
        if n < first {
            return Ok((Digest::of(&buf[..n]), n as u64));
        }
        let mut hasher = blake3::Hasher::new();
        let mut total = 0;
        while n > 0 {
            if cancel.load(Ordering::Relaxed) {
                return Err(Errno::CANCELED);
            }
            hasher.update(&buf[..n]);
            total += n as u64;
            n = read_full(&fd, buf)?;
        }
        Ok((hasher.finalize().into(), total))
    })
}

/// Hashes an open file from where it stands to its end into `hasher`.
pub(crate) fn hash_into(
    hasher: &mut blake3::Hasher,
    fd: impl AsFd,
    cancel: &AtomicBool,
) -> rustix::io::Result<()> {
    with_buffer(|buf| {
        loop {
            if cancel.load(Ordering::Relaxed) {
                return Err(Errno::CANCELED);
            }
            match read_full(&fd, buf)? {
                0 => return Ok(()),
                n => hasher.update(&buf[..n]),
            };
        }
    })
}

/// Hashes the first `n` bytes of an open file, fewer when it ends before.
pub(crate) fn hash_first(fd: impl AsFd, n: u64, cancel: &AtomicBool) -> rustix::io::Result<Digest> {
    with_buffer(|buf| {
        let mut hasher = blake3::Hasher::new();
        let mut left = n;
        while left > 0 {
            if cancel.load(Ordering::Relaxed) {
                return Err(Errno::CANCELED);
            }
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            let got = read_full(&fd, &mut buf[..want])?;
            hasher.update(&buf[..got]);
            left -= got as u64;
            if got < want {
                break;
            }
        }
        Ok(hasher.finalize().into())
    })
}

/// Hashes the file `name` in `dir` until it held still while it was read. Gives it open, its state and its digest;
/// `None` when it is not there, or is no regular file any more.
///
/// # Errors
/// It cannot be read, changed during each of three reads ([`Class::Transient`]), or `cancel` was set.
pub fn hash_stable(
    dir: &Dir,
    path: &TreePath,
    name: &[u8],
    cancel: &AtomicBool,
) -> Result<Option<(OwnedFd, Stat, Digest)>> {
    for _ in 0..TRIES {
        let fd = match dir.open_file(name) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(None),
            Err(e) => return Err(e).context(|| format!("read {path}")),
        };
        let before = stat_fd(&fd).context(|| format!("stat {path}"))?;
        if before.kind != FileKind::File {
            return Ok(None);
        }
        let (digest, n) = hash_fd(&fd, before.size, cancel).context(|| format!("read {path}"))?;
        let after = stat_fd(&fd).context(|| format!("stat {path}"))?;
        if before.same_state(&after) && n == after.size {
            return Ok(Some((fd, after, digest)));
        }
    }
    Err(Error::new(Class::Transient, format!("cannot read {path}: it changes while it is read")))
}
