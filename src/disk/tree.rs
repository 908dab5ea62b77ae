//! Removing and measuring whole directories of our own (staging, trash), at any depth, without following
//! links and without recursion.

use rustix::io::{Errno, Result};

use super::{Dir, FileKind};
use crate::model::{Name, TreePath};

/// Removes `name` in `dir` with all that is in it; fine when it is not there. Stops at a mount (`BUSY`).
pub fn remove_tree(dir: &Dir, name: &[u8]) -> Result<()> {
    remove_tree_until(dir, name, &|| false)
}

/// The same, until `stop` says so: then `CANCELED`, with what was not removed yet still there.
pub fn remove_tree_until(dir: &Dir, name: &[u8], stop: &dyn Fn() -> bool) -> Result<()> {
    match dir.stat(name) {
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e),
        Ok(stat) if stat.kind != FileKind::Dir => return dir.unlink(name),
        Ok(_) => {}
    }
    let top = TreePath::from_name(name)?;
    // what somebody mounted in it is not ours to empty
    let mount = dir.stat_self()?.mount;
    // a directory stands twice: to be emptied, then to be removed
    let mut stack = vec![(top, false)];
    while let Some((path, emptied)) = stack.pop() {
        if stop() {
            return Err(Errno::CANCELED);
        }
        let (parent, own) = path.split();
        let parent = dir.open(&TreePath::from_bytes(parent)?)?;
        if emptied {
            parent.rmdir(own)?;
            continue;
        }
        if parent.rmdir(own).is_ok() {
            continue;
        }
        let at = match parent.open_child(own) {
            Err(Errno::ACCESS) => {
                parent.chmod(own, 0o700)?;
                parent.open_child(own)?
            }
            at => at?,
        };
        let stat = at.stat_self()?;
        if stat.mount != mount {
            return Err(Errno::BUSY);
        }
        if stat.mode & 0o300 != 0o300 {
            parent.chmod(own, 0o700)?;
        }
        stack.push((path.clone(), true));
        let mut files = Vec::new();
        at.list(&mut |name| {
            let name = Name::new(name.to_bytes()).map_err(|_| Errno::INVAL)?;
            match at.stat(&*name) {
                Ok(stat) if stat.kind == FileKind::Dir => stack.push((path.join(&name), false)),
                Ok(_) => files.push(name),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
            Ok(())
        })?;
        for name in files {
            if stop() {
                return Err(Errno::CANCELED);
            }
            match at.unlink(&name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// Files and their bytes in `dir`, at any depth.
pub fn tree_size(dir: &Dir) -> Result<(u64, u64)> {
    tree_size_until(dir, &|| false)
}

/// The same, until `stop` says so: then `CANCELED`.
pub fn tree_size_until(dir: &Dir, stop: &dyn Fn() -> bool) -> Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    let mut stack = vec![TreePath::root()];
    while let Some(path) = stack.pop() {
        let at = match dir.open(&path) {
            Ok(at) => at,
            Err(Errno::ACCESS | Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        at.list(&mut |name| {
            if stop() {
                return Err(Errno::CANCELED);
            }
            let Ok(name) = Name::new(name.to_bytes()) else {
                return Ok(());
            };
            match at.stat(&*name) {
                Ok(stat) if stat.kind == FileKind::Dir => stack.push(path.join(&name)),
                Ok(stat) => {
                    files += 1;
                    bytes += stat.size;
                }
                Err(_) => {}
            }
            Ok(())
        })?;
    }
    Ok((files, bytes))
}

impl TreePath {
    fn from_name(name: &[u8]) -> Result<Self> {
        Name::new(name).map(|n| TreePath::root().join(&n)).map_err(|_| Errno::INVAL)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        TreePath::new(bytes).map_err(|_| Errno::INVAL)
    }
}
