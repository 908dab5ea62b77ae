//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};

use super::history::HistoryArgs;
use super::pki::PkiCommand;
use super::rollback::RollbackArgs;
use super::trash::TrashArgs;
use crate::config::{Size, Span};
use crate::error::{Class, Error, Result};
use crate::model::{NodeId, TreePath};
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
    0  done                                     5  verify found drift
    1  failed                                   6  the lock is held by another run
    2  usage or configuration                   7  time-out
    3  partly done, see the paths named         125  hold itself failed; else its command's own code
    4  refused by a guard, nothing was changed  130  interrupted";

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
    /// The agent of this node, in the foreground.
    Run(RunArgs),
    /// How every node stands, by tree.
    Status(StatusArgs),
    /// Let exactly the losses of a refused plan through; the plan's id is in `status`.
    Approve(ApproveArgs),
    /// Wait until nodes are consistent: 0 when they are, 7 on time-out with who is missing and why.
    Wait(WaitArgs),
    /// Run a command, and publish all that it writes as one generation when it succeeds; exits with its code, 125 for
    /// failures of our own.
    Hold(HoldArgs),
    /// What `hold` runs, to become its command.
    #[command(hide = true)]
    HoldExec(HoldExecArgs),
    /// Tell the local server now, and say what came of it.
    Refresh(RefreshArgs),
    /// Publish nothing of a tree here (source) or apply nothing (mirror) until `resume`.
    Pause(PauseArgs),
    /// End a pause.
    Resume(ResumeArgs),
    /// Tell load balancers to send nothing to this node; files go on.
    Drain(DrainArgs),
    /// End a drain.
    Undrain(UndrainArgs),
    /// On the source: forget a mirror that is gone for good, so that nothing shows it or waits for it any more.
    Forget(ForgetArgs),
    /// A tree's generations: when, from where, what changed, how long each took to be in place.
    History(HistoryArgs),
    /// On the source: publish an older generation's content again, as a new generation.
    Rollback(RollbackArgs),
    /// What commits replaced or deleted: list it, get it back, free it.
    Trash(TrashArgs),
    /// Orders to a tree's source.
    #[command(subcommand)]
    Source(SourceCommand),
    /// Three agents on loopback with a deployment that changes, in a temporary directory.
    Demo(DemoArgs),
    /// A certificate authority for the cluster's nodes, for those who have none.
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Check the agent's configuration, show what is in effect, or print an example.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write man pages or shell completions, for packages.
    #[command(hide = true)]
    Generate(GenerateArgs),
}

impl Command {
    /// Whether standard output is for programs.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Sync(args) => args.json,
            Self::Pki(command) => command.json(),
            Self::Status(args) => args.json,
            Self::Wait(args) => args.json,
            Self::History(args) => args.json,
            Self::Rollback(args) => args.json,
            Self::Trash(args) => args.json(),
            _ => false,
        }
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

/// `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Name every problem, with its line; exit 2 when there is an error.
    Check(ConfigArg),
    /// Print the effective configuration, with all defaults.
    Show(ConfigArg),
    /// Print a commented example.
    Example,
    /// Print the drop-in that lets the systemd service write the trees: for
    /// /etc/systemd/system/syncagent.service.d/trees.conf.
    Systemd(ConfigArg),
}

/// `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What to write.
    #[arg(value_enum)]
    pub what: Generated,
    /// Where to; made when it is missing.
    pub dir: PathBuf,
}

/// What is made from the command line's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Generated {
    /// A page for the program and one for each command, section 1.
    Man,
    /// For bash, zsh and fish.
    Completions,
}

/// Where the agent's configuration is.
#[derive(Debug, Args)]
pub struct ConfigArg {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/syncagent/syncagent.toml")]
    pub config: PathBuf,
}

/// Where the agent's configuration is.
pub(crate) const CONFIG: &str = "/etc/syncagent/syncagent.toml";

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration. SIGHUP reads it again.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    pub config: PathBuf,
}

/// Which agent is asked.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The configuration that names the agent's socket (listen.socket).
    #[arg(long, value_name = "FILE", default_value = CONFIG, global = true)]
    config: PathBuf,
    /// The agent's socket itself.
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
}

impl AgentArgs {
    /// The agent's socket. Without a configuration file it is where it is by default; a file with errors keeps nobody from
    /// asking an agent that runs.
    pub(crate) fn socket(&self) -> Result<PathBuf> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        if self.config == Path::new(CONFIG) && !self.config.exists() {
            return Ok(PathBuf::from(crate::config::SOCKET));
        }
        super::config::socket(&self.config)
    }
}

/// `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// This tree only.
    pub tree: Option<String>,
    /// JSON; its schema is in docs/status.md.
    #[arg(long)]
    pub json: bool,
    /// Again every second.
    #[arg(short, long)]
    pub watch: bool,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// `approve`.
#[derive(Debug, Args)]
pub struct ApproveArgs {
    /// The tree.
    pub tree: String,
    /// What `status` names.
    pub plan: PlanId,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// `wait`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("scope").args(["all", "zone", "node"]))]
pub struct WaitArgs {
    /// The tree.
    pub tree: String,
    /// This generation or a newer one: `1.42`, or `latest`: all that was written until now. On a mirror `latest` is what
    /// the source has published by now.
    #[arg(long, value_name = "GENERATION", default_value = "latest")]
    pub generation: String,
    /// Every node that may read the tree, or ever did [default on the source].
    #[arg(long)]
    pub all: bool,
    /// The nodes of this zone. Those in `allow` that have not said their zone yet count as missing.
    #[arg(long)]
    pub zone: Option<String>,
    /// This node [default on a mirror: itself].
    #[arg(long, value_name = "ID")]
    pub node: Option<NodeId>,
    /// For so long at most; the source's look at what was written is waited for in any case, up to 5 s.
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub timeout: Span,
    /// The outcome as JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// `hold`.
#[derive(Debug, Args)]
pub struct HoldArgs {
    /// The tree; this node must be its source.
    pub tree: String,
    /// Let the tree go, whoever holds it; what is in it is published as any change is.
    #[arg(long, conflicts_with = "command", required_unless_present = "command")]
    pub release: bool,
    /// What to run, after `--`.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// `hold-exec`.
#[derive(Debug, Args)]
pub struct HoldExecArgs {
    /// The process of `hold`.
    pub parent: i32,
    /// What to become.
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// `refresh`.
#[derive(Debug, Args)]
pub struct RefreshArgs {
    /// The tree.
    pub tree: String,
    /// Also what the server has been told of already: everything that is in place.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// `pause`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// The tree.
    pub tree: String,
    /// Why; shown in `status`.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// `resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The tree.
    pub tree: String,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// `forget`.
#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// The tree; this node must be its source.
    pub tree: String,
    /// The mirror. It must not be connected: stop its agent first, or take it out of `allow`.
    pub node: NodeId,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// `drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Why; shown in `status`.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// `undrain`.
#[derive(Debug, Args)]
pub struct UndrainArgs {
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// `source`.
#[derive(Debug, Subcommand)]
pub enum SourceCommand {
    /// After a source was restored from a backup: begin a new epoch with what it has now.
    Reset(ResetArgs),
}

/// `source reset`.
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// The tree.
    pub tree: String,
    /// Yes: the mirrors shall take over what the source has now.
    #[arg(long)]
    pub approve: bool,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after so many seconds; exit 0 only if every mirror converged.
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
