//! What is wrong, out of the whole status.

use crate::model::{NodeStatus, RefreshState, State, Status, TreeStatus, escape};

use super::text::count;

/// A certificate is mentioned so many days before its end.
const EXPIRES: i64 = 30;
/// A change that is not published for so long is mentioned, in ms.
const UNPUBLISHED: u64 = 60_000;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Grade {
    /// Worth knowing.
    Note,
    /// Somebody should look.
    Warn,
    /// Something does not work.
    Bad,
}

impl Grade {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warn => "warning",
            Self::Bad => "failure",
        }
    }

    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) grade: Grade,
    /// The node and the tree.
    pub(super) place: String,
    pub(super) what: String,
    pub(super) for_ms: Option<u64>,
}

/// Everything that is wrong, in the order of the trees and nodes.
pub(super) fn troubles(status: &Status) -> Vec<Trouble> {
    let mut all = Vec::new();
    let mut add =
        |grade, place: String, what: String, for_ms| all.push(Trouble { grade, place, what, for_ms });
    if let Some(days) = status.certificate_days_left.filter(|days| *days < EXPIRES) {
        let (grade, what) = match days {
            ..0 => (Grade::Bad, "the certificate has expired".to_owned()),
            days => {
                (Grade::Warn, format!("the certificate expires in {}", count(days.unsigned_abs(), "day")))
            }
        };
        add(grade, status.node.to_string(), what, None);
    }
    if let Some(mark) = &status.drained {
        let why = mark.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        add(Grade::Warn, status.node.to_string(), format!("drained by {}{why}", mark.who), Some(mark.for_ms));
    }
    for tree in &status.trees {
        of_tree(tree, &mut add);
        for (i, node) in tree.nodes.iter().enumerate() {
            of_node(tree, node, i == 0 && status.drained.is_some(), &mut add);
        }
    }
    all
}

type Add<'a> = dyn FnMut(Grade, String, String, Option<u64>) + 'a;

fn of_tree(tree: &TreeStatus, add: &mut Add<'_>) {
    let name = || tree.name.clone();
    if let Some(hold) = &tree.hold {
        match &hold.failed {
            Some(how) => {
                add(
                    Grade::Bad,
                    name(),
                    format!("held, nothing is published: {how} (by {})", hold.who),
                    Some(hold.since_ms()),
                );
            }
            None => {
                let what = format!("held by {} while `{}` runs", hold.who, hold.command);
                add(Grade::Note, name(), what, Some(hold.for_ms));
            }
        }
    }
    for held in tree.held.iter().take(5) {
        let what = format!("{} is held back: {}", held.path, held.why);
        add(Grade::Warn, name(), what, Some(held.for_ms));
    }
    if tree.held_count > 5 {
        add(Grade::Warn, name(), format!("{} are held back in all", count(tree.held_count, "file")), None);
    } else if tree.held.is_empty()
        && let Some(ms) = tree.unpublished_age_ms.filter(|ms| *ms > UNPUBLISHED)
    {
        add(Grade::Warn, name(), "changes wait to be published".into(), Some(ms));
    }
    if let Some(reason) = tree.watch.reason.as_ref().filter(|_| !tree.watch.native) {
        add(Grade::Note, name(), format!("changes are looked for by scanning: {reason}"), None);
    }
    // of a tree that failed it is what its node says
    let failed = tree.nodes.first().is_some_and(|own| own.state == State::Failed);
    if let Some(why) = tree.unwritable.as_ref().filter(|_| !failed) {
        add(Grade::Warn, name(), format!("the tree cannot be written: {why}; see `syncagent status`"), None);
    }
    if let Some(lock) = &tree.lock {
        add(Grade::Warn, name(), lock.clone(), None);
    }
}

/// One word for the shell into which it may be copied, whatever a peer sent.
fn word(text: &str) -> String {
    // fails for NUL only, which is escaped
    shlex::try_quote(&escape(text.as_bytes())).map(String::from).unwrap_or_default()
}

fn of_node(tree: &TreeStatus, node: &NodeStatus, drained_here: bool, add: &mut Add<'_>) {
    let place = || format!("{} on {}", tree.name, node.node);
    // of this node it was said already
    if let Some(mark) = node.drained.as_ref().filter(|_| !drained_here) {
        let why = mark.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        add(Grade::Warn, place(), format!("drained by {}{why}", mark.who), Some(mark.for_ms));
    }
    for fault in node.faults.iter().filter(|fault| !fault.starts_with("drained by ")) {
        add(Grade::Bad, place(), format!("takes no traffic: {fault}"), None);
    }
    // what made it take no traffic is in the reason
    let said = |text: &str| node.faults.iter().any(|fault| fault.contains(text));
    if let Some(plan) = &node.plan {
        let here = if node.connected { "" } else { ", on that node" };
        let what = format!(
            "{}; to let it through{here}: syncagent approve {} {}",
            plan.reason,
            word(&tree.name),
            word(&plan.id)
        );
        add(Grade::Warn, place(), what, node.error.as_ref().map(|e| e.for_ms));
    } else if let Some(error) = node.error.as_ref().filter(|e| !said(&e.what)) {
        let bad = matches!(node.state, State::Failed | State::Superseded | State::Incomplete);
        add(if bad { Grade::Bad } else { Grade::Warn }, place(), error.what.clone(), Some(error.for_ms));
    } else if node.state == State::Disconnected {
        add(Grade::Warn, place(), "not connected".into(), node.contact_age_ms);
    }
    if let Some(refresh) = &node.refresh
        && let Some(error) = refresh.error.as_ref().filter(|e| !said(&e.what))
    {
        let bad = matches!(refresh.state, RefreshState::VerifyFailed) || refresh.failures > 2;
        add(if bad { Grade::Bad } else { Grade::Warn }, place(), error.what.clone(), Some(error.for_ms));
    }
    if let Some(mark) = &node.paused {
        let why = mark.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        add(Grade::Warn, place(), format!("paused by {}{why}", mark.who), Some(mark.for_ms));
    }
    if node.drift > 0 && node.error.is_none() {
        add(Grade::Warn, place(), format!("{} were edited there", count(node.drift, "path")), None);
    }
}
