//! Disk space, and why nothing is deleted while measuring.
//!
//! ext4 does not hand out an inode again within minutes of its deletion: its allocator steps over each one deleted lately
//! (`recently_deleted` in fs/ext4/ialloc.c: 60 s, and 300 s more while the inode's block is not written back). After
//! `rm -r` of 100,000 files, creating a file costs up to a millisecond instead of some microseconds, for both programs
//! alike, and hides what differs between them. So every run gets a new directory, old ones are only moved aside, and all go
//! at the very end. Where the disk is too small for that, or a run follows another closely, the benchmark waits.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{Advice, fadvise, statvfs};

use crate::machine::file_system;
use crate::run::{At, Bench, Res, sync_file_system};
use crate::spec::Spec;

/// How long a deletion slows down creations, with some seconds to spare.
const RECENT: Duration = Duration::from_secs(370);
/// Below this scale too few files are deleted to matter.
const SMOKE: f64 = 0.1;

impl Bench {
    /// Moves a directory aside to be deleted later; it may be missing. Its pages leave the cache, so that what is measured
    /// next has as much memory in every round.
    pub(crate) fn discard(&self, dir: &Path) -> Res<()> {
        if !dir.try_exists().at(dir)? {
            return Ok(());
        }
        forget(dir)?;
        let graveyard = self.graveyard();
        fs::create_dir_all(&graveyard).at(&graveyard)?;
        let unused = (0..u32::MAX).map(|number| graveyard.join(number.to_string()));
        for target in unused {
            if !target.try_exists().at(&target)? {
                return fs::rename(dir, &target).at(dir);
            }
        }
        Err("no name left to move a directory aside".into())
    }

    /// Deletes what was moved aside and notes when.
    pub(crate) fn bury(&self) -> Res<()> {
        let graveyard = self.graveyard();
        if !graveyard.try_exists().at(&graveyard)? {
            return Ok(());
        }
        eprintln!("deleting what is no longer needed");
        fs::remove_dir_all(&graveyard).at(&graveyard)?;
        sync_file_system(&self.work)?;
        let note = self.last_removal();
        fs::write(&note, "its mtime is when this directory's trees were deleted\n").at(&note)
    }

    /// Waits until the last deletion no longer counts.
    pub(crate) fn wait_out_removal(&self) -> Res<()> {
        let removed = fs::metadata(self.last_removal()).and_then(|meta| meta.modified());
        let ext4 = file_system(&self.work)?.starts_with("ext");
        if let (Ok(removed), true, true) = (removed, ext4, self.scale >= SMOKE) {
            let age = SystemTime::now().duration_since(removed).unwrap_or_default();
            let rest = RECENT.saturating_sub(age);
            if !rest.is_zero() {
                eprintln!("waiting {} s: ext4 is slow to create files after a deletion", rest.as_secs());
                thread::sleep(rest);
            }
        }
        Ok(())
    }

    /// Sees to it that so many copies of a tree fit on the disk.
    pub(crate) fn make_room(&self, spec: &Spec, copies: u64) -> Res<()> {
        if self.lacks(spec, copies)?.is_some() {
            self.bury()?;
            self.wait_out_removal()?;
        }
        self.lacks(spec, copies)?.map_or(Ok(()), |lack| Err(lack.into()))
    }

    fn lacks(&self, spec: &Spec, copies: u64) -> Res<Option<String>> {
        let stat = statvfs(&self.work).at(&self.work)?;
        let (space, files) = (copies * spec.blocks_bytes() + (1 << 30), copies * spec.total());
        let free = stat.f_bavail * stat.f_frsize;
        let place = self.work.display();
        if free < space {
            let (free, space) = (free >> 20, space >> 20);
            return Ok(Some(format!("{place}: {free} MiB free, {space} MiB needed")));
        }
        // No total where inodes are not counted, as on btrfs.
        if stat.f_files > 0 && stat.f_favail < files {
            let free = stat.f_favail;
            return Ok(Some(format!("{place}: {free} inodes free, {files} needed")));
        }
        Ok(None)
    }

    fn graveyard(&self) -> PathBuf {
        self.work.join("discarded")
    }

    fn last_removal(&self) -> PathBuf {
        self.work.join("last-removal")
    }
}

/// Takes a tree's content out of the page cache.
pub(crate) fn forget(dir: &Path) -> Res<()> {
    sync_file_system(dir)?;
    for entry in walkdir::WalkDir::new(dir) {
        let entry = entry.at(dir)?;
        if entry.file_type().is_file() {
            let file = File::open(entry.path()).at(entry.path())?;
            fadvise(&file, 0, None, Advice::DontNeed).map_err(io::Error::from).at(entry.path())?;
        }
    }
    Ok(())
}
