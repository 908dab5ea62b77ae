//! `syncagent wait`: asks the agent in short turns, so that a signal is heeded at once and a restart of the agent
//! does not end the wait.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;

use super::exit::Exit;
use super::options::WaitArgs;
use super::run::say;
use super::status::shown;
use crate::agent::{Scope, Wait, Waited};
use crate::error::{Class, Error, Result};
use crate::serve::ask_with;

const TURN: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(200);
/// The source's look is waited for at least so long, however short the time-out is: without it nobody knows what "now" is.
const LOOK: Duration = Duration::from_secs(5);
/// An agent that hangs is given up after so long, and asked again if there is time.
const ANSWER: Duration = Duration::from_secs(4);
/// Longer than anybody waits, and no more than a clock can hold.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

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
    let mut wait = Wait { tree: args.tree.clone(), generation, token: None, scope, wait_ms: 0, look_ms: 0 };
    let begun = Instant::now();
    let (end, look_end) = (begun + args.timeout.0.min(FOREVER), begun + LOOK);
    let mut last = None;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        wait.wait_ms = turn_ms(left);
        wait.look_ms = turn_ms(look_end.saturating_duration_since(Instant::now()));
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
            && let Some(waited) = last.as_ref().filter(|w| !w.looking || Instant::now() >= look_end)
        {
            return told(args, waited, Exit::TimedOut);
        }
    }
}

/// In milliseconds, rounded up, so that the last turn is not one of nothing.
fn turn_ms(left: Duration) -> u64 {
    u64::try_from(left.min(TURN).as_micros().div_ceil(1_000)).unwrap_or(0)
}

fn turn(socket: &Path, wait: &Wait) -> Result<Waited> {
    let body = serde_json::to_vec(wait).map_err(|e| Error::integrity(e.to_string()))?;
    let answer = ask_with(socket, &Method::POST, "/1/wait", Bytes::from(body), TURN + ANSWER)?;
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
    say(&sentence(&args.tree, waited, exit))?;
    if exit != Exit::Done {
        for (node, why) in &waited.missing {
            // often in the words of that node
            say(&format!("  {node}: {}", shown(why)))?;
        }
    }
    Ok(exit)
}

/// What came of it, in a line.
fn sentence(tree: &str, waited: &Waited, exit: Exit) -> String {
    let Some(generation) = waited.generation else {
        return format!("{tree}: what was written is not a generation yet:");
    };
    let has = waited.consistent.len();
    if exit == Exit::Done {
        let noun = if has == 1 { "node" } else { "nodes" };
        return format!("{tree}: generation {generation} on {has} {noun}");
    }
    let lack = waited.missing.iter().map(|(node, _)| node).collect::<BTreeSet<_>>().len();
    format!("{tree}: generation {generation} is not on {lack} of {} nodes:", has + lack)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GenId, NodeId};

    #[test]
    fn what_nobody_could_get_is_not_counted_by_nodes() {
        let node = |id: &str| NodeId::new(id).unwrap();
        let missing = vec![(node("a"), "held".into()), (node("c"), "never heard".into())];
        let mut waited = Waited { missing, ..Waited::default() };
        assert_eq!(sentence("t", &waited, Exit::TimedOut), "t: what was written is not a generation yet:");
        waited.generation = Some(GenId { epoch: 1, number: 42 });
        waited.consistent = vec![node("b")];
        assert_eq!(sentence("t", &waited, Exit::TimedOut), "t: generation 1.42 is not on 2 of 3 nodes:");
        waited.missing.clear();
        assert_eq!(sentence("t", &waited, Exit::Done), "t: generation 1.42 on 1 node");
    }
}
