//! Which file system a path is on, in terms that last over remounts and reboots: a vanished mount
//! leaves an empty directory that looks like a deleted tree. Device and mount ids mean something only
//! within one run.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use serde::{Deserialize, Serialize};

use super::Dir;
use crate::model::escaped;

/// A file system's lasting identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountId {
    /// Type, as in mountinfo: `ext4`, `nfs4`, `fuse.sshfs`.
    pub fs_type: String,
    /// Device or server.
    pub source: String,
    /// The directory of the file system that is mounted (bind mounts, subvolumes).
    pub root: String,
    /// UUID, where the host can tell.
    pub uuid: Option<String>,
    /// The directory that was asked about, as a path of the file system itself: the same however the directory is
    /// reached, by the file system's own mount or by one more (a service's sandbox mounts what it may write).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// What matters about a file system type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsClass {
    /// Times come from this host's clock; `syncfs` reaches the disk.
    Local,
    /// Times come from another clock; others may write.
    Network,
    /// Like network, and `syncfs` may not reach the store: `fsync` does.
    Fuse,
}

impl FsClass {
    /// Asks `statfs`.
    pub fn of(fd: impl AsFd) -> Self {
        match rustix::fs::fstatfs(fd).map(|s| s.f_type as u64 & 0xffff_ffff) {
            Ok(0x6573_5546) => Self::Fuse,
            // nfs, cifs, smb2, 9p, ceph, ocfs2, gfs2, lustre, afs
            Ok(
                0x6969 | 0xff53_4d42 | 0xfe53_4d42 | 0x0102_1997 | 0x00c3_6400 | 0x7461_636f | 0x0116_1970
                | 0x0bd0_0bd0 | 0x5346_414f,
            ) => Self::Network,
            Ok(_) => Self::Local,
            Err(_) => Self::Network,
        }
    }
}

impl MountId {
    /// The identity of the file system that `dir` is on.
    pub fn of(dir: &Dir) -> std::io::Result<Self> {
        let id = dir.stat_self()?.mount;
        let text = std::fs::read("/proc/self/mountinfo")?;
        let line = text.split(|&b| b == b'\n').find_map(|line| parse(line, id));
        let Some(Line { root, at, fs_type, source }) = line else {
            let magic = rustix::fs::fstatfs(dir).map(|s| s.f_type).unwrap_or_default();
            let fs_type = format!("type {magic:#x}");
            return Ok(Self { fs_type, source: String::new(), root: String::new(), uuid: None, place: None });
        };
        let place = dir.path().and_then(|path| Some(escaped(&joined(&root, path.strip_prefix(&at).ok()?))));
        let uuid = source.starts_with('/').then(|| uuid_of(Path::new(&source))).flatten();
        Ok(Self { fs_type, source, root: root.to_string_lossy().into_owned(), uuid, place })
    }

    /// Whether this is the directory's file system as `pinned` says it was.
    pub fn is(&self, pinned: &MountId) -> bool {
        let same_store = match (&self.uuid, &pinned.uuid) {
            (Some(a), Some(b)) => a == b,
            _ => self.source == pinned.source,
        };
        // the same mount, or one more mount of the very same directory
        let same_place = self.root == pinned.root || self.place.is_some() && self.place == pinned.place;
        self.fs_type == pinned.fs_type && same_place && same_store
    }
}

impl std::fmt::Display for MountId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.fs_type, self.source)?;
        if let Some(uuid) = &self.uuid {
            write!(f, " (UUID {uuid})")?;
        }
        if self.root != "/" {
            write!(f, " at {}", self.root)?;
        }
        Ok(())
    }
}

/// A line of mountinfo, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    root: PathBuf,
    at: PathBuf,
    fs_type: String,
    source: String,
}

/// `36 35 98:0 /root /mount/point opts ... - type source superopts`, when it is of mount `id`.
fn parse(line: &[u8], id: u64) -> Option<Line> {
    let end = line.windows(3).position(|w| w == b" - ")?;
    let (mut left, mut right) = (line[..end].split(|&b| b == b' '), line[end + 3..].split(|&b| b == b' '));
    if std::str::from_utf8(left.next()?).ok()?.parse() != Ok(id) {
        return None;
    }
    let path_of = |field: &[u8]| PathBuf::from(std::ffi::OsString::from_vec(unescape(field)));
    let text_of = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let root = path_of(left.nth(2)?);
    let at = path_of(left.next()?);
    Some(Line { root, at, fs_type: text_of(right.next()?), source: text_of(right.next()?) })
}

/// `join` puts a slash behind what is joined with nothing.
fn joined(root: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { root.to_owned() } else { root.join(below) }
}

fn uuid_of(device: &Path) -> Option<String> {
    let device = device.canonicalize().ok()?;
    let entries = std::fs::read_dir("/dev/disk/by-uuid").ok()?;
    entries.flatten().find_map(|e| {
        let same = e.path().canonicalize().ok()? == device;
        same.then(|| String::from_utf8_lossy(&e.file_name().into_vec()).into_owned())
    })
}

/// Where a directory lies in its file system: the device, and the path from the file system's own root. Two
/// mounts of one file system give the same answer for the same directory.
pub fn place_in_fs(path: &Path) -> Option<(String, PathBuf)> {
    let id = Dir::open_root(path).and_then(|d| d.stat_self()).ok()?.mount;
    let text = std::fs::read("/proc/self/mountinfo").ok()?;
    text.split(|&b| b == b'\n').find_map(|line| {
        let mut fields = line.split(|&b| b == b' ');
        if std::str::from_utf8(fields.next()?).ok()?.parse() != Ok(id) {
            return None;
        }
        let device = String::from_utf8_lossy(fields.nth(1)?).into_owned();
        let path_of = |field: &[u8]| PathBuf::from(std::ffi::OsString::from_vec(unescape(field)));
        let root = path_of(fields.next()?);
        let at = path_of(fields.next()?);
        Some((device, root.join(path.strip_prefix(at).ok()?)))
    })
}

/// mountinfo writes blanks and backslashes in octal.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&b, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| b == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(code) => {
                out.push(code);
                rest = &tail[3..];
            }
            None => {
                out.push(b);
                rest = tail;
            }
        }
    }
    out
}

/// Whether `path` is where something is mounted.
pub fn is_mount_root(path: &Path) -> bool {
    rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS)
        .is_ok_and(|s| s.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_and_without_optional_fields() {
        let a = b"29 1 254:0 / / rw,relatime - ext4 /dev/vda rw";
        let b = b"36 29 0:31 /export/a /mnt/x rw shared:7 master:1 - nfs4 srv:/export rw,vers=4.2";
        let of = |root: &str, at: &str, fs_type: &str, source: &str| Line {
            root: root.into(),
            at: at.into(),
            fs_type: fs_type.into(),
            source: source.into(),
        };
        assert_eq!(parse(a, 29), Some(of("/", "/", "ext4", "/dev/vda")));
        assert_eq!(parse(b, 36), Some(of("/export/a", "/mnt/x", "nfs4", "srv:/export")));
        assert_eq!(parse(b, 29), None);
    }

    #[test]
    fn octal_escapes_are_undone() {
        assert_eq!(unescape(br"/mnt/a\040b\134c"), br"/mnt/a b\c");
    }

    #[test]
    fn a_uuid_outlives_a_changed_device_name() {
        let of = |source: &str, uuid: Option<&str>| MountId {
            fs_type: "ext4".into(),
            source: source.into(),
            root: "/".into(),
            uuid: uuid.map(String::from),
            place: None,
        };
        assert!(of("/dev/sdb1", Some("u")).is(&of("/dev/sda1", Some("u"))));
        assert!(!of("/dev/sda1", Some("v")).is(&of("/dev/sda1", Some("u"))));
        assert!(!of("/dev/sdb1", None).is(&of("/dev/sda1", Some("u"))));
    }

    #[test]
    fn one_more_mount_of_a_directory_is_the_same_place_and_another_directory_is_not() {
        let of = |root: &str, place: Option<&str>| MountId {
            fs_type: "ext4".into(),
            source: "/dev/sda1".into(),
            root: root.into(),
            uuid: None,
            place: place.map(String::from),
        };
        let plain = of("/", Some("/srv/tree"));
        assert!(of("/srv/tree", Some("/srv/tree")).is(&plain));
        assert!(of("/srv", Some("/srv/tree")).is(&plain));
        assert!(!of("/export/tree", Some("/export/tree")).is(&plain));
        assert!(!of("/srv/tree", None).is(&plain));
        // one that was pinned before places were: by what is mounted
        assert!(!of("/srv/tree", Some("/srv/tree")).is(&of("/", None)));
        assert!(of("/", Some("/srv/tree")).is(&of("/", None)));
    }

    #[test]
    fn a_place_is_a_path_in_the_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let id = MountId::of(&Dir::open_root(dir.path()).unwrap()).unwrap();
        let (_, place) = place_in_fs(&dir.path().canonicalize().unwrap()).unwrap();
        assert_eq!(id.place.as_deref(), place.to_str());
    }
}
