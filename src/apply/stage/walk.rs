//! The thread that walks the plan: makes directories and links, hands files to the others, notes the steps of
//! the commit.

use super::*;

/// The thread that walks the plan.
pub(super) struct Walk<'w, 's> {
    pub(super) shared: &'w Shared<'s>,
    pub(super) mirror: Mirror<'w>,
    pub(super) send: SyncSender<Batch>,
    /// New directories that may get more.
    pub(super) stack: Vec<Arc<NewDir>>,
    pub(super) batch: Batch,
    pub(super) touched: BTreeSet<TreePath>,
    /// Of these, the ones whose attributes are noted and which can be written to.
    pub(super) prepared: BTreeSet<TreePath>,
    pub(super) attrs: BTreeMap<TreePath, SetAttrs>,
}

impl Walk<'_, '_> {
    pub(super) fn step(&mut self, step: &Step<'_, i64>) -> Result<()> {
        if self.shared.to.cancel.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        if self.shared.stop.load(Ordering::Relaxed) {
            // another thread's error is the one to report
            return Err(interrupted());
        }
        while let Some(top) = self.stack.last()
            && is_past(&top.path, step.path)
        {
            if let Some(dir) = self.stack.pop() {
                self.shared.close(dir)?;
            }
        }
        let result = match step.op {
            Op::Create | Op::Update => self.bring(step),
            Op::Move => self.moved(step),
            Op::Delete if step.covered => Ok(()),
            Op::Delete => self.remove(step),
            Op::Attrs => self.attributes(step),
        };
        match result {
            Err(e) if is_of_path(&e) => {
                self.shared.fail(step.path.clone(), &e);
                Ok(())
            }
            result => result,
        }
    }

    /// Remembers that names change in the directory of this step.
    pub(super) fn touch(&mut self, step: &Step<'_, i64>) -> Result<()> {
        let parent = step.path.parent().unwrap_or_default();
        if !self.prepared.insert(parent.clone()) {
            return Ok(());
        }
        if let Some(entry) = step.dir {
            self.attrs.entry(parent.clone()).or_insert_with(|| set_attrs(self.shared.to.owners, entry));
        }
        match self.new_parent(step.path) {
            Some(dir) => dir.gets_moves.store(true, Ordering::Relaxed),
            None => self.open_dir(&parent)?,
        }
        self.touched.insert(parent);
        Ok(())
    }

    /// Whoever is not root needs the right to write in a directory; it gets its own mode back at the end.
    pub(super) fn open_dir(&mut self, path: &TreePath) -> Result<()> {
        if self.shared.root {
            return Ok(());
        }
        let Ok(stat) = self.shared.to.control.root.open(path).and_then(|d| d.stat_self()) else {
            return Ok(());
        };
        if stat.mode & 0o300 == 0o300 {
            return Ok(());
        }
        let back = SetAttrs { mode: Some(stat.mode), mtime: Some(stat.mtime), ..SetAttrs::default() };
        self.attrs.entry(path.clone()).or_insert(back);
        self.shared.record(&Record::Open { path: path.clone() })
    }

    pub(super) fn new_parent(&self, path: &TreePath) -> Option<Arc<NewDir>> {
        self.stack.iter().rev().find(|dir| path.is_within(&dir.path)).cloned()
    }

    pub(super) fn bring(&mut self, step: &Step<'_, i64>) -> Result<()> {
        let Some(entry) = step.new else { return Ok(()) };
        let parent = step.path.parent().unwrap_or_default();
        let place = match self.new_parent(step.path) {
            Some(dir) if dir.path == parent => Place::New(dir),
            // the directory above could not be made, and was named
            Some(_) => return self.shared.skip_below_failed(step.path),
            None if step.covered => return self.shared.skip_below_failed(step.path),
            None => {
                self.touch(step)?;
                Place::Mirror(self.mirror.dir(&parent)?)
            }
        };
        let old = step.old.map(old_ident);
        if old.is_some_and(|old| old.kind == Kind::Dir) {
            // it leaves its place, for which its own mode counts
            self.open_dir(step.path)?;
            self.attrs.remove(step.path);
        }
        match entry.node {
            Node::File { .. } => self.file(parent, place, entry, old),
            _ if matches!(place, Place::Mirror(_)) && old.is_none() && self.is_blocked(&parent, entry) => {
                Ok(())
            }
            Node::Dir { .. } => {
                let old_row = step.old.and_then(|o| o.dir).unwrap_or(0);
                let dir = self.shared.make_dir(step.path, entry, place, old, old_row)?;
                self.stack.push(Arc::new(dir));
                Ok(())
            }
            Node::Link { .. } => self.shared.link(step.path, entry, &place, old),
            Node::Unreadable { .. } => Ok(()),
        }
    }

    /// Whether something that must not be displaced lies where `entry` is to be.
    fn is_blocked(&self, parent: &TreePath, entry: &Entry) -> bool {
        let root = &self.shared.to.control.root;
        root.open(parent).is_ok_and(|dir| self.shared.in_the_way(&dir, parent, entry))
    }

    pub(super) fn file(
        &mut self,
        dir: TreePath,
        place: Place,
        entry: &Entry,
        old: Option<Ident>,
    ) -> Result<()> {
        let batch = &self.batch;
        let other = batch.pieces.last().is_none_or(|piece| piece.dir != dir);
        let dirs = if self.shared.to.remote { BATCH_DIRS } else { 1 };
        let full = batch.files.len() >= BATCH_FILES
            || batch.bytes >= BATCH_BYTES
            || other && batch.pieces.len() >= dirs;
        if full {
            self.flush()?;
        }
        if other || full {
            if let Place::New(new) = &place {
                new.open.fetch_add(1, Ordering::Relaxed);
            }
            self.batch.pieces.push(Piece { dir, place });
        }
        self.batch.files.push((self.batch.pieces.len() - 1, entry.clone(), old));
        self.batch.bytes += entry.size();
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        if self.batch.files.is_empty() {
            return Ok(());
        }
        // the threads end only when this end is dropped, or on an error that is reported first
        self.send.send(std::mem::take(&mut self.batch)).map_err(|_| interrupted())
    }

    pub(super) fn moved(&mut self, step: &Step<'_, i64>) -> Result<()> {
        let (Some(from), Some(entry)) = (step.from, step.new) else {
            return Ok(());
        };
        let id = Ident::known(&from.entry, from.id.unwrap_or_default());
        let (dir, name) = from.path.split();
        let dir = TreePath::new(dir).unwrap_or_default();
        let now = self.shared.to.control.root.open(&dir).and_then(|d| d.stat(name));
        let gone = matches!(now, Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP));
        if gone || now.as_ref().is_ok_and(|stat| !id.is_untouched(stat)) {
            let error =
                format!("{} changed since it was scanned and was not moved here; run again", from.path);
            self.shared.fail_text(step.path.clone(), error);
            return Ok(());
        }
        if let Err(e) = now {
            let e = Error::io(e, format!("cannot look at {}", from.path));
            self.shared.fail(step.path.clone(), &e);
            return Ok(());
        }
        if self.is_blocked(&step.path.parent().unwrap_or_default(), entry) {
            return Ok(());
        }
        let root = &self.shared.to.control.root;
        self.touch(step)?;
        self.open_dir(&dir)?;
        if let (false, Ok(stat)) = (dir.is_root(), root.open(&dir).and_then(|d| d.stat_self())) {
            // it loses a name, and with that its mtime; a step of its own overrides this
            let back = SetAttrs { mtime: Some(stat.mtime), ..SetAttrs::default() };
            self.attrs.entry(dir.clone()).or_insert(back);
        }
        if entry.kind() == Kind::Dir {
            self.open_dir(&from.path)?;
            self.attrs.remove(&from.path);
        }
        self.touched.insert(dir);
        let digest = if let Node::File { digest, .. } = entry.node { Some(digest) } else { None };
        // a directory may have been opened for us to move it
        let attrs = if entry.kind() != Kind::Dir && entry.same_attrs(&from.entry) {
            SetAttrs::default()
        } else {
            set_attrs(self.shared.to.owners, entry)
        };
        self.mirror.dir(&step.path.parent().unwrap_or_default())?;
        self.shared.record(&Record::Move {
            from: from.path.clone(),
            path: step.path.clone(),
            id,
            digest,
            attrs,
        })
    }

    pub(super) fn remove(&mut self, step: &Step<'_, i64>) -> Result<()> {
        let Some(old) = step.old else { return Ok(()) };
        self.touch(step)?;
        if old.entry.kind() == Kind::Dir {
            self.open_dir(step.path)?;
            self.attrs.remove(step.path);
        }
        self.mirror.dir(&step.path.parent().unwrap_or_default())?;
        let row = old.dir.unwrap_or(0);
        self.shared.record(&Record::Remove { path: step.path.clone(), old: old_ident(old), row })
    }

    pub(super) fn attributes(&mut self, step: &Step<'_, i64>) -> Result<()> {
        let (Some(old), Some(entry)) = (step.old, step.new) else {
            return Ok(());
        };
        let attrs = set_attrs(self.shared.to.owners, entry);
        let (parent, name) = step.path.split();
        let parent = TreePath::new(parent).unwrap_or_default();
        let now = self.shared.to.control.root.open(&parent).and_then(|d| d.stat(name));
        if entry.kind() != Kind::Dir && now.is_ok_and(|stat| stat.nlink > 1) {
            // they are those of its other names too: it becomes a file of its own
            return self.bring(step);
        }
        self.touched.insert(parent);
        if entry.kind() == Kind::Dir {
            self.attrs.insert(step.path.clone(), attrs);
            return Ok(());
        }
        let digest = if let Node::File { digest, .. } = entry.node { Some(digest) } else { None };
        let id = Some(old_ident(old));
        self.shared.record(&Record::Attrs { path: step.path.clone(), id, digest, attrs })
    }
}

/// Whether nothing that follows `at` in bytewise order lies in `dir`.
pub(super) fn is_past(dir: &TreePath, at: &TreePath) -> bool {
    if at.is_within(dir) {
        return false;
    }
    // '0' is the byte after '/'
    dir.as_bytes().iter().chain(b"0").cmp(at.as_bytes()) != Order::Greater
}

pub(super) fn old_ident(old: &Item<i64>) -> Ident {
    Ident::known(&old.entry, old.id.unwrap_or_default())
}

/// All attributes of an entry, as they are set on this host.
pub(crate) fn set_attrs(owners: &Owners, entry: &Entry) -> SetAttrs {
    let (uid, gid) = owners.ids(&entry.owner);
    let mode = (entry.kind() != Kind::Link).then_some(entry.mode);
    SetAttrs { mode, mtime: Some(entry.mtime), uid, gid }
}
