//! Names and paths inside a tree. Untrusted bytes become a [`Name`] at the border, so that no code
//! below can be made to leave the tree by `..`, `/` or NUL.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::escape::escape;

/// One name in a directory: not empty, at most 255 bytes, without `/` and NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

/// Why bytes are not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a file name: {0}")]
pub struct BadName(String);

impl Name {
    /// Checks `bytes`.
    pub fn new(bytes: &[u8]) -> Result<Self, BadName> {
        let bad = bytes.is_empty()
            || bytes.len() > 255
            || bytes == b"."
            || bytes == b".."
            || bytes.iter().any(|&b| b == b'/' || b == 0);
        if bad { Err(BadName(escape(bytes))) } else { Ok(Self(bytes.into())) }
    }
}

impl Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", escape(&self.0))
    }
}

/// A path relative to the tree's root, of [`Name`]s joined by `/`; empty for the root itself.
/// Ordered bytewise, as `LC_ALL=C sort` orders.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct TreePath(Vec<u8>);

impl TryFrom<Vec<u8>> for TreePath {
    type Error = BadName;

    fn try_from(bytes: Vec<u8>) -> Result<Self, BadName> {
        Self::new(&bytes)
    }
}

impl From<TreePath> for Vec<u8> {
    fn from(path: TreePath) -> Self {
        path.0
    }
}

impl TreePath {
    /// The root.
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// Checks every component of `bytes`; the empty string is the root.
    pub fn new(bytes: &[u8]) -> Result<Self, BadName> {
        if !bytes.is_empty() {
            for part in bytes.split(|&b| b == b'/') {
                Name::new(part)?;
            }
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The path of `name` in this directory.
    pub fn join(&self, name: &Name) -> Self {
        let mut out = Vec::with_capacity(self.0.len() + 1 + name.len());
        out.extend_from_slice(&self.0);
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(name);
        Self(out)
    }

    /// The directory that holds this path; `None` for the root.
    pub fn parent(&self) -> Option<TreePath> {
        (!self.is_root()).then(|| Self(self.split().0.to_vec()))
    }

    /// The path itself, then the directories above it, up to the root.
    pub fn ancestors(&self) -> impl Iterator<Item = TreePath> {
        std::iter::successors(Some(self.clone()), TreePath::parent)
    }

    /// The last component; `None` for the root.
    pub fn name(&self) -> Option<Name> {
        (!self.is_root()).then(|| Name(self.split().1.into()))
    }

    /// Parent's bytes and last component; both empty for the root.
    pub fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(i) => (&self.0[..i], &self.0[i + 1..]),
            None => (&[], &self.0),
        }
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components, from the top.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty())
    }

    /// Whether `self` is `other` or lies below it.
    pub fn is_within(&self, other: &TreePath) -> bool {
        other.is_root()
            || self.0 == other.0
            || (self.0.starts_with(&other.0) && self.0.get(other.0.len()) == Some(&b'/'))
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&if self.is_root() { ".".to_owned() } else { escape(&self.0) })
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b"\xff\n", &[b'x'; 255]] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
        for bad in [&b"/a"[..], b"a//b", b"a/../b", b"a/"] {
            assert!(TreePath::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_path_is_within_itself_its_parents_and_nothing_else() {
        let p = |s: &str| TreePath::new(s.as_bytes()).unwrap();
        assert!(p("a/b").is_within(&p("a")));
        assert!(p("a").is_within(&p("a")));
        assert!(p("a").is_within(&TreePath::root()));
        assert!(!p("ab").is_within(&p("a")));
        assert_eq!(p("a/b").parent(), Some(p("a")));
        assert_eq!(p("a").parent(), Some(TreePath::root()));
        assert_eq!(TreePath::root().parent(), None);
    }
}
