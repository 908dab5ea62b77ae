//! `.syncagent/keep`: one file per content, named by its digest.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use rustix::io::Errno;

use crate::disk::{Dir, FileKind, Stat, remove_tree, stat_fd};
use crate::model::{Digest, TreePath, escaped};
use crate::scan::hash_fd;

/// How the names of files begin that are being made.
pub(super) const NEW: &[u8] = b"new-";

/// Where a content lies below `keep`.
pub(super) fn place(digest: &Digest) -> (String, String) {
    let name = digest.to_string();
    (name[..2].to_owned(), name)
}

/// Opens a kept content of `size` bytes; `None` when it is not kept.
pub(in crate::agent::source) fn open_kept(keep: &Dir, digest: &Digest, size: u64) -> Option<OwnedFd> {
    let (dir, name) = place(digest);
    let fd = keep.open_child(dir.as_bytes()).and_then(|d| d.open_file(name.as_bytes())).ok()?;
    stat_fd(&fd).is_ok_and(|s| s.kind == FileKind::File && s.size == size).then_some(fd)
}

/// Whether a content of `size` bytes is kept.
pub(in crate::agent::source) fn is_kept(keep: &Dir, digest: &Digest, size: u64) -> bool {
    let (dir, name) = place(digest);
    // both names are ours, and so is the directory: one look is enough
    keep.stat(format!("{dir}/{name}")).is_ok_and(|s| s.kind == FileKind::File && s.size == size)
}

/// Forgets a content that turned out to be damaged.
pub(in crate::agent::source) fn drop_kept(keep: &Dir, digest: &Digest) {
    let (dir, name) = place(digest);
    let _ = keep.open_child(dir.as_bytes()).and_then(|d| d.unlink(name.as_bytes()));
}

/// Forgets a content when it is damaged, and says whether it was; peers may say anything.
pub(in crate::agent::source) fn drop_if_damaged(
    keep: &Dir,
    digest: &Digest,
    size: u64,
    cancel: &AtomicBool,
) -> bool {
    let Some(fd) = open_kept(keep, digest, size) else { return false };
    let damaged = hash_fd(&fd, size, cancel).is_ok_and(|(found, n)| found != *digest || n != size);
    if damaged {
        drop_kept(keep, digest);
    }
    damaged
}

/// Bytes and files in the store.
#[derive(Clone, Copy, Default)]
pub(super) struct Used {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// What of the store was passed over: not ours, or not to be looked at or removed.
#[derive(Default)]
pub(super) struct Passed {
    entries: u64,
    first: String,
}

impl Passed {
    fn note(&mut self, path: &[u8], why: impl std::fmt::Display) {
        if self.entries == 0 {
            self.first = format!("{} ({why})", escaped(Path::new(OsStr::from_bytes(path))));
        }
        self.entries += 1;
    }

    /// For people; `None` when nothing was.
    pub(super) fn text(&self) -> Option<String> {
        let what = "entries of .syncagent/keep are passed over, they are not syncagent's or cannot be read or removed";
        (self.entries > 0).then(|| format!("{} {what}; the first is {}", self.entries, self.first))
    }
}

/// Puts a finished file in its place; whatever else has that name makes way.
pub(super) fn put(keep: &Dir, tmp: &[u8], digest: &Digest) -> rustix::io::Result<()> {
    let (dir, name) = place(digest);
    let (dir, name) = (dir.as_bytes(), name.as_bytes());
    let at = match keep.ensure_dir(dir, 0o700) {
        Err(Errno::NOTDIR | Errno::LOOP | Errno::EXIST) => {
            remove_tree(keep, dir)?;
            keep.ensure_dir(dir, 0o700)?
        }
        at => at?,
    };
    match keep.rename(tmp, &at, name) {
        Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
            remove_tree(&at, name)?;
            keep.rename(tmp, &at, name)
        }
        renamed => renamed,
    }
}

/// Takes an entry's directory, name, digest and state.
type EachKept<'a> = dyn FnMut(&Dir, &[u8], &Digest, &Stat) -> rustix::io::Result<()> + 'a;

/// Calls `each` with everything in the store that has a content's name. One entry
/// that is not ours, or that fails, does not keep the others from being looked at.
///
/// # Errors
/// The store itself cannot be listed.
pub(super) fn each_kept(keep: &Dir, each: &mut EachKept<'_>) -> rustix::io::Result<Passed> {
    const FOREIGN: &str = "not syncagent's";
    let mut passed = Passed::default();
    // a handle lists once
    for dir in names(&keep.open(&TreePath::root())?)? {
        let ours = dir.len() == 2 && dir.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !ours {
            // what is being made is neither kept nor foreign
            if !dir.starts_with(NEW) {
                passed.note(&dir, FOREIGN);
            }
            continue;
        }
        let at = match keep.open_child(&dir).and_then(|at| Ok((names(&at)?, at))) {
            Ok(at) => at,
            Err(Errno::NOENT) => continue,
            Err(e) => {
                passed.note(&dir, e);
                continue;
            }
        };
        let (names, at) = at;
        for name in names {
            let path = [&dir[..], b"/", &name[..]].concat();
            let digest = std::str::from_utf8(&name).ok().and_then(|name| name.parse::<Digest>().ok());
            let Some(digest) = digest else {
                passed.note(&path, FOREIGN);
                continue;
            };
            match at.stat(&*name).and_then(|stat| each(&at, &name, &digest, &stat)) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => passed.note(&path, e),
            }
        }
    }
    Ok(passed)
}

fn names(dir: &Dir) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    dir.list(&mut |name| {
        out.push(name.to_bytes().to_vec());
        Ok(())
    })?;
    Ok(out)
}

/// What is in the store at the start; what a crash left half-made goes.
pub(super) fn count(keep: &Dir) -> rustix::io::Result<Used> {
    for name in names(&keep.open(&TreePath::root())?)?.iter().filter(|name| name.starts_with(NEW)) {
        let _ = remove_tree(keep, name);
    }
    let mut used = Used::default();
    // what is passed over is told by the sweep, which follows
    each_kept(keep, &mut |_, _, _, stat| {
        if stat.kind == FileKind::File {
            used.files += 1;
            used.bytes += stat.size;
        }
        Ok(())
    })?;
    Ok(used)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_not_ours_ends_nothing_and_makes_way_where_it_has_our_name() {
        let at = tempfile::tempdir().unwrap();
        let write = |path: &str| {
            let path = at.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        };
        let digests: Vec<Digest> = (0..3u8).map(|n| Digest::of(&[n])).collect();
        let path = |n: usize| {
            let (dir, name) = place(&digests[n]);
            format!("{dir}/{name}")
        };
        write(&path(0));
        let foreign = ["zz", "notes/mine", "new-7/x", &format!("{}/0000/x", &path(0)[..2])];
        foreign.iter().for_each(|path| write(path));
        // a file where a directory of ours belongs, and a directory where a file does
        write(&path(1)[..2]);
        write(&format!("{}/x", path(2)));
        let keep = Dir::open_root(at.path()).unwrap();
        let used = count(&keep).unwrap();
        assert_eq!((used.files, used.bytes), (1, 1));
        let mut seen = Vec::new();
        let passed = each_kept(&keep, &mut |_, _, digest, stat| {
            seen.push((*digest, stat.kind));
            Ok(())
        });
        seen.sort_by_key(|(digest, _)| *digest != digests[0]);
        assert_eq!(seen, [(digests[0], FileKind::File), (digests[2], FileKind::Dir)]);
        let text = passed.unwrap().text().unwrap();
        assert!(text.starts_with("4 entries"), "{text}");
        for n in [1, 2] {
            write("new-1");
            put(&keep, b"new-1", &digests[n]).unwrap();
            assert!(is_kept(&keep, &digests[n], 1), "{n}");
        }
        // what is somebody else's, and in nobody's way, stays
        assert!(at.path().join("notes/mine").exists() && !at.path().join("new-7").exists());
        // an entry that fails is passed over, too
        let passed = each_kept(&keep, &mut |_, _, _, _| Err(Errno::PERM)).unwrap();
        assert!(passed.text().unwrap().starts_with("6 entries"), "{:?}", passed.text());
    }
}
