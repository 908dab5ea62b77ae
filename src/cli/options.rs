//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};

use crate::disk::{OwnerPolicy, Owners, group_id, user_id};
use crate::error::{Class, Error, Result};
use crate::model::{Owner, TreePath};
use crate::plan::{Filter, MaxDelete, PlanId};

/// Keeps an application cluster's deployed files the same on every node.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
    0  done                              5  verify found drift
    1  failed                            6  the lock is held by another run
    2  usage or configuration            7  time-out
    3  partly done, see the paths named  130  interrupted
    4  refused by a guard, nothing was changed";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make DST the exact, verified copy of SRC: contents, modes, mtimes, symbolic links, deletions.
    Sync(SyncArgs),
    /// Read all of a synced directory again and compare it with its index; exit 5 on drift.
    Verify(VerifyArgs),
    /// Print the content digest of a directory: the same on every machine for the same content.
    Digest(DigestArgs),
    /// Show what is known of one path: filter, digest, last run, pending plan.
    Explain(ExplainArgs),
}

impl Command {
    /// Whether standard output is for programs.
    pub(crate) fn json(&self) -> bool {
        matches!(self, Self::Sync(SyncArgs { json: true, .. }))
    }
}

/// `sync`.
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// The source directory. Never written to. A trailing slash means nothing.
    pub src: PathBuf,
    /// The destination directory. Made when it is missing, parents too.
    pub dst: PathBuf,
    /// Print the plan, change nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Print each operation when it is done (the same lines as --dry-run).
    #[arg(short, long)]
    pub itemize: bool,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// Delete nothing in DST.
    #[arg(long)]
    pub no_delete: bool,
    /// Refuse to delete more files than this, or more than this part of DST's files. A percentage does not
    /// bite below 10 deletions.
    #[arg(long, value_name = "N|N%", default_value = "25%")]
    pub max_delete: MaxDelete,
    /// Let exactly the deletions of a refused plan through.
    #[arg(long, value_name = "PLAN-ID")]
    pub approve: Option<PlanId>,
    /// Take over a DST that is not empty and was never managed by syncagent.
    #[arg(long)]
    pub adopt: bool,
    /// How the new state becomes visible: path by path, or the whole directory at once.
    #[arg(long, value_enum, default_value = "in-place")]
    pub activate: ActivateArg,
    /// Stage new content here instead of in DST/.syncagent; on the same file system and mount as DST.
    #[arg(long, value_name = "PATH")]
    pub staging: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Keep what was replaced or deleted for so many runs that changed something, in DST/.syncagent/trash.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub keep: u64,
    /// Keep no more than this in the trash, whatever --keep says.
    #[arg(long, value_name = "SIZE", default_value = "10GiB")]
    pub keep_bytes: Size,
    /// What becomes of owners: `preserve` (by name; default for root), `ignore` (default otherwise), or
    /// `USER[:GROUP]` for all.
    #[arg(long, value_name = "preserve|ignore|USER[:GROUP]")]
    pub owner: Option<String>,
    /// Read everything again on both sides, trust no index.
    #[arg(long)]
    pub checksum: bool,
    /// Wait so long for another run to end ("30s", "5m").
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub lock_wait: Span,
    /// Print JSON lines: an object per operation, a summary last.
    #[arg(long)]
    pub json: bool,
    /// Print no summary and no progress.
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
}

/// `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A directory that was the DST of a sync.
    pub dir: PathBuf,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
}

/// `digest`.
#[derive(Debug, Args)]
pub struct DigestArgs {
    /// Any directory.
    pub dir: PathBuf,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
}

/// `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The DST (or SRC) of a sync.
    pub dir: PathBuf,
    /// A path in it.
    pub path: PathBuf,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

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

/// A duration: "30s", "1h 30m", or seconds.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Ok(seconds) = s.parse::<u32>() {
            return Ok(Self(Duration::from_secs(seconds.into())));
        }
        let span: jiff::SignedDuration =
            s.parse().map_err(|_| format!("`{s}` is not a duration such as 30s, 5m or 1h30m"))?;
        Duration::try_from(span).map(Self).map_err(|_| format!("`{s}` is negative"))
    }
}

/// Bytes: "500MiB", "10G", "1024". Suffixes are powers of 1,024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("`{s}` is not a size such as 500MiB, 10G or 1048576");
        let end = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let number: u64 = s[..end].parse().map_err(|_| bad())?;
        let shift = match s[end..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(bad()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(bad)
    }
}

/// `--owner`, checked against the users and groups of this host.
pub(crate) fn owner_policy(arg: Option<&str>) -> Result<OwnerPolicy> {
    let unknown = |what: &str, name: &str| {
        let what = format!(
            "--owner: there is no {what} `{name}` on this host (a numeric id is written #1234 or 1234)"
        );
        Err(Error::new(Class::Config, what))
    };
    let numeric = |name: &str| {
        if name.parse::<u32>().is_ok() { format!("#{name}") } else { name.to_owned() }
    };
    match arg {
        None if rustix::process::geteuid().is_root() => Ok(OwnerPolicy::Preserve),
        None | Some("ignore") => Ok(OwnerPolicy::Ignore),
        Some("preserve") => Ok(OwnerPolicy::Preserve),
        Some(spec) => {
            let (user, group) = spec.split_once(':').unwrap_or((spec, ""));
            if user.is_empty() && group.is_empty() {
                return Err(Error::new(Class::Config, "--owner: give `preserve`, `ignore` or USER[:GROUP]"));
            }
            let names = Owners::default();
            let mut owner = Owner::default();
            if !user.is_empty() {
                let Some(uid) = user_id(&numeric(user)) else {
                    return unknown("user", user);
                };
                owner.user = names.names(uid, 0).user;
            }
            if !group.is_empty() {
                let Some(gid) = group_id(&numeric(group)) else {
                    return unknown("group", group);
                };
                owner.group = names.names(0, gid).group;
            }
            Ok(OwnerPolicy::Fixed(owner))
        }
    }
}

/// A path in a tree as a user writes it: relative to the tree, or below the tree's own path.
pub(crate) fn tree_path(dir: &std::path::Path, path: &std::path::Path) -> Result<TreePath> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn sizes_and_durations_are_read_or_refused() {
        assert_eq!("10GiB".parse(), Ok(Size(10 << 30)));
        assert_eq!("7".parse(), Ok(Size(7)));
        assert!("x".parse::<Size>().is_err());
        assert!("99999999999T".parse::<Size>().is_err());
        assert_eq!("90".parse::<Span>().unwrap().0, Duration::from_secs(90));
        assert_eq!("1m30s".parse::<Span>().unwrap().0, Duration::from_secs(90));
        assert!("-5s".parse::<Span>().is_err());
        assert!("soon".parse::<Span>().is_err());
    }
}
