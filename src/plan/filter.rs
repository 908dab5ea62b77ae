//! Which paths belong to the tree: gitignore patterns rooted at the source, last match wins. What is
//! excluded is not read, not copied and never deleted.

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::error::{Class, Error, Result};
use crate::model::{Digest, TreePath};

/// Our own directory in a managed tree, at any depth.
pub const CONTROL_DIR: &[u8] = b".syncagent";

/// A compiled list of patterns.
#[derive(Clone, Debug)]
pub struct Filter {
    matcher: Option<Gitignore>,
    lines: Vec<String>,
}

/// What a filter says of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No pattern matches: it belongs to the tree.
    Included,
    /// This pattern takes it in again.
    IncludedBy(String),
    /// This pattern leaves it out.
    ExcludedBy(String),
}

impl Filter {
    /// Compiles patterns, in order.
    ///
    /// # Errors
    /// [`Class::Config`] with the pattern that is not one.
    pub fn new(lines: Vec<String>) -> Result<Self> {
        if lines.is_empty() {
            return Ok(Self { matcher: None, lines });
        }
        let bad = |line: &str, e: ignore::Error| {
            Error::new(Class::Config, format!("pattern `{line}` is not in gitignore syntax: {e}"))
        };
        let mut builder = GitignoreBuilder::new("");
        builder.allow_unclosed_class(false);
        for line in &lines {
            builder.add_line(None, line).map_err(|e| bad(line, e))?;
        }
        let matcher = builder.build().map_err(|e| bad("", e))?;
        Ok(Self { matcher: Some(matcher), lines })
    }

    /// The patterns, in order.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Names this list of patterns.
    pub fn id(&self) -> Digest {
        Digest::of(self.lines.join("\n").as_bytes())
    }

    /// Whether a file at `path` is left out, by itself or with a directory above it.
    pub fn excludes_path(&self, path: &TreePath) -> bool {
        path.ancestors().filter(|at| !at.is_root()).any(|at| {
            let parent = at.parent().unwrap_or_default();
            self.excludes(&parent, at.split().1, at != *path)
        })
    }

    /// Whether `path` is left out. Its parents are taken to be in the tree.
    pub fn excludes(&self, dir: &TreePath, name: &[u8], is_dir: bool) -> bool {
        if name == CONTROL_DIR {
            return true;
        }
        let Some(matcher) = &self.matcher else {
            return false;
        };
        let mut path = Vec::with_capacity(dir.as_bytes().len() + name.len() + 1);
        path.extend_from_slice(dir.as_bytes());
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        matcher.matched(Path::new(OsStr::from_bytes(&path)), is_dir).is_ignore()
    }

    /// Whether the patterns mean `path`, or else the nearest of its parents that one of them names: a pattern with
    /// `!` takes out again what lies in a directory that is meant.
    pub fn means(&self, path: &TreePath, is_dir: bool) -> bool {
        let os = Path::new(OsStr::from_bytes(path.as_bytes()));
        let matcher = self.matcher.as_ref().filter(|_| !path.is_root());
        matcher.is_some_and(|m| m.matched_path_or_any_parents(os, is_dir).is_ignore())
    }

    /// Why `path` is in or out, its parents included.
    pub fn explain(&self, path: &TreePath, is_dir: bool) -> Verdict {
        let mut verdict = Verdict::Included;
        let mut at = Vec::new();
        let count = path.components().count();
        for (i, part) in path.components().enumerate() {
            if part == CONTROL_DIR {
                return Verdict::ExcludedBy(".syncagent (always)".into());
            }
            if !at.is_empty() {
                at.push(b'/');
            }
            at.extend_from_slice(part);
            let Some(matcher) = &self.matcher else {
                continue;
            };
            match matcher.matched(Path::new(OsStr::from_bytes(&at)), is_dir || i + 1 < count) {
                Match::Ignore(glob) => return Verdict::ExcludedBy(glob.original().to_owned()),
                Match::Whitelist(glob) => verdict = Verdict::IncludedBy(glob.original().to_owned()),
                Match::None => verdict = Verdict::Included,
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> TreePath {
        TreePath::new(s.as_bytes()).unwrap()
    }

    #[test]
    fn the_last_match_wins_and_a_slash_roots_the_pattern() {
        let lines = ["*.log", "!keep.log", "/tmp", "cache/"].map(String::from).to_vec();
        let f = Filter::new(lines).unwrap();
        assert!(f.excludes(&p("a"), b"x.log", false));
        assert!(!f.excludes(&p("a"), b"keep.log", false));
        assert!(f.excludes(&p(""), b"tmp", true));
        assert!(!f.excludes(&p("a"), b"tmp", true));
        assert!(f.excludes(&p("a"), b"cache", true));
        assert!(!f.excludes(&p("a"), b"cache", false));
        assert!(f.excludes(&p("a"), b".syncagent", true));
        assert_eq!(f.explain(&p("a/x.log"), false), Verdict::ExcludedBy("*.log".into()));
        assert_eq!(f.explain(&p("a/cache/deep/x"), false), Verdict::ExcludedBy("cache/".into()));
        assert_eq!(f.explain(&p("keep.log"), false), Verdict::IncludedBy("!keep.log".into()));
    }

    #[test]
    fn a_broken_pattern_is_named() {
        let e = Filter::new(vec!["a[".into()]).unwrap_err();
        assert_eq!(e.class, Class::Config);
        assert!(e.what.contains("a["), "{}", e.what);
    }
}
