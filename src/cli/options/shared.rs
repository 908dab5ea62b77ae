//! Options that several commands have.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, ValueEnum};

use crate::error::{Class, Error, Result};
use crate::model::TreePath;
use crate::plan::Filter;

/// Patterns; their order on the command line counts.
#[derive(Debug, Args)]
pub(crate) struct FilterArgs {
    /// Leave out what matches (gitignore syntax, rooted at SRC; the last match wins). It is not deleted in
    /// DST either.
    #[arg(long, value_name = "PAT")]
    exclude: Vec<String>,
    /// Take in again what an earlier pattern left out.
    #[arg(long, value_name = "PAT")]
    include: Vec<String>,
    /// Read patterns from a file in gitignore syntax.
    #[arg(long, value_name = "FILE")]
    exclude_from: Vec<PathBuf>,
}

impl FilterArgs {
    /// The patterns in the order given.
    pub(crate) fn compile(&self, matches: &ArgMatches) -> Result<Filter> {
        let matches = matches.subcommand().map_or(matches, |(_, m)| m);
        let indices = |id: &str| matches.indices_of(id).into_iter().flatten().collect::<Vec<_>>();
        let mut lines: Vec<(usize, Vec<String>)> = Vec::new();
        // a comment makes sense in a file only
        let literal = |p: &String| if p.starts_with('#') { format!("\\{p}") } else { p.clone() };
        let one = |(i, p): (usize, &String)| (i, vec![literal(p)]);
        lines.extend(indices("exclude").into_iter().zip(&self.exclude).map(one));
        let not = |(i, p): (usize, &String)| (i, vec![format!("!{p}")]);
        lines.extend(indices("include").into_iter().zip(&self.include).map(not));
        for (i, file) in indices("exclude_from").into_iter().zip(&self.exclude_from) {
            let text = std::fs::read_to_string(file).map_err(|e| Error {
                class: Class::Config,
                what: format!("cannot read the patterns in {}", file.display()),
                source: Some(e),
            })?;
            lines.push((i, text.lines().map(String::from).collect()));
        }
        lines.sort_by_key(|(i, _)| *i);
        Filter::new(lines.into_iter().flat_map(|(_, l)| l).collect())
    }
}

#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    /// Where indexes are kept [default: $SYNCAGENT_STATE_DIR, $STATE_DIRECTORY, /var/lib/syncagent for
    /// root, $XDG_STATE_HOME/syncagent].
    #[arg(long, value_name = "PATH")]
    state_dir: Option<PathBuf>,
}

impl StateArgs {
    pub(crate) fn dir(&self) -> Result<PathBuf> {
        let dir = self.state_dir.clone().map_or_else(crate::agent::default_state_dir, Ok)?;
        std::path::absolute(&dir).map_err(|e| Error::io(e, format!("cannot resolve {}", dir.display())))
    }
}

#[derive(Debug, Args)]
pub(crate) struct ThreadArgs {
    /// Threads that scan, hash and copy [default: one per processor, 2 to 8].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

impl ThreadArgs {
    pub(crate) fn count(&self) -> usize {
        let default = || std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8));
        self.threads.map_or_else(default, usize::from)
    }
}

/// `--activate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ActivateArg {
    /// Path by path.
    InPlace,
    /// The whole directory at once.
    Swap,
}

/// A path in a tree as a user writes it: relative to the tree, or below the tree's own path.
pub(crate) fn tree_path(dir: &Path, path: &Path) -> Result<TreePath> {
    use std::os::unix::ffi::OsStrExt as _;
    let relative = path
        .strip_prefix(dir)
        .or_else(|_| path.strip_prefix(dir.canonicalize().unwrap_or_default().as_path()));
    let relative = relative.unwrap_or(path);
    let bytes: Vec<&[u8]> = relative
        .components()
        .filter(|c| !matches!(c, std::path::Component::CurDir))
        .map(|c| c.as_os_str().as_bytes())
        .collect();
    TreePath::new(&bytes.join(&b"/"[..]))
        .map_err(|e| Error::new(Class::Config, format!("{}: {e} in a tree", path.display())))
}
