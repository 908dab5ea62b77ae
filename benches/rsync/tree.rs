//! Source trees on disk. A stamp beside a tree says that it is complete and unchanged; whoever changes a tree takes the stamp
//! away first, so that a killed run is never measured on by the next one.

use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::SystemTime;

use crate::run::{At, Bench, Res};
use crate::spec::{Rng, Size, Spec, WIDE, archive, dir_path};

/// A complete tree on disk.
pub(crate) struct Tree {
    pub(crate) spec: Spec,
    pub(crate) root: PathBuf,
    stamp: PathBuf,
}

impl Tree {
    /// Finds the tree in the work directory or makes it.
    pub(crate) fn ensure(bench: &Bench, spec: Spec) -> Res<Self> {
        let root = bench.work.join(format!("{}.src", spec.name));
        let stamp = bench.work.join(format!("{}.stamp", spec.name));
        let tree = Self { spec, root, stamp };
        if fs::read_to_string(&tree.stamp).is_ok_and(|found| found == tree.stamp_text()) {
            return Ok(tree);
        }
        tree.unstamp()?;
        bench.discard(&tree.root)?;
        eprintln!("{}: making {} files", tree.spec.name, tree.spec.total());
        for dir in 0..tree.spec.dirs {
            let path = tree.root.join(dir_path(dir));
            fs::create_dir_all(&path).at(&path)?;
        }
        if tree.spec.wide > 0 {
            let path = tree.root.join(WIDE);
            fs::create_dir_all(&path).at(&path)?;
        }
        tree.write_version(0)?;
        tree.stamp()?;
        Ok(tree)
    }

    /// Writes every file's content of that version and sets all times. Sizes and names are the same in every version.
    pub(crate) fn write_version(&self, version: u64) -> Res<()> {
        // Unit of work: a directory, the wide one (index `dirs`) last.
        let next = AtomicU64::new(0);
        let worker = || -> Res<()> {
            let mut buffer = Vec::new();
            loop {
                let dir = next.fetch_add(1, Ordering::Relaxed);
                let files = match dir {
                    dir if dir < self.spec.dirs => self.spec.files_of(dir),
                    dir if dir == self.spec.dirs => self.spec.files..self.spec.total(),
                    _ => return Ok(()),
                };
                for index in files {
                    self.write_file(index, version, &mut buffer)?;
                }
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|one| one.join().map_err(|_| "a generator thread died")?)
        })?;
        self.set_dir_times(version)
    }

    /// Writes one file's content of that version and sets its times.
    pub(crate) fn write_file(&self, index: u64, version: u64, buffer: &mut Vec<u8>) -> Res<()> {
        buffer.resize(self.spec.len(index) as usize, 0);
        Rng::new(&[1, index, version]).fill(buffer);
        if let (Size::Marked, Some(marker)) = (self.spec.size, buffer.first_chunk_mut()) {
            *marker = version.to_le_bytes();
        }
        if let Size::Archive = self.spec.size {
            archive(buffer);
        }
        let path = self.root.join(self.spec.path(index));
        let mut file = File::create(&path).at(&path)?;
        file.write_all(buffer).at(&path)?;
        set_mtime(&file, self.spec.mtime(index, version)).at(&path)
    }

    fn set_dir_times(&self, version: u64) -> Res<()> {
        for (index, dir) in walkdir::WalkDir::new(&self.root)
            .sort_by_file_name()
            .into_iter()
            .filter_entry(|entry| entry.file_type().is_dir())
            .enumerate()
        {
            let dir = dir.at(&self.root)?;
            let file = File::open(dir.path()).at(dir.path())?;
            set_mtime(&file, self.spec.mtime(self.spec.total() + index as u64, version)).at(dir.path())?;
        }
        Ok(())
    }

    /// Gives the root the times of its spec again, after names in it came and went.
    pub(crate) fn touch_root(&self) -> Res<()> {
        let file = File::open(&self.root).at(&self.root)?;
        set_mtime(&file, self.spec.mtime(self.spec.total(), 0)).at(&self.root)
    }

    /// Says that the tree is no longer what its spec says. Call before the first change.
    pub(crate) fn unstamp(&self) -> Res<()> {
        match fs::remove_file(&self.stamp) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at(&self.stamp),
            _ => Ok(()),
        }
    }

    /// Says that the tree is complete and as its spec says.
    pub(crate) fn stamp(&self) -> Res<()> {
        fs::write(&self.stamp, self.stamp_text()).at(&self.stamp)
    }

    fn stamp_text(&self) -> String {
        let layout = if let Size::Archive = self.spec.size { 2 } else { 1 };
        format!("layout {layout} {:?}\n", self.spec)
    }

    /// Moves the tree aside.
    pub(crate) fn remove(self, bench: &Bench) -> Res<()> {
        self.unstamp()?;
        bench.discard(&self.root)
    }
}

pub(crate) fn set_mtime(file: &File, mtime: SystemTime) -> std::io::Result<()> {
    file.set_times(FileTimes::new().set_modified(mtime))
}
