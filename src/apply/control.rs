//! `.syncagent/` in a managed tree: lock, marker, pinned source, journal, staging, trash. It lies in the
//! tree so that it is on the same file system and mount, also inside a sandbox, and so that a tree knows
//! by itself that it is managed, and by what.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::unplaced::Unplaced;
use crate::disk::{Dir, FsClass, MountId, put_atomic, remove_tree};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{Digest, GenId, TreePath, escaped};
use crate::plan::CONTROL_DIR;

const MARKER: &str = "tree";
const PIN: &str = "source";
const SWAP: &str = "swap";
/// What of the last commit did not come into place.
const UNPLACED: &str = "unplaced";
/// The configured staging directory that was used last.
const STAGING: &str = "staging";
/// Where new content is brought, and what was displaced lies until it is trash.
pub(crate) const STAGE: &[u8] = b"stage";
pub(crate) const OLD_STAGE: &[u8] = b"stage.old";
/// The same once all renames of the commit are done: what is in it was displaced.
pub(crate) const DONE_STAGE: &[u8] = b"stage.done";
/// Large files that are not whole yet, each under its digest.
pub(crate) const PARTIAL: &[u8] = b"partial";
/// The lock's file.
pub(crate) const LOCK: &str = "lock";

/// Says that a tree is managed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Version of the layout.
    pub format: u32,
    /// Names the tree, for ever.
    pub id: String,
    /// Commits so far.
    pub seq: u64,
    /// All that is in it came from us, or was handed over: deleting needs no further word.
    #[serde(default)]
    pub taken_over: bool,
    /// Files were in it before anything of ours was.
    #[serde(default)]
    pub had_files: bool,
    /// What the last commit brought, when it was complete.
    pub applied: Option<SyncMark>,
}

/// A state that was brought in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncMark {
    /// Content digest, hex.
    pub content: String,
    /// When, RFC 3339.
    pub at: String,
    /// The generation that it is, and the digest of the source's root object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<(GenId, Digest)>,
}

/// The source as it was first seen: a vanished mount must not look like a deleted tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The source's path.
    pub path: String,
    /// The file system it was on.
    pub mount: MountId,
    /// What was mounted below it.
    #[serde(default)]
    pub mounts: Vec<PinnedMount>,
}

/// A file system mounted below the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedMount {
    /// Where, relative to the source, escaped.
    pub path: String,
    /// Which.
    pub mount: MountId,
}

/// A swap that is under way, in both trees: the inode tells which one is new, whatever their names are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SwapRecord {
    /// The new tree's root.
    pub(crate) next_ino: u64,
    /// What is in no published state; in the new tree's record.
    #[serde(default)]
    pub(crate) aside: BTreeSet<TreePath>,
}

/// A tree's own directory, open.
#[derive(Debug)]
pub struct Control {
    /// The tree's root.
    pub root: Dir,
    /// `.syncagent` in it.
    pub dir: Dir,
    /// The tree's path, for messages.
    pub path: PathBuf,
    /// What kind of file system it is on.
    pub class: FsClass,
    /// A configured staging directory, with its path.
    staging: Option<(Dir, PathBuf)>,
}

impl Control {
    /// Opens the control directory of the tree at `path`, and makes it when it is missing.
    ///
    /// # Errors
    /// The tree cannot be opened or written to.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = escaped(path);
        let root = Dir::open_root(path).context(|| format!("open {shown}"))?;
        let dir = root.ensure_dir(CONTROL_DIR, 0o700).context(|| format!("make {shown}/.syncagent"))?;
        let class = FsClass::of(&root);
        Ok(Self { root, dir, path: path.to_owned(), class, staging: None })
    }

    /// The same where it is there already; makes nothing.
    ///
    /// # Errors
    /// The operating system's.
    pub fn find(path: &Path) -> Result<Option<Self>> {
        let missing = |e: &Errno| *e == Errno::NOENT;
        let shown = || format!("open {}", escaped(path));
        let root = match Dir::open_root(path) {
            Err(e) if missing(&e) => return Ok(None),
            root => root.context(shown)?,
        };
        let dir = match root.open_child(CONTROL_DIR) {
            Err(e) if missing(&e) => return Ok(None),
            dir => dir.context(|| format!("{}/.syncagent", shown()))?,
        };
        let class = FsClass::of(&root);
        Ok(Some(Self { root, dir, path: path.to_owned(), class, staging: None }))
    }

    /// Stages below `path` instead: proven by a real rename into the tree.
    ///
    /// # Errors
    /// [`Class::Config`] when a rename from there into the tree does not work.
    pub fn stage_at(&mut self, path: &Path, tree_id: &str) -> Result<()> {
        let shown = escaped(path);
        let parent =
            crate::disk::ensure_dir_all(path, 0o700).context(|| format!("open the staging path {shown}"))?;
        let name = format!("syncagent-{tree_id}");
        let dir = parent.ensure_dir(name.as_bytes(), 0o700).context(|| format!("make {shown}/{name}"))?;
        let probe = b"probe";
        let _ = dir.unlink(probe);
        drop(dir.create_file(probe, 0o600).context(|| format!("write to the staging path {shown}"))?);
        if let Err(e) = dir.rename(probe, &self.dir, probe) {
            let _ = dir.unlink(probe);
            let tree = escaped(&self.path);
            let what = format!(
                "cannot use the staging path {shown}: renaming from there into {tree} fails ({}); choose a path on the \
                 same file system and mount",
                std::io::Error::from(e)
            );
            return Err(Error::new(Class::Config, what));
        }
        self.dir.unlink(probe).context(|| "remove a probe".into())?;
        self.staging = Some((dir, path.join(name)));
        Ok(())
    }

    /// Removes what a run staged in a directory that this one does not use, and notes the one that it uses.
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn note_staging(&self) -> Result<()> {
        let now = self.staging_path();
        let noted: Option<Vec<u8>> = self.read(STAGING)?;
        if noted == now {
            return Ok(());
        }
        if let Some(path) = noted.as_deref().map(|p| Path::new(std::ffi::OsStr::from_bytes(p)))
            && let Ok(dir) = Dir::open_root(path)
        {
            for name in [STAGE, OLD_STAGE, DONE_STAGE, PARTIAL] {
                remove_tree(&dir, name)
                    .context(|| format!("empty the former staging path {}", escaped(path)))?;
            }
            // fails, as it should, when something else is in it
            let _ = std::fs::remove_dir(path);
        }
        match now {
            Some(path) => self.write(STAGING, &path),
            None => self.dir.unlink(STAGING.as_bytes()).context(|| "forget the former staging path".into()),
        }
    }

    /// The directory in which `stage` is made.
    pub(crate) fn stage_home(&self) -> &Dir {
        self.staging.as_ref().map_or(&self.dir, |(dir, _)| dir)
    }

    /// The configured staging directory's path, for the journal.
    pub(crate) fn staging_path(&self) -> Option<Vec<u8>> {
        self.staging.as_ref().map(|(_, path)| path.as_os_str().as_bytes().to_vec())
    }

    /// Uses the staging directory that a journal names.
    pub(crate) fn stage_home_of(&self, staging: Option<&[u8]>) -> Result<Dir> {
        match staging {
            None => self.dir.open_child(b".").context(|| "open .syncagent".into()),
            Some(path) => {
                let path = Path::new(std::ffi::OsStr::from_bytes(path));
                Dir::open_root(path).context(|| {
                    format!(
                        "open the staging path {} of an unfinished commit; mount it and run again",
                        escaped(path)
                    )
                })
            }
        }
    }

    /// Where the tree's files lie, for messages.
    pub fn shown(&self) -> String {
        escaped(&self.path)
    }

    /// The marker; `None` when the tree was never managed.
    ///
    /// # Errors
    /// It cannot be read, or is not ours.
    pub fn marker(&self) -> Result<Option<Marker>> {
        let marker: Option<Marker> = self.read(MARKER)?;
        match marker {
            Some(m) if m.format > 1 => {
                let what = format!(
                    "{}/.syncagent is of format {}, made by a newer syncagent",
                    self.shown(),
                    m.format
                );
                Err(Error::new(Class::Config, what))
            }
            marker => Ok(marker),
        }
    }

    /// Writes the marker.
    ///
    /// # Errors
    /// The operating system's.
    pub fn set_marker(&self, marker: &Marker) -> Result<()> {
        self.write(MARKER, marker)
    }

    /// The same, but for making its name durable: until the caller has synced `.syncagent` a power cut may bring the old one back.
    pub(crate) fn put_marker(&self, marker: &Marker) -> Result<()> {
        self.put(MARKER, marker)
    }

    /// The pinned source.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn pin(&self) -> Result<Option<Pin>> {
        self.read(PIN)
    }

    /// Pins the source.
    ///
    /// # Errors
    /// The operating system's.
    pub fn set_pin(&self, pin: &Pin) -> Result<()> {
        self.write(PIN, pin)
    }

    /// The swap that is under way.
    pub(crate) fn swap_record(&self) -> Result<Option<SwapRecord>> {
        self.read(SWAP)
    }

    pub(crate) fn set_swap_record(&self, record: &SwapRecord) -> Result<()> {
        self.write(SWAP, record)
    }

    pub(crate) fn drop_swap_record(&self) -> Result<()> {
        match self.dir.unlink(SWAP.as_bytes()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e).context(|| format!("finish the swap of {}", self.shown())),
        }
    }

    pub(super) fn unplaced(&self) -> Result<Option<Unplaced>> {
        self.read(UNPLACED)
    }

    pub(super) fn set_unplaced(&self, unplaced: &Unplaced) -> Result<()> {
        self.write(UNPLACED, unplaced)
    }

    pub(super) fn drop_unplaced(&self) -> Result<()> {
        let cannot = || format!("remove {}/.syncagent/{UNPLACED}", self.shown());
        match self.dir.unlink(UNPLACED.as_bytes()) {
            Ok(()) => self.dir.sync().context(cannot),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e).context(cannot),
        }
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        use std::io::Read as _;
        let shown = || format!("read {}/.syncagent/{name}", self.shown());
        let mut text = Vec::new();
        match self.dir.open_file(name.as_bytes()) {
            Ok(fd) => std::fs::File::from(fd).read_to_end(&mut text).context(shown)?,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e).context(shown),
        };
        let bad = |e| Error::integrity(format!("{}/.syncagent/{name} is damaged: {e}", self.shown()));
        serde_json::from_slice(&text).map(Some).map_err(bad)
    }

    fn put(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::integrity(e.to_string()))?;
        text.push(b'\n');
        put_atomic(&self.dir, name, &text).context(|| format!("write {}/.syncagent/{name}", self.shown()))
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.put(name, value)?;
        self.dir.sync().context(|| format!("sync {}/.syncagent", self.shown()))
    }

    /// Whether the tree's file system takes changes at all.
    pub(crate) fn is_writable(&self) -> bool {
        const PROBE: &[u8] = b"probe-dir";
        let made = match self.dir.mkdir(PROBE, 0o700) {
            Err(Errno::EXIST) => Ok(()),
            made => made,
        };
        made.and_then(|()| self.dir.rmdir(PROBE)).is_ok()
    }

    /// Whether both are the same tree and the same directory in it.
    ///
    /// # Errors
    /// One of them cannot be looked at.
    pub fn is_same(&self, other: &Control) -> Result<bool> {
        let same = |a: &Dir, b: &Dir| {
            let (a, b) = (a.stat_self()?, b.stat_self()?);
            Ok::<_, Errno>(a.dev == b.dev && a.id.ino == b.id.ino && a.mount == b.mount)
        };
        let both = same(&self.root, &other.root).and_then(|root| Ok(root && same(&self.dir, &other.dir)?));
        both.context(|| format!("look at {}", self.shown()))
    }

    /// Takes back what [`Control::open`] made, when the tree did not become managed. The caller holds
    /// the lock.
    pub fn withdraw(&self) {
        if matches!(self.marker(), Ok(None)) {
            for name in [LOCK, "journal"] {
                let _ = self.dir.unlink(name.as_bytes());
            }
            let _ = self.root.rmdir(CONTROL_DIR);
        }
    }
}

impl Marker {
    /// A new tree's marker.
    pub fn new() -> Self {
        let seed = format!("{:?}{:?}", crate::disk::Holder::this_process(), crate::disk::now());
        let id = blake3::hash(seed.as_bytes()).to_hex()[..16].to_owned();
        Self { format: 1, id, seq: 0, taken_over: false, had_files: false, applied: None }
    }
}

impl Default for Marker {
    fn default() -> Self {
        Self::new()
    }
}
