//! The staging directory mirrors the tree: what will be at `a/b/c` is staged at `stage/a/b/c`, and what
//! a commit displaces lies there afterwards. Directories of the tree that get single entries are
//! made here on demand.

use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use crate::disk::{Dir, chmod_fd, chown_fd};
use crate::error::{Context as _, Result, lock};
use crate::model::TreePath;

const SETGID: u16 = 0o2000;

/// The staging directory and a handle of the last directory used in it.
#[derive(Debug)]
pub(crate) struct Mirror<'a> {
    tree: &'a Dir,
    stage: Dir,
    last: Mutex<Option<(TreePath, Arc<Dir>)>>,
}

impl<'a> Mirror<'a> {
    pub(crate) fn new(tree: &'a Dir, stage: Dir) -> Result<Self> {
        let mirror = Self { tree, stage, last: Mutex::default() };
        mirror.inherit(&TreePath::root(), &mirror.stage)?;
        Ok(mirror)
    }

    /// The mirror of the tree's directory `path`, made when it is missing.
    pub(crate) fn dir(&self, path: &TreePath) -> Result<Arc<Dir>> {
        let mut last = lock(&self.last);
        if let Some((at, dir)) = &*last
            && at == path
        {
            return Ok(dir.clone());
        }
        let dir = match self.stage.open(path) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => self.make(path)?,
            Err(e) => return Err(e).context(|| format!("open the staging directory of {path}")),
        };
        let dir = Arc::new(dir);
        *last = Some((path.clone(), dir.clone()));
        Ok(dir)
    }

    fn make(&self, path: &TreePath) -> Result<Dir> {
        let cannot = || format!("make the staging directory of {path}");
        let mut at = self.stage.open(&TreePath::root()).context(cannot)?;
        for part in path.components() {
            at = at.ensure_dir(part, 0o700).context(cannot)?;
        }
        self.inherit(path, &at)?;
        Ok(at)
    }

    /// New entries of a setgid directory get its group; so they must here.
    fn inherit(&self, path: &TreePath, mirror: &Dir) -> Result<()> {
        let Ok(tree) = self.tree.open(path).and_then(|d| d.stat_self()) else {
            return Ok(());
        };
        let now = mirror.stat_self().context(|| format!("stat the staging directory of {path}"))?;
        if tree.mode & SETGID != 0 && (now.gid != tree.gid || now.mode & SETGID == 0) {
            // without the right to do so the group stays ours, as it would in the tree
            let _ = chown_fd(mirror, None, Some(tree.gid));
            let _ = chmod_fd(mirror, SETGID | 0o700);
        } else if tree.mode & SETGID == 0 && now.mode & SETGID != 0 {
            let _ = chmod_fd(mirror, 0o700);
            let _ = chown_fd(mirror, None, Some(rustix::process::getegid().as_raw()));
        }
        Ok(())
    }
}
