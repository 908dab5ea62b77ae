//! `syncagent rollback`: asks the source's agent.

use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use clap::Args;
use hyper::Method;

use super::exit::Exit;
use super::options::AgentArgs;
use super::run::say;
use crate::agent::{RollbackAnswer, RollbackOrder};
use crate::error::{Error, Result};
use crate::model::GenId;
use crate::plan::PlanId;
use crate::serve::{ask_until, query};

/// Bringing much content back takes a while.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(6 * 3600);

/// `rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The tree.
    tree: String,
    /// The generation, as `history` shows it; by default the newest one that is not as the present one.
    #[arg(long, value_name = "GEN")]
    to: Option<GenId>,
    /// Only say what would be done, and whether all of it is there.
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Let exactly the deletions of a refused rollback through.
    #[arg(long, value_name = "PLAN-ID")]
    approve: Option<PlanId>,
    /// Print a JSON object.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    agent: AgentArgs,
}

pub(super) fn run(args: &RollbackArgs, cancel: &AtomicBool) -> Result<Exit> {
    let order =
        RollbackOrder { to: args.to, dry_run: args.dry_run, approve: args.approve.map(|id| id.to_string()) };
    let body = serde_json::to_vec(&order).map_err(|e| Error::integrity(e.to_string()))?;
    let path = query("/1/rollback", &[("tree", &args.tree)]);
    let answer = ask_until(&args.agent.socket()?, &Method::POST, &path, Bytes::from(body), PATIENCE, cancel)?;
    let bad = |e: serde_json::Error| Error::integrity(format!("the agent's answer: {e}"));
    let answer: RollbackAnswer = serde_json::from_slice(&answer).map_err(bad)?;
    if args.json {
        let mut value = serde_json::to_value(&answer).map_err(bad)?;
        value["to"] = answer.to.to_string().into();
        value["generation"] = answer.generation.map(|id| id.to_string()).into();
        return say(&value.to_string()).map(|()| Exit::Done);
    }
    say(&answer.message).map(|()| Exit::Done)
}
