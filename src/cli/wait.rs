//! `syncagent wait`: asks the agent in short turns, so that a signal is heeded at once and a restart of the agent
//! does not end the wait.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::exit::Exit;
use super::options::WaitArgs;
use super::run::say;
use crate::agent::{Scope, Wait, Waited};
use crate::error::{Class, Error, Result};
use crate::serve::tell;

const TURN: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(200);

pub(super) fn run(args: &WaitArgs, cancel: &AtomicBool) -> Result<Exit> {
    let socket = args.agent.socket()?;
    let generation = match args.generation.as_str() {
        "latest" => None,
        text => Some(text.parse().map_err(|e| Error::new(Class::Config, format!("{e}, nor `latest`")))?),
    };
    let scope = match (&args.zone, &args.node) {
        _ if args.all => Scope::All,
        (Some(zone), _) => Scope::Zone(zone.clone()),
        (_, Some(node)) => Scope::Node(node.clone()),
        _ => Scope::Default,
    };
    let mut wait = Wait { tree: args.tree.clone(), generation, token: None, scope, wait_ms: 0 };
    let end = Instant::now() + args.timeout.0;
    let mut last = None;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        wait.wait_ms = u64::try_from(left.min(TURN).as_millis()).unwrap_or(0);
        let waited = turn(&socket, &wait);
        if cancel.load(Ordering::Relaxed) {
            return Ok(Exit::Interrupted);
        }
        match waited {
            Ok(waited) if waited.missing.is_empty() => return told(args, &waited, Exit::Done),
            Ok(waited) => {
                wait.token = waited.token;
                wait.generation = waited.generation;
                last = Some(waited);
            }
            Err(e) if e.class == Class::Transient && left > PAUSE => {
                // the agent restarts; what "now" was is asked anew
                wait.token = None;
                std::thread::sleep(PAUSE);
            }
            Err(e) => return Err(e),
        }
        if Instant::now() >= end
            && let Some(waited) = &last
        {
            return told(args, waited, Exit::TimedOut);
        }
    }
}

fn turn(socket: &Path, wait: &Wait) -> Result<Waited> {
    let answer = tell(socket, "/1/wait", wait)?;
    serde_json::from_slice(&answer).map_err(|e| Error::integrity(format!("the agent's answer: {e}")))
}

fn told(args: &WaitArgs, waited: &Waited, exit: Exit) -> Result<Exit> {
    if args.json {
        let missing: Vec<_> = waited
            .missing
            .iter()
            .map(|(node, why)| serde_json::json!({ "node": node, "why": why }))
            .collect();
        let generation = waited.generation.map(|g| g.to_string());
        let document = serde_json::json!({
            "consistent": exit == Exit::Done, "generation": generation, "nodes": waited.consistent, "missing": missing,
        });
        say(&document.to_string())?;
        return Ok(exit);
    }
    let generation = waited.generation.map_or("nothing yet".into(), |g| format!("generation {g}"));
    if exit == Exit::Done {
        let nodes = waited.consistent.len();
        say(&format!(
            "{}: {generation} on {nodes} {}",
            args.tree,
            if nodes == 1 { "node" } else { "nodes" }
        ))?;
        return Ok(exit);
    }
    let all = waited.missing.iter().map(|(node, _)| node).collect::<std::collections::BTreeSet<_>>().len();
    say(&format!(
        "{}: {generation} is not on {all} of {} nodes:",
        args.tree,
        waited.consistent.len() + waited.missing.len()
    ))?;
    for (node, why) in &waited.missing {
        say(&format!("  {node}: {why}"))?;
    }
    Ok(exit)
}
