//! New directories: staged as they will be, with their index rows, deepest first.

use super::*;

/// A directory that comes into being.
pub(super) struct NewDir {
    pub(super) path: TreePath,
    pub(super) dir: Dir,
    pub(super) entry: Entry,
    pub(super) row: i64,
    pub(super) parent: Parent,
    /// Open pieces: one for the walk, one per batch and subdirectory.
    pub(super) open: AtomicUsize,
    pub(super) done: Mutex<Vec<(Entry, EntryId, Stat)>>,
    /// Something is moved into it when it is in place.
    pub(super) gets_moves: AtomicBool,
}

pub(super) enum Parent {
    New(Arc<NewDir>),
    /// A directory of the tree; what is in its place now.
    Tree {
        old: Option<Ident>,
        old_row: i64,
    },
    /// It is the root of a whole new tree.
    Root,
}

pub(super) fn root_dir(dir: &Dir, header: &RootHeader) -> Result<NewDir> {
    let dir = dir.open(&TreePath::root()).context(|| "open the new tree".into())?;
    let entry = Entry {
        // a root has no name; this one is not used
        name: crate::scan::listed_name(b"root")?,
        mode: header.mode,
        mtime: Mtime { sec: 0, nsec: 0 },
        owner: header.owner.clone(),
        node: Node::Dir { object: Digest([0; 32]), content: Digest([0; 32]) },
    };
    Ok(NewDir {
        path: TreePath::root(),
        dir,
        entry,
        row: ROOT_ID,
        parent: Parent::Root,
        open: AtomicUsize::new(1),
        done: Mutex::default(),
        gets_moves: AtomicBool::new(false),
    })
}

impl Shared<'_> {
    pub(super) fn make_dir(
        &self,
        path: &TreePath,
        entry: &Entry,
        place: Place,
        old: Option<Ident>,
        old_row: i64,
    ) -> Result<NewDir> {
        let dir = place.dir();
        let cannot = || format!("stage the directory {path}");
        dir.mkdir(&entry.name, 0o700).context(cannot)?;
        let dir = dir.open_child(&entry.name).context(cannot)?;
        let parent = match place {
            Place::New(parent) => {
                parent.open.fetch_add(1, Ordering::Relaxed);
                Parent::New(parent)
            }
            Place::Mirror(_) => Parent::Tree { old, old_row },
        };
        Ok(NewDir {
            path: path.clone(),
            dir,
            entry: entry.clone(),
            row: self.to.index.new_id(),
            parent,
            open: AtomicUsize::new(1),
            done: Mutex::default(),
            gets_moves: AtomicBool::new(false),
        })
    }

    /// One open piece of a new directory less; the last one finishes it, and the new directories above.
    pub(super) fn close(&self, mut dir: Arc<NewDir>) -> Result<()> {
        while dir.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            let (entry, stat) = self.finish_dir(&dir)?;
            match &dir.parent {
                Parent::Root => return Ok(()),
                Parent::Tree { old, old_row } => {
                    let put = Record::Put {
                        path: dir.path.clone(),
                        new: Ident::of(&stat),
                        old: *old,
                        row: *old_row,
                        digest: None,
                        last: self.is_last(&dir.path),
                    };
                    return self.record(&put);
                }
                Parent::New(parent) => {
                    let ino = self.local_id(&stat).ino;
                    let id = EntryId {
                        id: LocalId { ino, ctime: Mtime::default() },
                        row: dir.row,
                        ..EntryId::default()
                    };
                    lock(&parent.done).push((entry, id, stat));
                    let parent = parent.clone();
                    dir = parent;
                }
            }
        }
        Ok(())
    }

    /// Sets a new directory's attributes and writes its index row.
    pub(super) fn finish_dir(&self, dir: &NewDir) -> Result<(Entry, Stat)> {
        let mut done = std::mem::take(&mut *lock(&dir.done));
        done.sort_unstable_by(|a, b| a.0.name.cmp(&b.0.name));
        let cannot = || format!("set the attributes of the directory {}", dir.path);
        let (uid, gid) = self.to.owners.ids(&dir.entry.owner);
        let at = stat_fd(&dir.dir).context(cannot)?;
        let (uid, gid) = (uid.filter(|u| *u != at.uid), gid.filter(|g| *g != at.gid));
        if uid.is_some() || gid.is_some() {
            match chown_fd(&dir.dir, uid, gid).context(|| format!("set the owner of {}", dir.path)) {
                // named, and the rest goes on
                Err(e) if is_of_path(&e) => {
                    lock(&self.errors).push(PathError { path: dir.path.clone(), error: e.to_string() })
                }
                done => done?,
            }
        }
        self.new_dirs.store(true, Ordering::Relaxed);
        let is_root = matches!(dir.parent, Parent::Root);
        // a directory without u+w cannot be renamed, or be moved into, by anyone but root; its own mode comes last
        let open = matches!(dir.parent, Parent::Tree { .. }) || dir.gets_moves.load(Ordering::Relaxed);
        let mode = if open { dir.entry.mode | 0o300 } else { dir.entry.mode };
        chmod_fd(&dir.dir, mode).context(cannot)?;
        if !is_root {
            set_mtime_fd(&dir.dir, dir.entry.mtime).context(cannot)?;
        }
        // xfs moves a directory's mtime when it changes places with something else
        let exchanged = matches!(dir.parent, Parent::Tree { old: Some(_), .. });
        if mode != dir.entry.mode || exchanged {
            let mtime = exchanged.then_some(dir.entry.mtime);
            let attrs = SetAttrs { mode: Some(dir.entry.mode), mtime, ..SetAttrs::default() };
            self.record(&Record::Attrs { path: dir.path.clone(), id: None, digest: None, attrs })?;
        }
        if self.writer.sync_each {
            dir.dir.sync().context(cannot)?;
        }
        let stat = stat_fd(&dir.dir).context(cannot)?;
        let row = self.row(dir, &stat, done)?;
        let node = Node::Dir { object: row.object, content: row.content };
        Ok((Entry { node, ..dir.entry.clone() }, stat))
    }

    pub(super) fn row(&self, dir: &NewDir, stat: &Stat, done: Vec<(Entry, EntryId, Stat)>) -> Result<DirRow> {
        let mut hash = StatHasher::default();
        let mut kids = Vec::new();
        let mut object = Object::default();
        let mut ids = Vec::with_capacity(done.len());
        for (entry, id, stat) in done {
            let stat = Stat { id: self.local_id(&stat), ..stat };
            hash.add(&entry.name, Some(&stat));
            if let Node::Dir { object, content } = entry.node {
                kids.push((object, content, id.keeps, id.row));
            }
            ids.push(id);
            object.entries.push(entry);
        }
        let body = object.encode();
        let (parent, name) = match &dir.parent {
            Parent::New(parent) => (parent.row, dir.entry.name.to_vec()),
            // found by its inode when its parent is scanned after the commit
            Parent::Tree { .. } => (-1, dir.entry.name.to_vec()),
            Parent::Root => (0, Vec::new()),
        };
        let row = DirRow {
            id: dir.row,
            parent,
            name,
            ino: self.local_id(stat).ino,
            stat: hash.finish(),
            kids: crate::scan::kids_hash_of(&kids),
            object: Digest::of(&body),
            content: object.content(),
            racy: false,
            keeps: false,
            seen: now().sec,
        };
        self.to.index.put(&row, &body, &ids)?;
        Ok(row)
    }
}
