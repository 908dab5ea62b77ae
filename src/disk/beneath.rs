//! Directory handles. A path below a handle is opened with `openat2(RESOLVE_BENEATH |
//! RESOLVE_NO_SYMLINKS)`, so a symbolic link that somebody swaps in during a run is an error, never a
//! way out. Long paths are opened in pieces: neither PATH_MAX nor the depth of a tree matters.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, Statx, StatxFlags,
    Timespec, Timestamps, UTIME_OMIT, Uid,
};
use rustix::io::{Errno, Result};

use crate::model::{LocalId, Mtime, TreePath};

/// Pieces of a long path stay below PATH_MAX (4096 with the NUL).
const PIECE: usize = 4000;

/// What a directory entry is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Link,
    /// A fifo, socket or device: never copied.
    Special,
}

/// What `statx` said.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Kind.
    pub kind: FileKind,
    /// Permission bits, 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Mtime,
    /// Inode and change time.
    pub id: LocalId,
    /// Hard links.
    pub nlink: u32,
    /// 512-byte blocks allocated.
    pub blocks: u64,
    /// Device, as (major, minor).
    pub dev: (u32, u32),
    /// Mount id, unique among the present mounts only.
    pub mount: u64,
}

impl Stat {
    /// Whether inode, change time, size and mtime are the same: the same state of the same file.
    pub fn same_state(&self, other: &Stat) -> bool {
        self.id == other.id && self.size == other.size && self.mtime == other.mtime && self.kind == other.kind
    }
}

const MASK: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::MNT_ID);

fn stat_of(s: &Statx) -> Stat {
    let time = |t: &rustix::fs::StatxTimestamp| Mtime { sec: t.tv_sec, nsec: t.tv_nsec };
    let kind = match FileType::from_raw_mode(s.stx_mode.into()) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Dir,
        FileType::Symlink => FileKind::Link,
        _ => FileKind::Special,
    };
    Stat {
        kind,
        mode: s.stx_mode & 0o7777,
        uid: s.stx_uid,
        gid: s.stx_gid,
        size: s.stx_size,
        mtime: time(&s.stx_mtime),
        id: LocalId { ino: s.stx_ino, ctime: time(&s.stx_ctime) },
        nlink: s.stx_nlink,
        blocks: s.stx_blocks,
        dev: (s.stx_dev_major, s.stx_dev_minor),
        mount: s.stx_mnt_id,
    }
}

/// The clock that local file systems take their times from.
pub fn now() -> Mtime {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Mtime { sec: t.tv_sec, nsec: u32::try_from(t.tv_nsec).unwrap_or(0) }
}

/// An open directory.
#[derive(Debug)]
pub struct Dir(OwnedFd);

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `openat2` is missing before Linux 5.6 and forbidden in some sandboxes.
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);
/// `O_NOATIME` is only for a file's owner and root.
static NO_NOATIME: AtomicBool = AtomicBool::new(false);

const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Dir {
    /// Opens a directory by an operating-system path; links in it are followed.
    pub fn open_root(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, path, flags, Mode::empty()).map(Self)
    }

    /// Where it is now, as this process sees it; `None` when it was removed or cannot be told.
    pub fn path(&self) -> Option<std::path::PathBuf> {
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.0));
        let path = std::fs::read_link(link).ok()?;
        // of a removed one it is its old path with a note behind it
        path.is_dir().then_some(path)
    }

    /// Opens the directory at `path` below this one; no component may be a link.
    pub fn open(&self, path: &TreePath) -> Result<Self> {
        let mut rest = path.as_bytes();
        if rest.is_empty() {
            return rustix::fs::openat(&self.0, c".", DIR_FLAGS, Mode::empty()).map(Self);
        }
        let mut at: Option<Dir> = None;
        while !rest.is_empty() {
            let (piece, next) = cut(rest);
            at = Some(at.as_ref().unwrap_or(self).open_piece(piece)?);
            rest = next;
        }
        at.ok_or(Errno::NOENT)
    }

    fn open_piece(&self, piece: &[u8]) -> Result<Self> {
        if !NO_OPENAT2.load(Ordering::Relaxed) {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            loop {
                match rustix::fs::openat2(&self.0, piece, DIR_FLAGS, Mode::empty(), resolve) {
                    // a rename elsewhere raced with the check; try again
                    Err(Errno::AGAIN | Errno::INTR) => continue,
                    Err(Errno::NOSYS | Errno::PERM) => break,
                    done => return done.map(Self),
                }
            }
            NO_OPENAT2.store(true, Ordering::Relaxed);
        }
        let mut at: Option<OwnedFd> = None;
        for part in piece.split(|&b| b == b'/') {
            let from = at.as_ref().unwrap_or(&self.0);
            at = Some(rustix::fs::openat(from, part, DIR_FLAGS, Mode::empty())?);
        }
        at.map(Self).ok_or(Errno::NOENT)
    }

    /// Stats the entry `name`, not following a link.
    pub fn stat(&self, name: impl rustix::path::Arg) -> Result<Stat> {
        rustix::fs::statx(&self.0, name, AtFlags::SYMLINK_NOFOLLOW, MASK).map(|s| stat_of(&s))
    }

    /// Stats the directory itself.
    pub fn stat_self(&self) -> Result<Stat> {
        stat_fd(&self.0)
    }

    /// Opens a regular file for reading; a link is an error, a fifo does not block.
    pub fn open_file(&self, name: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        if !NO_NOATIME.load(Ordering::Relaxed) {
            match rustix::fs::openat(&self.0, name, flags | OFlags::NOATIME, Mode::empty()) {
                Err(Errno::PERM) => NO_NOATIME.store(true, Ordering::Relaxed),
                done => return done,
            }
        }
        rustix::fs::openat(&self.0, name, flags, Mode::empty())
    }

    /// [`Dir::open_file`] for a file anywhere below; no link is followed on the way.
    pub fn open_file_at(&self, path: &TreePath) -> Result<OwnedFd> {
        self.open(&path.parent().unwrap_or_default())?.open_file(path.split().1)
    }

    /// Creates a new regular file for writing (and reading); it must not exist.
    pub fn create_file(&self, name: &[u8], mode: u16) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.0, name, flags, mode_of(mode))
    }

    /// Opens or creates a file of our own, for reading and writing.
    pub fn open_own_file(&self, name: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(0o600))
    }

    /// Makes a directory.
    pub fn mkdir(&self, name: &[u8], mode: u16) -> Result<()> {
        rustix::fs::mkdirat(&self.0, name, mode_of(mode))
    }

    /// Makes and opens a directory; one that is there already is opened.
    pub fn ensure_dir(&self, name: &[u8], mode: u16) -> Result<Dir> {
        match self.mkdir(name, mode) {
            Ok(()) | Err(Errno::EXIST) => self.open_child(name),
            Err(e) => Err(e),
        }
    }

    /// Opens the directory `name`; a link is an error.
    pub fn open_child(&self, name: &[u8]) -> Result<Dir> {
        rustix::fs::openat(&self.0, name, DIR_FLAGS, Mode::empty()).map(Self)
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, target: &[u8], name: &[u8]) -> Result<()> {
        rustix::fs::symlinkat(target, &self.0, name)
    }

    /// A link's target.
    pub fn read_link(&self, name: &[u8]) -> Result<Vec<u8>> {
        rustix::fs::readlinkat(&self.0, name, Vec::new()).map(|c| c.into_bytes())
    }

    /// Renames, replacing what is there.
    pub fn rename(&self, name: &[u8], to: &Dir, new: &[u8]) -> Result<()> {
        rustix::fs::renameat(&self.0, name, &to.0, new)
    }

    /// Renames with flags (`NOREPLACE`, `EXCHANGE`).
    pub fn rename_with(&self, name: &[u8], to: &Dir, new: &[u8], flags: RenameFlags) -> Result<()> {
        rustix::fs::renameat_with(&self.0, name, &to.0, new, flags)
    }

    /// Makes a second name for a file.
    pub fn link(&self, name: &[u8], to: &Dir, new: &[u8]) -> Result<()> {
        rustix::fs::linkat(&self.0, name, &to.0, new, AtFlags::empty())
    }

    /// Removes a name that is not a directory.
    pub fn unlink(&self, name: &[u8]) -> Result<()> {
        rustix::fs::unlinkat(&self.0, name, AtFlags::empty())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, name: &[u8]) -> Result<()> {
        rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR)
    }

    /// Sets permission bits of a file or directory. Never follows: the caller has seen no link here, and
    /// a link that was swapped in since is refused.
    pub fn chmod(&self, name: &[u8], mode: u16) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.0, name, flags, Mode::empty())?;
        if stat_fd(&fd)?.kind == FileKind::Link {
            return Err(Errno::LOOP);
        }
        let proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        rustix::fs::chmodat(CWD, proc, mode_of(mode), AtFlags::empty())
    }

    /// Sets the owner and the group; a link's own, never its target's.
    pub fn chown(&self, name: &[u8], uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        rustix::fs::chownat(&self.0, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Sets the mtime, to the nanosecond; a link's own.
    pub fn set_mtime(&self, name: &[u8], mtime: Mtime) -> Result<()> {
        rustix::fs::utimensat(&self.0, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Calls `each` with every entry's name except `.` and `..`, in the file system's order.
    pub fn list(&self, each: &mut dyn FnMut(&CStr) -> Result<()>) -> Result<()> {
        let mut buffer = [const { MaybeUninit::uninit() }; 32 * 1024];
        let mut raw = RawDir::new(&self.0, &mut buffer);
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                each(name)?;
            }
        }
        Ok(())
    }

    /// Makes everything on this file system durable.
    pub fn sync_fs(&self) -> Result<()> {
        rustix::fs::syncfs(&self.0)
    }

    /// Makes this directory's own entries durable.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.0)
    }
}

/// Stats an open file.
pub(crate) fn stat_fd(fd: impl AsFd) -> Result<Stat> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, MASK).map(|s| stat_of(&s))
}

/// Sets an open file's mtime.
pub(crate) fn set_mtime_fd(fd: impl AsFd, mtime: Mtime) -> Result<()> {
    rustix::fs::futimens(fd, &times(mtime))
}

/// Sets an open file's permission bits.
pub(crate) fn chmod_fd(fd: impl AsFd, mode: u16) -> Result<()> {
    rustix::fs::fchmod(fd, mode_of(mode))
}

/// Sets an open file's owner.
pub(crate) fn chown_fd(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    rustix::fs::fchown(fd, uid.map(Uid::from_raw), gid.map(Gid::from_raw))
}

fn mode_of(mode: u16) -> Mode {
    Mode::from_raw_mode(mode.into())
}

fn times(mtime: Mtime) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.sec, tv_nsec: mtime.nsec.into() },
    }
}

/// The longest run of whole components that is short enough, and the rest.
fn cut(path: &[u8]) -> (&[u8], &[u8]) {
    if path.len() <= PIECE {
        return (path, &[]);
    }
    // a component has at most 255 bytes, so there is a slash
    let at = path[..PIECE].iter().rposition(|&b| b == b'/').unwrap_or(PIECE);
    (&path[..at], &path[at + 1..])
}
