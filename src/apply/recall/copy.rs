//! Copying what lies in the trash, with its attributes.

use std::os::fd::OwnedFd;

use rustix::io::{Errno, Result as Sys};

use super::super::file::write_all;
use super::{Amount, names};
use crate::disk::{Dir, FileKind, Stat, chmod_fd, chown_fd, set_mtime_fd};
use crate::model::TreePath;
use crate::scan::{read_full, with_buffer};

/// Copies an entry of any kind, with everything below it.
pub(super) fn copy(from: &Dir, name: &[u8], to: &Dir, new: &[u8], sum: &mut Amount) -> Sys<()> {
    let stat = from.stat(name)?;
    if stat.kind != FileKind::Dir {
        return copy_leaf(from, name, &stat, to, new, sum);
    }
    to.mkdir(new, 0o700)?;
    let (from, to) = (from.open_child(name)?, to.open_child(new)?);
    let mut dirs = vec![(TreePath::root(), stat)];
    let mut next = 0;
    while let Some((path, _)) = dirs.get(next) {
        let path = path.clone();
        next += 1;
        let (from, to) = (from.open(&path)?, to.open(&path)?);
        for name in names(&from)? {
            let stat = from.stat(&*name)?;
            if stat.kind == FileKind::Dir {
                to.mkdir(&name, 0o700)?;
                dirs.push((path.join(&name), stat));
            } else {
                copy_leaf(&from, &name, &stat, &to, &name, sum)?;
            }
        }
    }
    // deepest first: what is made in a directory moves its mtime
    for (path, stat) in dirs.iter().rev() {
        attributes(&to.open(path)?, stat, true)?;
    }
    Ok(())
}

fn copy_leaf(from: &Dir, name: &[u8], stat: &Stat, to: &Dir, new: &[u8], sum: &mut Amount) -> Sys<()> {
    match stat.kind {
        FileKind::Link => {
            to.symlink(&from.read_link(name)?, new)?;
            allowed(to.chown(new, Some(stat.uid), Some(stat.gid)))?;
            to.set_mtime(new, stat.mtime)?;
        }
        FileKind::File => {
            let (old, file) = (from.open_file(name)?, to.create_file(new, 0o600)?);
            copy_bytes(&old, &file)?;
            attributes(&file, stat, true)?;
            rustix::fs::fsync(&file)?;
            sum.bytes += stat.size;
        }
        // neither comes into a trash
        FileKind::Dir | FileKind::Special => return Err(Errno::INVAL),
    }
    sum.files += 1;
    Ok(())
}

/// Clones the content where the file system can, else copies it.
fn copy_bytes(from: &OwnedFd, to: &OwnedFd) -> Sys<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    with_buffer(|buf| {
        loop {
            let n = read_full(from, buf)?;
            write_all(to, &buf[..n])?;
            if n < buf.len() {
                return Ok(());
            }
        }
    })
}

pub(super) fn attributes(fd: &impl std::os::fd::AsFd, stat: &Stat, mtime: bool) -> Sys<()> {
    allowed(chown_fd(fd, Some(stat.uid), Some(stat.gid)))?;
    // a chown clears setuid and setgid
    chmod_fd(fd, stat.mode)?;
    if mtime { set_mtime_fd(fd, stat.mtime) } else { Ok(()) }
}

/// Who is not root cannot give files away; they are his then.
fn allowed(done: Sys<()>) -> Sys<()> {
    match done {
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => Ok(()),
        done => done,
    }
}
