//! What is asked of an agent.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::config::Span;
use crate::error::Result;
use crate::model::NodeId;
use crate::plan::PlanId;

/// Where the agent's configuration is.
const CONFIG: &str = "/etc/syncagent/syncagent.toml";

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
        crate::cli::config::socket(&self.config)
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
