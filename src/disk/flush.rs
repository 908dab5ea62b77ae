//! Several directories made durable at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::{Errno, Result};

use super::Dir;
use crate::error::lock;
use crate::model::TreePath;

/// More at a time gain nothing: the disk is flushed for all that wait.
const AT_A_TIME: usize = 8;

/// Makes the entries of the directories durable, in no order; one that is not there is passed over. They are done side by side: a
/// journaling file system writes out what is pending in one go, so who comes meanwhile waits for the same flush of the disk,
/// not for one more.
///
/// # Errors
/// The operating system's, the first that was met; the others were still asked for.
pub fn sync_dirs(dirs: &[(&Dir, TreePath)]) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed = std::sync::Mutex::new(Ok(()));
    let work = || {
        while let Some((below, path)) = dirs.get(next.fetch_add(1, Ordering::Relaxed)) {
            match below.open(path).and_then(|dir| dir.sync()) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(e) => {
                    let mut failed = lock(&failed);
                    *failed = failed.and(Err(e));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..dirs.len().min(AT_A_TIME) {
            // where no thread can be had the others do its part
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_asked_for_and_an_error_is_told() {
        let tmp = tempfile::tempdir().unwrap();
        let at = Dir::open_root(tmp.path()).unwrap();
        let path = |i: usize| TreePath::new(i.to_string().as_bytes()).unwrap();
        (0..20)
            .filter(|i| i % 3 > 0)
            .for_each(|i| std::fs::create_dir(tmp.path().join(i.to_string())).unwrap());
        let mut all: Vec<_> = (0..20).map(|i| (&at, path(i))).collect();
        assert_eq!(sync_dirs(&all), Ok(()), "what is not there is in nobody's way");
        assert_eq!(sync_dirs(&[]), Ok(()));
        // nothing can be made durable there
        let proc = Dir::open_root(std::path::Path::new("/proc/self")).unwrap();
        all.insert(7, (&proc, TreePath::root()));
        assert_eq!(sync_dirs(&all), Err(Errno::INVAL));
    }
}
