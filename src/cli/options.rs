//! The command line.

mod agent;
mod shared;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use agent::AgentArgs;
pub(super) use agent::{
    ApproveArgs, DemoArgs, DrainArgs, ForgetArgs, HoldArgs, HoldExecArgs, PauseArgs, RefreshArgs, ResetArgs,
    ResumeArgs, RunArgs, SourceCommand, StatusArgs, UndrainArgs, WaitArgs,
};
pub(super) use shared::ActivateArg;
pub(crate) use shared::{FilterArgs, StateArgs, ThreadArgs, tree_path};

use super::history::HistoryArgs;
use super::pki::PkiCommand;
use super::rollback::RollbackArgs;
use super::trash::TrashArgs;
use crate::config::{Size, Span};
use crate::plan::{MaxDelete, PlanId};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
