//! One file's way into the staging directory: cloned or copied, hashed as it is written, with its
//! attributes, under a name that nothing deploys.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::disk::{Dir, Owners, Stat, chmod_fd, chown_fd, set_mtime_fd, stat_fd};
use crate::error::{Context as _, Result};
use crate::model::{Content, Digest, Entry, Node, TreePath};
use crate::scan::{hash_fd, read_full, with_buffer};

/// Below this, a clone costs more than a copy.
const CLONE_FROM: u64 = 64 * 1024;

/// What a write needs to know beside the file.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    pub(crate) owners: &'a Owners,
    /// `syncfs` does not reach the store: sync every file.
    pub(crate) sync_each: bool,
    /// Set to end.
    pub(crate) cancel: &'a AtomicBool,
}

impl Writer<'_> {
    /// Writes `content` to the new file `name`; gives what was written, and its digest and size, which
    /// the caller compares with what was promised.
    ///
    /// # Errors
    /// Reading (`Err` of the inner result: the source's fault) or writing (the outer: ours).
    pub(crate) fn write(
        &self,
        dir: &Dir,
        path: &TreePath,
        entry: &Entry,
        content: &mut Content<'_>,
    ) -> Result<Result<(OwnedFd, Digest, u64)>> {
        let fd = dir.create_file(&entry.name, entry.mode & 0o777).context(|| format!("stage {path}"))?;
        let written = match content {
            Content::File(from) => copy_file(*from, &fd, entry.size(), path, self.cancel)?,
            Content::Stream(from) => append(*from, &fd, blake3::Hasher::new(), path, self.cancel)?,
            Content::Vanished => Ok((Digest::of_nothing(), 0)),
        };
        Ok(written.map(|(digest, n)| (fd, digest, n)))
    }

    /// Gives the file its attributes; returns what it is then.
    pub(crate) fn finish(&self, fd: &OwnedFd, path: &TreePath, entry: &Entry) -> Result<Stat> {
        let cannot = || format!("set the attributes of {path}");
        set_mtime_fd(fd, entry.mtime).context(cannot)?;
        let mut stat = stat_fd(fd).context(cannot)?;
        let (uid, gid) = self.owners.ids(&entry.owner);
        let (uid, gid) = (uid.filter(|u| *u != stat.uid), gid.filter(|g| *g != stat.gid));
        if uid.is_some() || gid.is_some() {
            chown_fd(fd, uid, gid).context(|| format!("set the owner of {path}"))?;
        }
        // a chown clears setuid and setgid
        if stat.mode != entry.mode || uid.is_some() || gid.is_some() {
            chmod_fd(fd, entry.mode).context(cannot)?;
            stat = stat_fd(fd).context(cannot)?;
        }
        if self.sync_each {
            rustix::fs::fsync(fd).context(|| format!("sync {path}"))?;
        }
        Ok(stat)
    }
}

/// Digest and length of what was copied.
type Copied = Result<(Digest, u64)>;

fn copy_file(
    from: BorrowedFd<'_>,
    to: &OwnedFd,
    size: u64,
    path: &TreePath,
    cancel: &AtomicBool,
) -> Result<Copied> {
    if size >= CLONE_FROM && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        // what is verified is the clone, not the original
        let hashed = hash_fd(to.as_fd(), size, cancel).context(|| format!("read the clone of {path}"))?;
        return Ok(Ok(hashed));
    }
    with_buffer(|buf| {
        let mut hasher = blake3::Hasher::new();
        let mut total = 0u64;
        loop {
            stop_if(cancel)?;
            // exactly what was promised: the digest tells whether that was all
            let want = usize::try_from(size - total.min(size)).unwrap_or(usize::MAX).min(buf.len());
            let n = match read_full(from, &mut buf[..want]) {
                Ok(n) => n,
                Err(e) => return Ok(Err(e).context(|| format!("read {path}"))),
            };
            write_all(to, &buf[..n]).context(|| format!("write {path}"))?;
            total += n as u64;
            if total >= size || n < want {
                let digest = if total == n as u64 {
                    Digest::of(&buf[..n])
                } else {
                    hasher.update(&buf[..n]);
                    hasher.finalize().into()
                };
                return Ok(Ok((digest, total)));
            }
            hasher.update(&buf[..n]);
        }
    })
}

/// Appends what `from` gives to `to`, and to what `hasher` has seen. Gives the digest of all of it, and how much
/// arrived.
pub(crate) fn append(
    from: &mut dyn std::io::Read,
    to: &OwnedFd,
    mut hasher: blake3::Hasher,
    path: &TreePath,
    cancel: &AtomicBool,
) -> Result<Copied> {
    with_buffer(|buf| {
        let mut total = 0u64;
        loop {
            stop_if(cancel)?;
            let n = match from.read(buf) {
                Ok(0) => return Ok(Ok((hasher.finalize().into(), total))),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Ok(Err(e).context(|| format!("read {path}"))),
            };
            write_all(to, &buf[..n]).context(|| format!("write {path}"))?;
            hasher.update(&buf[..n]);
            total += n as u64;
        }
    })
}

fn stop_if(cancel: &AtomicBool) -> Result<()> {
    if cancel.load(Ordering::Relaxed) { Err(Errno::CANCELED).context(|| "go on".into()) } else { Ok(()) }
}

pub(crate) fn write_all(to: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether what was written is what the entry promises.
pub(crate) fn is_promised(entry: &Entry, digest: &Digest, n: u64) -> bool {
    matches!(&entry.node, Node::File { size, digest: d } if *size == n && d == digest)
}
