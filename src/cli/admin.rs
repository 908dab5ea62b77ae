//! Asking the agent on this host: its status, `approve`, `source reset`, `pause`, `drain`, `forget`.

use std::path::Path;

use hyper::Method;

use super::exit::Exit;
use super::options::{
    ApproveArgs, DrainArgs, ForgetArgs, PauseArgs, RefreshArgs, ResetArgs, ResumeArgs, UndrainArgs,
};
use super::run::say;
use crate::error::{Class, Error, Result};
use crate::model::Status;
use crate::serve::{ForgetAsked, Marked, RefreshAsked, ask, query, tell};

/// The agent's status document.
pub(super) fn status(socket: &Path) -> Result<Status> {
    let answer = ask(socket, &Method::GET, "/1/status")?;
    serde_json::from_slice(&answer).map_err(|e| Error::integrity(format!("the agent's status: {e}")))
}

pub(super) fn approve(args: &ApproveArgs) -> Result<Exit> {
    order(
        &args.agent.socket()?,
        &query("/1/approve", &[("tree", &args.tree), ("plan", &args.plan.to_string())]),
    )
}

pub(super) fn reset(args: &ResetArgs) -> Result<Exit> {
    if !args.approve {
        let what = "a reset publishes what is in the source now, whatever newer generations the mirrors have, and they \
                    take it over; say --approve when that is meant";
        return Err(Error::new(Class::Config, what));
    }
    order(&args.agent.socket()?, &query("/1/reset", &[("tree", &args.tree)]))
}

pub(super) fn pause(args: &PauseArgs) -> Result<Exit> {
    mark(&args.agent.socket()?, "/1/pause", &args.tree, args.reason.clone())
}

pub(super) fn resume(args: &ResumeArgs) -> Result<Exit> {
    mark(&args.agent.socket()?, "/1/resume", &args.tree, None)
}

pub(super) fn drain(args: &DrainArgs) -> Result<Exit> {
    mark(&args.agent.socket()?, "/1/drain", "", args.reason.clone())
}

pub(super) fn undrain(args: &UndrainArgs) -> Result<Exit> {
    mark(&args.agent.socket()?, "/1/undrain", "", None)
}

pub(super) fn refresh(args: &RefreshArgs) -> Result<Exit> {
    let asked = RefreshAsked { tree: args.tree.clone(), force: args.force };
    said(&tell(&args.agent.socket()?, "/1/refresh", &asked)?)
}

pub(super) fn forget(args: &ForgetArgs) -> Result<Exit> {
    let asked = ForgetAsked { tree: args.tree.clone(), node: args.node.clone() };
    said(&tell(&args.agent.socket()?, "/1/forget", &asked)?)
}

fn mark(socket: &Path, path: &str, tree: &str, reason: Option<String>) -> Result<Exit> {
    said(&tell(socket, path, &Marked { tree: tree.to_owned(), reason })?)
}

fn order(socket: &Path, path: &str) -> Result<Exit> {
    said(&ask(socket, &Method::POST, path)?)
}

fn said(answer: &[u8]) -> Result<Exit> {
    let answer: serde_json::Value =
        serde_json::from_slice(answer).map_err(|e| Error::integrity(format!("the agent's answer: {e}")))?;
    say(answer["message"].as_str().unwrap_or_default())?;
    Ok(Exit::Done)
}
