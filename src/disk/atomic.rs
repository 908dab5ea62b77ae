//! Small files of our own that are either the old or the new one after a crash.

use std::fs::File;
use std::io::Write as _;

use super::Dir;
use rustix::fs::{Mode, OFlags};

/// Writes `name` in `dir`: a new file beside it, synced, renamed over it, the directory synced. The
/// caller holds the tree's lock; a leftover of a crash is overwritten.
///
/// # Errors
/// What the operating system says; the old file is then still there.
pub fn write_atomic(dir: &Dir, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    put_atomic(dir, name, bytes)?;
    dir.sync()?;
    Ok(())
}

/// The same without syncing the directory: after a power cut it may be the old one.
///
/// # Errors
/// What the operating system says; the old file is then still there.
pub fn put_atomic(dir: &Dir, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let tmp = format!("{name}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, &*tmp, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(bytes)?;
    file.sync_all()?;
    dir.rename(tmp.as_bytes(), dir, name.as_bytes())?;
    Ok(())
}

/// Opens a directory of the operating system and makes it when it is missing, parents too.
///
/// # Errors
/// What the operating system says.
pub fn ensure_dir_all(path: &std::path::Path, mode: u32) -> std::io::Result<Dir> {
    use std::os::unix::fs::DirBuilderExt as _;
    match std::fs::DirBuilder::new().recursive(true).mode(mode).create(path) {
        // there, but not to be looked at: opening it says why
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    Ok(Dir::open_root(path)?)
}
