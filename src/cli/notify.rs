//! What systemd is told (sd_notify): that the agent is ready, reloads or ends, that it is alive, and how its trees
//! stand. Without systemd nothing is sent.
//!
//! The watchdog is fed by the loop that handles signals, after a turn through the threads that serve the sockets. Disks
//! have other threads: one that hangs must not end an agent whose other trees are fine.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::status::{duration, name, shown};
use crate::agent::Agent;
use crate::model::{NodeStatus, RoleName, State, Status, TreeStatus};

/// From one look at the trees to the next.
const LOOK: Duration = Duration::from_secs(2);
/// A status comes from memory; one that takes longer is worth a word.
const LATE: Duration = Duration::from_secs(5);
/// Trees named; `syncagent status` has them all.
const TREES: usize = 6;
/// Characters of what is wrong with a tree.
const WORDS: usize = 160;

fn tell(what: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(what) {
        tracing::debug!("cannot notify systemd: {e}");
    }
}

/// Everything is started; also after a reload.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A reload begins; [`ready`] ends it.
pub(super) fn reloading() {
    // without the time systemd 253 and later give the reload up
    let now = NotifyState::monotonic_usec_now().ok();
    tell(&[Some(NotifyState::Reloading), now].into_iter().flatten().collect::<Vec<_>>());
}

/// The end begins.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("ending")]);
}

/// Feeds the watchdog at half of its time for as long as the caller's loop and the runtime's threads get on.
pub(super) async fn feed_watchdog() -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut ticks = interval((limit / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // does not come back when the threads that serve the sockets are stuck
        if tokio::spawn(async {}).await.is_ok() {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// Says how the trees stand, whenever that changes.
pub(super) async fn report(agent: Arc<Agent>) -> Infallible {
    let mut said = String::new();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let agent = agent.clone();
        // by a thread of its own: whatever holds it up must not hold up the loop
        let mut asked = tokio::task::spawn_blocking(move || line(&agent.status()));
        let text = match timeout(LATE, &mut asked).await {
            Ok(Ok(text)) => text,
            Ok(Err(_)) => "the state of the trees cannot be told: an internal error; see the log".into(),
            Err(_) => {
                tell(&[NotifyState::Status("the state of the trees takes long to come")]);
                asked.await.unwrap_or_default()
            }
        };
        if text != said {
            tell(&[NotifyState::Status(&text)]);
            said = text;
        }
    }
}

/// This node's trees in one line, those in trouble first.
pub(super) fn line(status: &Status) -> String {
    let mut trees: Vec<(&TreeStatus, Option<&NodeStatus>)> =
        status.trees.iter().map(|t| (t, t.nodes.iter().find(|n| n.node == status.node))).collect();
    trees.sort_by_key(|(_, own)| own.is_none_or(is_fine));
    let mut parts = Vec::new();
    if let Some(mark) = &status.drained {
        parts.push(format!("drained by {}", shown(&mark.who)));
    }
    let more = trees.len().saturating_sub(TREES);
    parts.extend(trees.into_iter().take(TREES).map(|(t, own)| tree(t, own)));
    if more > 0 {
        parts.push(format!("and {more} more"));
    }
    parts.join("; ")
}

fn is_fine(own: &NodeStatus) -> bool {
    own.error.is_none() && own.plan.is_none() && matches!(own.state, State::Current | State::Settling)
}

fn tree(tree: &TreeStatus, own: Option<&NodeStatus>) -> String {
    let Some(own) = own else { return format!("{}: unknown", tree.name) };
    let mut words = format!("{}: {}", tree.name, name(&own.state));
    if let Some(generation) = own.generation.or(own.applied) {
        words += &format!(" {generation}");
    }
    if own.role == RoleName::Source {
        let mirrors = tree.nodes.iter().filter(|n| n.role == RoleName::Mirror);
        let (all, there) = (mirrors.clone().count(), mirrors.filter(|n| n.connected).count());
        let noun = if all == 1 { "mirror" } else { "mirrors" };
        words += &if there == all {
            format!(", {all} {noun}")
        } else {
            format!(", {there} of {all} {noun} connected")
        };
    } else {
        words += &own.lag_ms.map_or_else(|| ", lag unknown".into(), |ms| format!(", lag {}", lag(ms)));
    }
    let server = own.refresh.as_ref().and_then(|r| r.error.as_ref());
    let why = own.error.as_ref().map(|e| &e.what).or(own.plan.as_ref().map(|p| &p.reason));
    let why = why.or(server.map(|e| &e.what));
    if let Some(why) = why {
        let why = shown(why);
        let cut = why.char_indices().nth(WORDS).map_or(why.as_str(), |(at, _)| &why[..at]);
        words += &format!(" ({cut}{})", if cut.len() < why.len() { "..." } else { "" });
    }
    words
}

/// In whole seconds, so that the line does not change with every look.
fn lag(ms: u64) -> String {
    if ms < 1_000 { "0 s".into() } else { duration(ms - ms % 1_000).replace(".0 s", " s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{RefreshStatus, Trouble};

    fn frozen() -> Status {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/status/schema-1.json");
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    #[test]
    fn a_line_names_trees_in_trouble_first_and_only_this_nodes_state() {
        let line = line(&frozen());
        assert_eq!(
            line,
            "assets: refused 1.42, 2 of 3 mirrors connected (900 of 1204 files would be deleted, more than max-delete \
             = 25% allows); deploy: current 3.7, lag 0 s"
        );
    }

    #[test]
    fn what_the_local_server_said_is_told() {
        let mut status = frozen();
        status.trees.remove(0);
        let own = &mut status.trees[0].nodes[0];
        own.state = State::Refreshing;
        let error = Some(Trouble { what: "orders: answered 500".into(), for_ms: 1 });
        own.refresh = Some(RefreshStatus { error, ..RefreshStatus::default() });
        assert_eq!(line(&status), "deploy: refreshing 3.7, lag 0 s (orders: answered 500)");
    }

    #[test]
    fn errors_are_cut_and_can_forge_no_further_notification() {
        let mut status = frozen();
        status.trees.truncate(1);
        let own = &mut status.trees[0].nodes[0];
        own.error = Some(Trouble { what: format!("a\nMAINPID=1\n{}", "é".repeat(500)), for_ms: 1 });
        let line = line(&status);
        assert!(!line.contains('\n') && line.contains("a\\nMAINPID=1\\n"), "{line}");
        assert!(line.chars().count() < 300 && line.ends_with("...)"), "{line}");
    }

    #[test]
    fn lag_is_told_in_whole_seconds_and_mirrors_are_counted() {
        let mut status = frozen();
        status.trees.remove(0);
        let of = |status: &Status| line(status);
        for (ms, text) in [(999, "lag 0 s"), (3_900, "lag 3 s"), (61_000, "lag 1 min")] {
            status.trees[0].nodes[0].lag_ms = Some(ms);
            assert!(of(&status).ends_with(text), "{}", of(&status));
        }
        status.trees[0].nodes[0].lag_ms = None;
        assert!(of(&status).ends_with("lag unknown"), "{}", of(&status));
        status.trees[0].nodes[0].role = RoleName::Source;
        assert!(of(&status).ends_with("3.7, 0 mirrors"), "{}", of(&status));
    }

    #[test]
    fn many_trees_are_counted() {
        let mut status = frozen();
        status.trees = std::iter::repeat_n(status.trees[1].clone(), TREES + 3).collect();
        assert!(line(&status).ends_with("; and 3 more"));
    }
}
