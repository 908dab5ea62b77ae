//! The state directory: what can be lost and found again. `trees/NAME-HASH/` for each destination: the
//! indexes of source and tree, what they belong to, and a refused plan that waits for an approval.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::{Dir, ensure_dir_all, write_atomic};
use crate::error::{Context as _, Error, Result};
use crate::model::escaped;

/// Where state goes when nobody says: systemd's directory, the system's for root, the user's.
///
/// # Errors
/// There is no home directory either.
pub fn default_state_dir() -> Result<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = var("SYNCAGENT_STATE_DIR") {
        return Ok(dir);
    }
    if let Some(dirs) = var("STATE_DIRECTORY") {
        // systemd gives a list, separated by colons
        let first = dirs.as_os_str().as_bytes().split(|&b| b == b':').next().unwrap_or_default();
        return Ok(PathBuf::from(std::ffi::OsStr::from_bytes(first)));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/syncagent"));
    }
    let home = || var("HOME").map(|home| home.join(".local/state"));
    var("XDG_STATE_HOME")
        .filter(|p| p.is_absolute())
        .or_else(home)
        .map(|dir| dir.join("syncagent"))
        .ok_or_else(|| {
            Error::new(
                crate::error::Class::Config,
                "there is no state directory: neither --state-dir, $SYNCAGENT_STATE_DIR, $STATE_DIRECTORY, \
             $XDG_STATE_HOME nor $HOME is set",
            )
        })
}

/// What a tree's state belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The source's path, escaped.
    pub source: Option<String>,
    /// The destination's path, escaped.
    pub tree: String,
    /// The filter of the last run.
    #[serde(default)]
    pub filter: Vec<String>,
    /// Owners were ignored in the last run.
    #[serde(default)]
    pub owners_ignored: bool,
    /// The last finished run, RFC 3339.
    #[serde(default)]
    pub last_run: Option<String>,
}

/// A refused plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The id that approves it.
    pub plan_id: String,
    /// Why it was refused.
    pub reason: String,
    /// When, RFC 3339.
    pub at: String,
    /// The plan lines of what would be lost, at most 100,000.
    pub losses: Vec<String>,
}

/// The state of one tree.
#[derive(Debug)]
pub struct TreeState {
    path: PathBuf,
    dir: Dir,
}

impl TreeState {
    /// Opens the state of the tree at `tree`, and makes it when it is missing.
    ///
    /// # Errors
    /// The state directory cannot be written to.
    pub fn open(state_dir: &Path, tree: &Path) -> Result<Self> {
        let path = Self::place(state_dir, tree);
        let dir = ensure_dir_all(&path, 0o700).context(|| {
            format!("make the state directory {} (choose another one with --state-dir)", escaped(&path))
        })?;
        Ok(Self { path, dir })
    }

    /// The state of the tree at `tree`, when there is any.
    pub fn find(state_dir: &Path, tree: &Path) -> Option<Self> {
        let path = Self::place(state_dir, tree);
        Dir::open_root(&path).ok().map(|dir| Self { path, dir })
    }

    /// The states of all trees.
    pub fn all(state_dir: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(state_dir.join("trees")).into_iter().flatten().flatten();
        entries
            .filter_map(|e| Dir::open_root(&e.path()).ok().map(|dir| Self { path: e.path(), dir }))
            .collect()
    }

    fn place(state_dir: &Path, tree: &Path) -> PathBuf {
        let bytes = tree.as_os_str().as_bytes();
        let keep = |c: char| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }
        };
        let name: String =
            tree.file_name().unwrap_or_default().to_string_lossy().chars().map(keep).take(40).collect();
        state_dir.join("trees").join(format!("{name}-{:.16}", blake3::hash(bytes).to_hex()))
    }

    /// The directory itself.
    pub(super) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What it belongs to.
    pub fn info(&self) -> Option<Info> {
        self.read("info.json")
    }

    /// Notes what it belongs to.
    ///
    /// # Errors
    /// The operating system's.
    pub fn set_info(&self, info: &Info) -> Result<()> {
        self.write("info.json", info)
    }

    /// The refused plan that waits.
    pub fn pending(&self) -> Option<Pending> {
        self.read("pending.json")
    }

    /// Notes a refused plan, or that there is none.
    ///
    /// # Errors
    /// The operating system's.
    pub fn set_pending(&self, pending: Option<&Pending>) -> Result<()> {
        match pending {
            Some(pending) => self.write("pending.json", pending),
            None => self.remove("pending.json"),
        }
    }

    /// Reads a JSON file of this tree; `None` when it is missing or damaged.
    pub(super) fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        let text = std::fs::read(self.file(name)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Removes a file of this tree, durably. One that is not there is none to remove.
    ///
    /// # Errors
    /// The operating system's; the file may be there still, or again after a power cut.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let removed = match self.dir.unlink(name.as_bytes()) {
            Ok(()) => self.dir.sync(),
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        };
        removed.context(|| format!("remove {}", escaped(&self.file(name))))
    }

    /// Writes a JSON file of this tree, atomically and durably.
    pub(super) fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec_pretty(value).map_err(|e| Error::integrity(e.to_string()))?;
        write_atomic(&self.dir, name, &text).context(|| format!("write {}", escaped(&self.file(name))))
    }
}
