//! The threads that copy: a batch of files of one directory at a time.

use super::*;

impl Shared<'_> {
    pub(super) fn record(&self, record: &Record) -> Result<()> {
        lock(&self.journal).add(record)
    }

    pub(super) fn fail(&self, path: TreePath, e: &Error) {
        self.fail_text(path, e.to_string());
    }

    pub(super) fn fail_text(&self, path: TreePath, error: String) {
        lock(&self.skipped).insert(path.clone());
        lock(&self.errors).push(PathError { path, error });
    }

    /// Leaves out what lies in a directory that failed; anything else without a place is our own mistake.
    pub(super) fn skip_below_failed(&self, path: &TreePath) -> Result<()> {
        let mut skipped = lock(&self.skipped);
        if path.ancestors().skip(1).any(|dir| skipped.contains(&dir)) {
            skipped.insert(path.clone());
            return Ok(());
        }
        Err(Error::integrity(format!("the plan has no directory for {path}; please report this")))
    }

    pub(super) fn skip(&self, path: &TreePath) {
        lock(&self.skipped).insert(path.clone());
    }

    /// A copying thread.
    pub(super) fn copy_batches(&self, receive: &Mutex<Receiver<Batch>>) {
        loop {
            let batch = match lock(receive).recv() {
                Ok(batch) => batch,
                Err(_) => return,
            };
            if self.stop.load(Ordering::Relaxed) {
                continue;
            }
            if let Err(e) = self.batch(&batch) {
                self.stop.store(true, Ordering::Relaxed);
                lock(&self.failed).get_or_insert(e);
            }
        }
    }

    pub(super) fn batch(&self, batch: &Batch) -> Result<()> {
        let mut wanted = Vec::with_capacity(batch.files.len());
        for (i, piece) in batch.pieces.iter().enumerate() {
            let tree_dir = match piece.place {
                Place::Mirror(_) => self.to.control.root.open(&piece.dir).ok(),
                Place::New(_) => None,
            };
            let old_stage = self.old_stage.as_ref().and_then(|s| s.open(&piece.dir).ok());
            for (_, entry, old) in batch.files.iter().filter(|(at, ..)| *at == i) {
                if let (Some(dir), None) = (&tree_dir, old)
                    && self.in_the_way(dir, &piece.dir, entry)
                {
                    continue;
                }
                if !old_stage.as_ref().map_or(Ok(false), |from| self.resume(from, piece, entry, *old))? {
                    wanted.push((piece, entry, *old, self.partial(entry)?));
                }
            }
        }
        let mut asked = Vec::with_capacity(wanted.len());
        for (piece, entry, _, partial) in &wanted {
            let from = partial.as_ref().map_or(0, |p| p.have);
            asked.push(Wanted { dir: &piece.dir, entry, from });
        }
        self.to.source.contents(&asked, &mut |i, content| {
            if self.to.cancel.load(Ordering::Relaxed) {
                return Err(interrupted());
            }
            let (piece, entry, old, partial) = &wanted[i];
            match (content, partial) {
                (Ok(Content::Stream(stream)), Some(partial)) => {
                    self.grow(piece, entry, *old, partial, stream)
                }
                (content, _) => self.one(piece, entry, *old, content),
            }
        })?;
        for piece in &batch.pieces {
            if let Place::New(dir) = &piece.place {
                self.close(dir.clone())?;
            }
        }
        Ok(())
    }

    /// What is excluded, or a special file, is never displaced.
    pub(super) fn in_the_way(&self, dir: &Dir, path: &TreePath, entry: &Entry) -> bool {
        let Ok(stat) = dir.stat(&*entry.name) else {
            return false;
        };
        let blocked = stat.kind == FileKind::Special
            || self.to.filter.excludes(path, &entry.name, stat.kind == FileKind::Dir);
        if blocked {
            self.fail_text(path.join(&entry.name), "something excluded or special is in the way".into());
        }
        blocked
    }

    pub(super) fn one(
        &self,
        piece: &Piece,
        entry: &Entry,
        old: Option<Ident>,
        content: Result<Content<'_>>,
    ) -> Result<()> {
        let path = piece.dir.join(&entry.name);
        let dir = piece.place.dir();
        let mut entry = entry.clone();
        let mut content = match content {
            Ok(Content::Vanished) => {
                self.vanished(&path);
                return Ok(());
            }
            Ok(content) => content,
            Err(e) if e.class == Class::Interrupted => return Err(e),
            Err(e) => {
                self.fail(path, &e);
                return Ok(());
            }
        };
        let mut tries = 0;
        loop {
            let written = match self.writer.write(dir, &path, &entry, &mut content) {
                Err(e) if is_of_path(&e) => Err(e),
                written => written?,
            };
            let mut still = true;
            match written {
                Ok((fd, digest, n)) if is_promised(&entry, &digest, n) => {
                    if let Content::File(from) = content {
                        if self.is_fresh(from) && !self.held_still(from, &digest, n) {
                            if self.to.cancel.load(Ordering::Relaxed) {
                                return Err(interrupted());
                            }
                            still = false;
                        }
                        self.count_dropped(from);
                    }
                    if still {
                        return match self.writer.finish(&fd, &path, &entry) {
                            Ok(stat) => self.staged(piece, entry, old, &stat, digest),
                            Err(e) if is_of_path(&e) => {
                                let _ = dir.unlink(&entry.name);
                                self.fail(path, &e);
                                Ok(())
                            }
                            Err(e) => Err(e),
                        };
                    }
                }
                Ok(_) => {}
                Err(e) if e.class == Class::Interrupted => return Err(e),
                Err(e) => {
                    let _ = dir.unlink(&entry.name);
                    self.fail_or_gone(path, &e);
                    return Ok(());
                }
            }
            dir.unlink(&entry.name).context(|| format!("take back {path}"))?;
            tries += 1;
            let Content::File(from) = content else {
                self.mismatch(path);
                return Ok(());
            };
            if tries == TRIES {
                self.fail_text(path, "it changes while it is copied".into());
                return Ok(());
            }
            // its name may have another file by now; what is open here was whole under it, if it holds still
            if let Some(now) = self.as_it_is(from, &entry) {
                lock(&self.renewed).insert(path.clone());
                entry = now;
            }
            if rustix::fs::seek(from, rustix::fs::SeekFrom::Start(0)).is_err() {
                self.fail_text(path, "it changes while it is copied".into());
                return Ok(());
            }
        }
    }

    /// What an open file is now; `None` when it does not hold still, or cannot be read.
    pub(super) fn as_it_is(&self, from: std::os::fd::BorrowedFd<'_>, entry: &Entry) -> Option<Entry> {
        let before = stat_fd(from).ok()?;
        rustix::fs::seek(from, rustix::fs::SeekFrom::Start(0)).ok()?;
        let (digest, n) = hash_fd(from, before.size, self.to.cancel).ok()?;
        let after = stat_fd(from).ok()?;
        let node = Node::File { size: n, digest };
        let still = before.same_state(&after) && n == after.size;
        still.then(|| Entry { mode: after.mode, mtime: after.mtime, node, ..entry.clone() })
    }

    /// Whether the source's file changed so shortly ago that another write would not show in its times. A
    /// write moves them when it begins, so a writer that is held up within one write is not seen either.
    pub(super) fn is_fresh(&self, from: impl std::os::fd::AsFd) -> bool {
        let Ok(stat) = stat_fd(from) else { return true };
        // a clock that is far ahead of ours says nothing, and must not cost every file a wait
        (-2_000_000_000..CLOCK_STEP.as_nanos() as i128).contains(&(now().nanos() - stat.id.ctime.nanos()))
    }

    /// Waits for the clock, then reads what was copied once more: from the same open file, whatever its name
    /// is by now, and no further than was copied.
    pub(super) fn held_still(&self, from: std::os::fd::BorrowedFd<'_>, digest: &Digest, n: u64) -> bool {
        std::thread::sleep(CLOCK_STEP);
        let again = rustix::fs::seek(from, rustix::fs::SeekFrom::Start(0))
            .and_then(|_| hash_first(from, n, self.to.cancel));
        again.is_ok_and(|again| again == *digest)
    }

    /// A stream that ended early because the file is gone there is no error of ours.
    pub(super) fn fail_or_gone(&self, path: TreePath, e: &Error) {
        if e.source.as_ref().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            self.vanished(&path);
        } else {
            self.fail(path, e);
        }
    }

    pub(super) fn mismatch(&self, path: TreePath) {
        lock(&self.mismatched).insert(path.clone());
        self.fail_text(path, "what was sent is not what its digest says".into());
    }

    pub(super) fn vanished(&self, path: &TreePath) {
        self.to.counters.vanished.fetch_add(1, Ordering::Relaxed);
        self.skip(path);
    }

    pub(super) fn count_dropped(&self, from: impl std::os::fd::AsFd) {
        let mut names = [0u8; 512];
        let n = match rustix::fs::flistxattr(from, &mut names) {
            Ok(n) => n,
            Err(Errno::RANGE) => names.len(),
            Err(_) => 0,
        };
        // a security label belongs to the host, not to the content
        let other = |name: &[u8]| !name.is_empty() && !name.starts_with(b"security.");
        if names[..n].split(|&b| b == 0).any(other) {
            self.to.dropped.xattrs.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes a file from an interrupted run's staging when its content is what is wanted.
    pub(super) fn resume(
        &self,
        from: &Dir,
        piece: &Piece,
        entry: &Entry,
        old: Option<Ident>,
    ) -> Result<bool> {
        let Ok(stat) = from.stat(&*entry.name) else {
            return Ok(false);
        };
        let Node::File { size, digest } = entry.node else {
            return Ok(false);
        };
        if stat.kind != FileKind::File || stat.size != size || size == 0 {
            return Ok(false);
        }
        let whole = from.open_file(&entry.name).and_then(|fd| hash_fd(&fd, size, self.to.cancel));
        let dir = piece.place.dir();
        if whole.is_ok_and(|(d, n)| d == digest && n == size)
            && from.rename_with(&entry.name, dir, &entry.name, RenameFlags::NOREPLACE).is_ok()
        {
            let path = piece.dir.join(&entry.name);
            let fd = dir.open_file(&entry.name).context(|| format!("open {path} again"))?;
            let stat = self.writer.finish(&fd, &path, entry)?;
            self.to.counters.resumed.fetch_add(1, Ordering::Relaxed);
            self.staged(piece, entry.clone(), old, &stat, digest)?;
            return Ok(true);
        }
        Ok(false)
    }

    pub(super) fn staged(
        &self,
        piece: &Piece,
        entry: Entry,
        old: Option<Ident>,
        stat: &Stat,
        digest: Digest,
    ) -> Result<()> {
        self.to.counters.files.fetch_add(1, Ordering::Relaxed);
        self.to.counters.bytes.fetch_add(stat.size, Ordering::Relaxed);
        self.place(&piece.place, piece.dir.join(&entry.name), entry, old, stat, Some(digest))
    }

    pub(super) fn place(
        &self,
        place: &Place,
        path: TreePath,
        entry: Entry,
        old: Option<Ident>,
        stat: &Stat,
        digest: Option<Digest>,
    ) -> Result<()> {
        match place {
            Place::New(dir) => {
                let id = EntryId { id: self.local_id(stat), ..EntryId::default() };
                lock(&dir.done).push((entry, id, *stat));
                Ok(())
            }
            Place::Mirror(_) => {
                let last = self.is_last(&path);
                self.record(&Record::Put { path, new: Ident::of(stat), old, row: 0, digest, last })
            }
        }
    }

    /// Whether this path comes into place after the others.
    pub(super) fn is_last(&self, path: &TreePath) -> bool {
        let parent = path.parent().unwrap_or_default();
        self.to.order.is_some_and(|order| order.excludes(&parent, path.split().1, false))
    }

    pub(super) fn local_id(&self, stat: &Stat) -> LocalId {
        let ino = if self.to.control.class == FsClass::Fuse { 0 } else { stat.id.ino };
        LocalId { ino, ..stat.id }
    }

    pub(super) fn link(
        &self,
        path: &TreePath,
        entry: &Entry,
        place: &Place,
        old: Option<Ident>,
    ) -> Result<()> {
        let Node::Link { target } = &entry.node else {
            return Ok(());
        };
        let dir = place.dir();
        let cannot = || format!("make the link {path}");
        dir.symlink(target, &entry.name).context(cannot)?;
        let (uid, gid) = self.to.owners.ids(&entry.owner);
        if uid.is_some() || gid.is_some() {
            dir.chown(&entry.name, uid, gid).context(|| format!("set the owner of {path}"))?;
        }
        dir.set_mtime(&entry.name, entry.mtime).context(cannot)?;
        let stat = dir.stat(&*entry.name).context(cannot)?;
        self.place(place, path.clone(), entry.clone(), old, &stat, None)
    }
}
