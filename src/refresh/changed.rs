//! Which paths changed, within bounds: what is kept for a server that is down must not grow for ever.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::model::TreePath;
use crate::plan::Filter;

/// More paths are [`Changed::Everything`].
const MAX_PATHS: usize = 10_000;
/// And so are more bytes of paths.
const MAX_BYTES: usize = 1 << 20;

/// What changed in a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Saved", into = "Saved")]
pub enum Changed {
    /// These paths, those that went included; of a move both.
    Paths(Vec<TreePath>),
    /// Unknown, or too much to name: anything may have changed.
    Everything,
}

/// Nothing.
impl Default for Changed {
    fn default() -> Self {
        Self::Paths(Vec::new())
    }
}

impl Changed {
    /// Whether it is nothing at all.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Paths(paths) if paths.is_empty())
    }

    /// Takes in one path more; never holds more than the limit.
    pub fn add(&mut self, path: &TreePath) {
        match self {
            Self::Paths(paths) if paths.len() < MAX_PATHS => paths.push(path.clone()),
            Self::Paths(_) => *self = Self::Everything,
            Self::Everything => {}
        }
    }

    /// Sorted, each path once, and [`Changed::Everything`] above the limits.
    pub(super) fn bounded(self) -> Self {
        let Self::Paths(mut paths) = self else { return Self::Everything };
        paths.sort_unstable();
        paths.dedup();
        let bytes: usize = paths.iter().map(|path| path.as_bytes().len() + 1).sum();
        if paths.len() > MAX_PATHS || bytes > MAX_BYTES { Self::Everything } else { Self::Paths(paths) }
    }

    /// Both together.
    pub fn union(self, other: Self) -> Self {
        match (self, other) {
            (Self::Paths(mut paths), Self::Paths(more)) => {
                paths.extend(more);
                Self::Paths(paths).bounded()
            }
            _ => Self::Everything,
        }
    }

    /// What of it a rule's patterns mean; without patterns all.
    pub(super) fn matching(&self, when: Option<&Filter>) -> Self {
        match (self, when) {
            (Self::Paths(paths), Some(when)) => {
                Self::Paths(paths.iter().filter(|path| meant(when, path)).cloned().collect())
            }
            (all, _) => all.clone(),
        }
    }

    /// Whether a rule's patterns mean any of it.
    pub(super) fn concerns(&self, when: Option<&Filter>) -> bool {
        match (self, when) {
            (Self::Everything, _) => true,
            (Self::Paths(paths), None) => !paths.is_empty(),
            (Self::Paths(paths), Some(when)) => paths.iter().any(|path| meant(when, path)),
        }
    }
}

/// A path that went is no longer a file or a directory, so patterns of both kinds mean it.
fn meant(when: &Filter, path: &TreePath) -> bool {
    when.means(path, false) || when.means(path, true)
}

/// As it is written: names are text nearly always.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Saved {
    everything: bool,
    paths: Vec<String>,
    paths_base64: Vec<String>,
}

impl From<Changed> for Saved {
    fn from(changed: Changed) -> Self {
        let Changed::Paths(paths) = changed else { return Self { everything: true, ..Self::default() } };
        let mut saved = Self::default();
        for path in paths {
            match String::from_utf8(path.into()) {
                Ok(text) => saved.paths.push(text),
                Err(e) => saved.paths_base64.push(STANDARD.encode(e.as_bytes())),
            }
        }
        saved
    }
}

impl TryFrom<Saved> for Changed {
    type Error = String;

    fn try_from(saved: Saved) -> Result<Self, String> {
        if saved.everything {
            return Ok(Self::Everything);
        }
        let raw: Result<Vec<Vec<u8>>, _> =
            saved.paths_base64.iter().map(|text| STANDARD.decode(text)).collect();
        let all = saved.paths.into_iter().map(String::into_bytes).chain(raw.map_err(|e| e.to_string())?);
        let paths: Result<Vec<_>, _> = all.map(TreePath::try_from).collect();
        paths.map(Self::Paths).map(Self::bounded).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(list: &[&[u8]]) -> Changed {
        Changed::Paths(list.iter().map(|path| TreePath::new(path).unwrap()).collect())
    }

    #[test]
    fn a_union_is_sorted_once_each_and_too_much_is_everything() {
        assert_eq!(paths(&[b"b", b"a"]).union(paths(&[b"b", b"c"])), paths(&[b"a", b"b", b"c"]));
        assert_eq!(paths(&[b"b"]).union(Changed::Everything), Changed::Everything);
        let many = |n: usize| {
            Changed::Paths((0..n).map(|i| TreePath::new(format!("{i}").as_bytes()).unwrap()).collect())
        };
        assert!(matches!(many(MAX_PATHS).bounded(), Changed::Paths(_)));
        assert_eq!(many(MAX_PATHS).union(paths(&[b"x"])), Changed::Everything);
        let long = |i: usize| TreePath::new(format!("{i}{}", "/x".repeat(2000)).as_bytes()).unwrap();
        assert_eq!(Changed::Paths((0..300).map(long).collect()).bounded(), Changed::Everything);
    }

    #[test]
    fn patterns_mean_paths_below_them_and_directories_that_went() {
        let when =
            |lines: &[&str]| Some(Filter::new(lines.iter().map(|l| (*l).to_owned()).collect()).unwrap());
        let changed = paths(&[b"a/x.car", b"cache", b"deep/er/file"]);
        for (lines, expected) in [
            (&["*.car"][..], &[&b"a/x.car"[..]][..]),
            (&["/deep"], &[b"deep/er/file"]),
            (&["cache/"], &[b"cache"]),
            (&["*", "!*.car"], &[b"cache", b"deep/er/file"]),
            (&["*.war"], &[]),
        ] {
            let when = when(lines);
            assert_eq!(changed.matching(when.as_ref()), paths(expected), "{lines:?}");
            assert_eq!(changed.concerns(when.as_ref()), !expected.is_empty());
        }
        assert!(changed.concerns(None) && !paths(&[]).concerns(None) && Changed::Everything.concerns(None));
        assert!(paths(&[b""]).concerns(None));
    }

    #[test]
    fn any_bytes_survive_being_written() {
        for changed in [paths(&[b"a\nb", b"\xff/x", "ä".as_bytes()]).bounded(), Changed::Everything] {
            let text = serde_json::to_string(&changed).unwrap();
            assert_eq!(serde_json::from_str::<Changed>(&text).unwrap(), changed, "{text}");
        }
        assert!(serde_json::from_str::<Changed>(r#"{"paths":["../x"]}"#).is_err());
    }
}
