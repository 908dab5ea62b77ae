//! One directory's listing: names and stats, filtered and sorted, with a digest of all of it.

use rustix::io::Errno;

use super::StatHash;
use crate::disk::{Dir, FileKind, Stat};
use crate::model::{Digest, TreePath};
use crate::plan::{CONTROL_DIR, Filter};

/// A listed name: where it stands in [`Listing::names`], and its stat.
#[derive(Debug)]
pub(crate) struct Listed {
    start: u32,
    len: u16,
    /// `Err`: there, but `stat` failed.
    pub(crate) stat: Result<Stat, Errno>,
}

/// A directory as it is now.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    names: Vec<u8>,
    /// By ascending name.
    pub(crate) entries: Vec<Listed>,
    /// Fifos, sockets and devices.
    pub(crate) specials: u64,
    /// Files with more than one name.
    pub(crate) hard_links: u64,
    /// Files with holes.
    pub(crate) sparse: u64,
    /// Excluded by the filter (our own directory at the root aside).
    pub(crate) excluded: u64,
}

impl Listing {
    pub(crate) fn name(&self, e: &Listed) -> &[u8] {
        &self.names[e.start as usize..e.start as usize + usize::from(e.len)]
    }

    /// Reads the directory. `stable_ino`: the file system's inode numbers last.
    pub(crate) fn read(
        dir: &Dir,
        path: &TreePath,
        filter: &Filter,
        stable_ino: bool,
    ) -> rustix::io::Result<Self> {
        let mut out = Self::default();
        dir.list(&mut |name| {
            let bytes = name.to_bytes();
            let stat = match dir.stat(name) {
                // vanished between the listing and the look
                Err(Errno::NOENT) => return Ok(()),
                stat => stat.map(|mut s| {
                    s.id.ino = if stable_ino { s.id.ino } else { 0 };
                    s
                }),
            };
            let is_dir = stat.is_ok_and(|s| s.kind == FileKind::Dir);
            if filter.excludes(path, bytes, is_dir) {
                out.excluded += u64::from(!(path.is_root() && bytes == CONTROL_DIR));
            } else if stat.is_ok_and(|s| s.kind == FileKind::Special) {
                out.specials += 1;
            } else {
                if let Ok(s) = &stat
                    && s.kind == FileKind::File
                {
                    out.hard_links += u64::from(s.nlink > 1);
                    // small files may live in their inode and have no blocks at all
                    out.sparse += u64::from(s.size > 4096 && s.blocks * 512 + 4096 < s.size);
                }
                let start = u32::try_from(out.names.len()).map_err(|_| Errno::OVERFLOW)?;
                let len = u16::try_from(bytes.len()).map_err(|_| Errno::NAMETOOLONG)?;
                out.names.extend_from_slice(bytes);
                out.entries.push(Listed { start, len, stat });
            }
            Ok(())
        })?;
        let names = &out.names;
        let name = |e: &Listed| &names[e.start as usize..e.start as usize + usize::from(e.len)];
        out.entries.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        Ok(out)
    }

    /// The digest of names and stats.
    pub(crate) fn stat_hash(&self) -> StatHash {
        let mut hash = StatHasher::default();
        for e in &self.entries {
            hash.add(self.name(e), e.stat.as_ref().ok());
        }
        hash.finish()
    }
}

/// Digests a listing entry by entry, in ascending order of names.
#[derive(Default)]
pub(crate) struct StatHasher {
    buf: Vec<u8>,
}

impl StatHasher {
    /// Adds an entry; `None` for one that could not be looked at.
    pub(crate) fn add(&mut self, name: &[u8], stat: Option<&Stat>) {
        let b = &mut self.buf;
        b.extend_from_slice(name);
        b.push(0);
        let Some(s) = stat else { return };
        b.push(s.kind as u8 + 1);
        b.extend_from_slice(&s.mode.to_le_bytes());
        b.extend_from_slice(&s.uid.to_le_bytes());
        b.extend_from_slice(&s.gid.to_le_bytes());
        b.extend_from_slice(&s.mtime.sec.to_le_bytes());
        b.extend_from_slice(&s.mtime.nsec.to_le_bytes());
        b.extend_from_slice(&s.id.ino.to_le_bytes());
        // a directory's own size and ctime say nothing that its listing does not
        if s.kind != FileKind::Dir {
            b.extend_from_slice(&s.size.to_le_bytes());
            b.extend_from_slice(&s.id.ctime.sec.to_le_bytes());
            b.extend_from_slice(&s.id.ctime.nsec.to_le_bytes());
        }
    }

    /// The digest of what was added.
    pub(crate) fn finish(self) -> StatHash {
        let mut out = [0; 16];
        out.copy_from_slice(&Digest::of(&self.buf).0[..16]);
        out
    }
}
