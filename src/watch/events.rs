//! From events to [`Changes`], and which directories are watched. Pure but for one question put to the disk.
//!
//! inotify watches follow the inode, so a watch whose directory was renamed would report paths that are no
//! more. notify drops the watches of a path and of everything below it when the parent's watch reports that the
//! path was moved away or removed; the set here must lose the same ones at the same event, or a new
//! directory at that path would count as watched. Whatever exists at a forgotten path came there by a later event,
//! and that one puts it into `deep`.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode};
use notify::{Event, EventKind};

use super::changes::Changes;
use crate::model::TreePath;
use crate::plan::CONTROL_DIR;

/// For every directory that goes, notify passes over all watches: 0.2 µs each. What it may pass over within a while
/// before new watches, and a scan, are the quicker way.
const WORK: usize = 5_000_000;
const WHILE: Duration = Duration::from_secs(10);

/// What is watched and what happened.
#[derive(Default)]
pub(super) struct State {
    /// Directories with a watch, or with one being added.
    pub(super) watched: Paths,
    /// Directories that should have one.
    pub(super) missed: Paths,
    /// Events are missing: no watch can be relied on any more.
    pub(super) lost: bool,
    /// What notify passed over for directories that went, and since when that is counted.
    pub(super) work: (Option<Instant>, usize),
    /// Since the last look.
    pub(super) changes: Changes,
}

/// Paths by their bytes, so that what lies below one is two ranges away.
#[derive(Default)]
pub(super) struct Paths(BTreeSet<Box<[u8]>>);

impl Paths {
    pub(super) fn insert(&mut self, path: &TreePath) -> bool {
        self.0.insert(path.as_bytes().into())
    }

    pub(super) fn contains(&self, path: &TreePath) -> bool {
        self.0.contains(path.as_bytes())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn first(&self) -> Option<TreePath> {
        self.0.first().and_then(|path| TreePath::new(path).ok())
    }

    pub(super) fn remove(&mut self, path: &TreePath) -> bool {
        self.0.remove(path.as_bytes())
    }

    /// Removes `path` and what lies below; whether there was any.
    fn remove_within(&mut self, path: &TreePath) -> bool {
        let before = self.0.len();
        self.0.remove(path.as_bytes());
        let from = [path.as_bytes(), b"/"].concat();
        let to = [path.as_bytes(), b"0"].concat(); // the byte after '/'
        let below = (Bound::Included(&from[..]), Bound::Excluded(&to[..]));
        let below: Vec<_> = self.0.range::<[u8], _>(below).cloned().collect();
        below.iter().for_each(|path| _ = self.0.remove(path));
        self.0.len() < before
    }
}

impl State {
    /// Takes in one event of a watch on a directory of the tree at `root`. `is_dir` looks whether there is a
    /// directory now; notify does not tell for renames and attributes.
    pub(super) fn note(
        &mut self,
        root: &Path,
        event: notify::Result<Event>,
        now: Instant,
        is_dir: &dyn Fn(&TreePath) -> bool,
    ) {
        let event = match event {
            Ok(event) if !event.need_rescan() && !matches!(event.kind, EventKind::Any | EventKind::Other) => {
                event
            }
            // the queue was too small, or reading it failed
            _ => return self.lose(),
        };
        // `Both` repeats a `From` and a `To` that came before it
        if event.kind == EventKind::Modify(ModifyKind::Name(RenameMode::Both)) {
            return;
        }
        for path in event.paths.iter().filter_map(|path| place(root, path)) {
            match path {
                Ok(path) => self.path_event(&path, &event, now, is_dir),
                Err(dir) => self.changes.list(dir),
            }
        }
    }

    fn path_event(
        &mut self,
        path: &TreePath,
        event: &Event,
        now: Instant,
        is_dir: &dyn Fn(&TreePath) -> bool,
    ) {
        let open = match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) => Some(true),
            EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Remove(_) => Some(false),
            EventKind::Modify(ModifyKind::Name(_)) => Some(false),
            _ => None,
        };
        match event.kind {
            // renamed, removed, unmounted
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) if path.is_root() => {
                return self.lose();
            }
            // the directory's own word, which comes after its parent's: only a parent without a watch lets it
            // still be watched here, and then notify keeps the watches below it under their old paths
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) if event.tracker().is_none() => {
                if self.watched.contains(path) {
                    self.lose();
                }
                return;
            }
            EventKind::Create(CreateKind::Folder) => self.changes.descend(path.clone()),
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) => self.forget(path, now, is_dir),
            EventKind::Modify(ModifyKind::Name(_)) => {
                self.watched.remove_within(path);
                self.missed.remove_within(path);
                if is_dir(path) {
                    self.changes.descend(path.clone());
                }
            }
            EventKind::Remove(RemoveKind::File) => {}
            EventKind::Remove(_) => self.forget(path, now, is_dir),
            // it may have become readable
            EventKind::Modify(ModifyKind::Metadata(_)) if is_dir(path) => self.changes.list(path.clone()),
            _ => {}
        }
        self.changes.touch(path, now, open);
    }

    /// Forgets the watches of what was at `path`. A directory that is there already took its place by a rename,
    /// and may have been watched while notify still had the old one's watch.
    fn forget(&mut self, path: &TreePath, now: Instant, is_dir: &dyn Fn(&TreePath) -> bool) {
        let watches = self.watched.len();
        let known = self.watched.remove_within(path) | self.missed.remove_within(path);
        if !known {
            return;
        }
        if is_dir(path) {
            self.changes.descend(path.clone());
        }
        if self.work.0.is_none_or(|since| now.saturating_duration_since(since) > WHILE) {
            self.work = (Some(now), 0);
        }
        self.work.1 += watches;
        if self.work.1 > WORK {
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.lost = true;
        self.changes.all = true;
    }
}

/// Where in the tree an event happened; its nearest directory that has a valid path, when its own is none; nothing
/// for our own directories.
fn place(root: &Path, path: &Path) -> Option<Result<TreePath, TreePath>> {
    let mut bytes = path.strip_prefix(root).ok()?.as_os_str().as_bytes();
    if bytes.split(|&b| b == b'/').any(|part| part == CONTROL_DIR) {
        return None;
    }
    if let Ok(path) = TreePath::new(bytes) {
        return Some(Ok(path));
    }
    loop {
        bytes = &bytes[..bytes.iter().rposition(|&b| b == b'/').unwrap_or(0)];
        if let Ok(dir) = TreePath::new(bytes) {
            return Some(Err(dir));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{DataChange, Flag, MetadataKind};
    use std::collections::HashSet;

    fn p(s: &str) -> TreePath {
        TreePath::new(s.as_bytes()).unwrap()
    }

    /// A tree at `/r` with these directories, watched.
    struct World {
        state: State,
        dirs: HashSet<TreePath>,
    }

    impl World {
        fn new(dirs: &[&str]) -> Self {
            let dirs: HashSet<_> = dirs.iter().map(|d| p(d)).collect();
            let mut state = State::default();
            dirs.iter().for_each(|d| assert!(state.watched.insert(d)));
            Self { state, dirs }
        }

        fn event(&mut self, kind: EventKind, path: &str, cookie: Option<usize>) -> &State {
            let path = if path.is_empty() { "/r".into() } else { format!("/r/{path}") };
            let mut event = Event::new(kind).add_path(path.into());
            if let Some(cookie) = cookie {
                event = event.set_tracker(cookie);
            }
            self.take(Ok(event))
        }

        fn take(&mut self, event: notify::Result<Event>) -> &State {
            self.state.note(Path::new("/r"), event, Instant::now(), &|d| self.dirs.contains(d));
            &self.state
        }
    }

    fn name(mode: RenameMode) -> EventKind {
        EventKind::Modify(ModifyKind::Name(mode))
    }

    #[test]
    fn lost_events_mean_everything() {
        let rescan = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        for event in [Ok(rescan), Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch))] {
            let mut w = World::new(&["a"]);
            let s = w.take(event);
            assert!(s.lost && s.changes.all);
        }
    }

    #[test]
    fn a_root_that_goes_means_everything() {
        let unmounted = EventKind::Remove(RemoveKind::Other);
        for kind in [EventKind::Remove(RemoveKind::Folder), unmounted, name(RenameMode::From)] {
            let mut w = World::new(&["", "a"]);
            assert!(w.event(kind, "", None).lost);
        }
    }

    #[test]
    fn a_renamed_directory_takes_its_watches_along() {
        let mut w = World::new(&["", "a", "a/b", "a/b/c", "a.x", "ab", "a0"]);
        w.dirs.remove(&p("a"));
        w.event(name(RenameMode::From), "a", Some(7));
        w.dirs.insert(p("new"));
        let s = w.event(name(RenameMode::To), "new", Some(7));
        assert_eq!(s.changes.deep, [p("new")].into());
        assert_eq!(s.changes.to_list(), [p(""), p("new")].into());
        for gone in ["a", "a/b", "a/b/c"] {
            assert!(!s.watched.contains(&p(gone)), "{gone}");
        }
        for stays in ["", "a.x", "ab", "a0"] {
            assert!(s.watched.contains(&p(stays)), "{stays}");
        }
        // the directory's own word comes last, under its old path
        let s = w.event(name(RenameMode::From), "a", None);
        assert!(!s.lost);
    }

    #[test]
    fn a_directory_renamed_below_an_unwatched_one_ends_all_trust() {
        let mut w = World::new(&["a/b"]);
        assert!(w.event(name(RenameMode::From), "a/b", None).lost);
    }

    #[test]
    fn a_file_renamed_into_place_is_only_a_path() {
        let mut w = World::new(&[""]);
        let s = w.event(name(RenameMode::To), "f", Some(1));
        assert!(s.changes.deep.is_empty());
        assert!(!s.changes.paths[&p("f")].open);
    }

    #[test]
    fn a_directory_that_replaced_a_removed_one_is_looked_at_anew() {
        // its watch may have been refused because notify still had the old one's
        let mut w = World::new(&["", "a"]);
        let s = w.event(EventKind::Remove(RemoveKind::Folder), "a", None);
        assert_eq!(s.changes.deep, [p("a")].into());
        assert!(!s.watched.contains(&p("a")));
    }

    #[test]
    fn a_file_is_open_from_its_first_write_to_its_close() {
        let mut w = World::new(&[""]);
        let write = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        assert!(w.event(write, "f", None).changes.paths[&p("f")].open);
        let attributes = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
        assert!(w.event(attributes, "f", None).changes.paths[&p("f")].open);
        let close = EventKind::Access(AccessKind::Close(AccessMode::Write));
        assert!(!w.event(close, "f", None).changes.paths[&p("f")].open);
    }

    #[test]
    fn attributes_of_a_directory_have_it_listed() {
        let mut w = World::new(&["", "a"]);
        let attributes = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
        assert_eq!(w.event(attributes, "a", None).changes.dirs, [p("a")].into());
    }

    #[test]
    fn a_mass_of_removed_directories_ends_the_watches_before_notify_is_done() {
        let removed = |watches: usize, removals: usize, step: Duration| {
            let mut w = World::new(&[]);
            (0..watches).for_each(|i| _ = w.state.watched.insert(&p(&format!("d{i}"))));
            let mut now = Instant::now();
            for i in 0..removals {
                let event =
                    Event::new(EventKind::Remove(RemoveKind::Folder)).add_path(format!("/r/d{i}").into());
                w.state.note(Path::new("/r"), Ok(event), now, &|_| false);
                now += step;
            }
            w.state.lost
        };
        assert!(removed(20_000, 300, Duration::ZERO));
        assert!(!removed(20_000, 200, Duration::ZERO));
        assert!(!removed(20_000, 2_000, Duration::from_millis(100)), "a few at a time are no mass");
    }

    #[test]
    fn our_own_directories_are_not_seen() {
        let mut w = World::new(&[""]);
        for path in [".syncagent", ".syncagent/stage/f", "a/.syncagent/b"] {
            assert!(w.event(EventKind::Create(CreateKind::Folder), path, None).changes.is_empty());
        }
        assert!(!w.event(EventKind::Create(CreateKind::File), "a.syncagent", None).changes.is_empty());
    }

    #[test]
    fn a_name_that_is_none_stands_for_its_directory() {
        let mut w = World::new(&[""]);
        let long = "x".repeat(300);
        let s = w.event(EventKind::Create(CreateKind::File), &format!("a/{long}"), None);
        assert_eq!(s.changes.dirs, [p("a")].into());
        assert!(s.changes.paths.is_empty());
    }
}
