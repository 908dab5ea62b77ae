//! Asking the agent on this host: its status, `approve`, `source reset`.

use hyper::Method;

use super::exit::Exit;
use super::options::{ApproveArgs, ResetArgs, StatusArgs};
use super::run::say;
use crate::error::{Class, Error, Result};
use crate::model::Status;
use crate::serve::ask;

/// The agent's status document.
pub(super) fn status(args: &StatusArgs) -> Result<Status> {
    let answer = ask(&args.agent.socket()?, &Method::GET, "/1/status")?;
    serde_json::from_slice(&answer).map_err(|e| Error::integrity(format!("the agent's status: {e}")))
}

pub(super) fn approve(args: &ApproveArgs) -> Result<Exit> {
    order(&args.agent.socket()?, &format!("/1/approve?tree={}&plan={}", args.tree, args.plan))
}

pub(super) fn reset(args: &ResetArgs) -> Result<Exit> {
    if !args.approve {
        let what = "a reset publishes what is in the source now, whatever newer generations the mirrors have, and they \
                    take it over; say --approve when that is meant";
        return Err(Error::new(Class::Config, what));
    }
    order(&args.agent.socket()?, &format!("/1/reset?tree={}", args.tree))
}

fn order(socket: &std::path::Path, path: &str) -> Result<Exit> {
    let answer = ask(socket, &Method::POST, path)?;
    let answer: serde_json::Value =
        serde_json::from_slice(&answer).map_err(|e| Error::integrity(format!("the agent's answer: {e}")))?;
    say(answer["message"].as_str().unwrap_or_default())?;
    Ok(Exit::Done)
}
