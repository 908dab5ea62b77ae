//! How long a reader can see a mix of old and new files, measured by a reader.
//!
//! Polling can only bound that time, so both bounds are kept: `observed` is what was certainly seen (from the first new file to
//! the last old one) and `at_most` adds the blind spots at both ends. A reader that took a whole core would slow
//! down the program it watches, so it looks at a sample of the files that always includes the first and the last in
//! path order, and rests between sweeps.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::run::{At, Res};
use crate::tree::Tree;

/// Files looked at in one sweep.
const SAMPLE: u64 = 64;
const REST: Duration = Duration::from_millis(1);

/// What a reader learnt of one commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) observed: Duration,
    pub(crate) at_most: Duration,
    /// Looks at the tree: sweeps of the sample, or directory handles opened.
    pub(crate) looks: usize,
    /// Looks that found a file missing or with a marker of neither version. Must be 0.
    pub(crate) broken: usize,
    /// Looks through one directory handle that found both versions. Must be 0 for `swap`.
    pub(crate) torn: usize,
}

/// The versions a reader may meet.
#[derive(Clone, Copy)]
pub(crate) struct Versions {
    pub(crate) old: u64,
    pub(crate) new: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Old,
    New,
    Broken,
}

impl Versions {
    fn judge(self, marker: io::Result<[u8; 8]>) -> Seen {
        match marker.map(u64::from_le_bytes) {
            Ok(version) if version == self.old => Seen::Old,
            Ok(version) if version == self.new => Seen::New,
            _ => Seen::Broken,
        }
    }
}

/// One look: when it began and ended, and when in it the first new and the last old file were met.
struct Look {
    start: Instant,
    end: Instant,
    first_new: Option<Instant>,
    last_old: Option<Instant>,
    broken: bool,
}

impl Look {
    fn take(start: Instant, versions: Versions, markers: impl Iterator<Item = io::Result<[u8; 8]>>) -> Self {
        let mut look = Self { start, end: start, first_new: None, last_old: None, broken: false };
        for marker in markers {
            let seen = versions.judge(marker);
            look.end = Instant::now();
            match seen {
                Seen::New => look.first_new = look.first_new.or(Some(look.end)),
                Seen::Old => look.last_old = Some(look.end),
                Seen::Broken => look.broken = true,
            }
        }
        look
    }
}

/// Reads a sample of the files by their paths until told to stop, and then once more.
pub(crate) fn by_path(tree: &Tree, dst: &Path, versions: Versions, stop: &AtomicBool) -> Res<Window> {
    let paths: Vec<PathBuf> = sample(tree).map(|path| dst.join(path)).collect();
    let markers = || paths.iter().map(|path| File::open(path).and_then(marker));
    let mut looks = Vec::new();
    while !stop.load(Ordering::Acquire) {
        looks.push(Look::take(Instant::now(), versions, markers()));
        thread::sleep(REST);
    }
    looks.push(Look::take(Instant::now(), versions, markers()));
    judge(&looks, false)
}

/// Opens the destination once per look and reads the first and the last file through that handle. Never rests: it has to
/// resolve much less than a millisecond.
pub(crate) fn by_handle(tree: &Tree, dst: &Path, versions: Versions, stop: &AtomicBool) -> Res<Window> {
    let ends: Vec<PathBuf> = [0, tree.spec.files - 1].map(|index| tree.spec.path(index)).into();
    let look = || -> Option<Look> {
        let start = Instant::now();
        let root = rustix::fs::open(dst, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let look = Look::take(
            start,
            versions,
            ends.iter().map(|path| {
                let root = root.as_ref().map_err(|&error| io::Error::from(error))?;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                marker(File::from(rustix::fs::openat(root, path, flags, Mode::empty())?))
            }),
        );
        // Who still holds the directory that was exchanged away may see it being deleted: no look at the tree.
        let stale = look.broken && root.is_ok_and(|root| replaced(&root, dst));
        (!stale).then_some(look)
    };
    let mut looks = Vec::new();
    while !stop.load(Ordering::Acquire) {
        looks.extend(look());
    }
    looks.extend(look());
    judge(&looks, true)
}

/// Whether another directory has taken the place of the open one.
fn replaced(open: &OwnedFd, path: &Path) -> bool {
    match (rustix::fs::fstat(open), rustix::fs::stat(path)) {
        (Ok(open), Ok(now)) => (open.st_dev, open.st_ino) != (now.st_dev, now.st_ino),
        _ => false,
    }
}

/// From the first to the last change of inode time among the files: for a file put in place by a rename, the moment of that
/// rename. Independent of any reader; as fine as the file system's clock.
pub(crate) fn by_ctime(tree: &Tree, dst: &Path) -> Res<Duration> {
    let mut span: Option<(i128, i128)> = None;
    for index in 0..tree.spec.files {
        let path = dst.join(tree.spec.path(index));
        let meta = path.symlink_metadata().at(&path)?;
        let ctime = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
        let (low, high) = span.unwrap_or((ctime, ctime));
        span = Some((low.min(ctime), high.max(ctime)));
    }
    let nanos = span.map_or(0, |(low, high)| high - low);
    Ok(Duration::from_nanos(u64::try_from(nanos)?))
}

fn sample(tree: &Tree) -> impl Iterator<Item = PathBuf> {
    let last = tree.spec.files - 1;
    let count = SAMPLE.min(tree.spec.files).max(2);
    (0..count).map(move |step| tree.spec.path(step * last / (count - 1)))
}

fn marker(mut file: File) -> io::Result<[u8; 8]> {
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn judge(looks: &[Look], atomic: bool) -> Res<Window> {
    let first_new = looks.iter().position(|look| look.first_new.is_some());
    let last_old = looks.iter().rposition(|look| look.last_old.is_some());
    let (Some(first_new), Some(last_old)) = (first_new, last_old) else {
        return Err("the reader did not see both versions".into());
    };
    // Looks that found nothing at all (a directory missing for a moment) bound nothing.
    let before = looks[..first_new].iter().rfind(|look| look.last_old.is_some());
    let after = looks[last_old + 1..].iter().find(|look| look.first_new.is_some());
    let (Some(before), Some(after)) = (before, after) else {
        return Err("the reader saw new files before the run, or old ones after it".into());
    };
    let (Some(opened), Some(closed)) = (looks[first_new].first_new, looks[last_old].last_old) else {
        return Err("a look without its time".into());
    };
    let mixed = |look: &&Look| look.first_new.is_some() && look.last_old.is_some();
    Ok(Window {
        observed: closed.saturating_duration_since(opened),
        at_most: after.end.saturating_duration_since(before.start),
        looks: looks.len(),
        broken: looks.iter().filter(|look| look.broken).count(),
        torn: if atomic { looks.iter().filter(mixed).count() } else { 0 },
    })
}
