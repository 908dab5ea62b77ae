//! The status document for people: per tree a headline, what is wrong, then the nodes. Much of it are words of peers,
//! so nothing reaches the terminal with a control character in it.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table};
use serde::Serialize;

pub(in crate::cli) use crate::model::counted as count;
use crate::model::{
    Mark, NodeStatus, Percentiles, RefreshState, RefreshStatus, State, Status, TreeStatus, escape,
};

const COLUMNS: [&str; 9] =
    ["NODE", "ROLE", "STATE", "GENERATION", "BEHIND", "LAG", "CONTACT", "DRIFT", "NOTE"];

/// Longer node ids are cut here; `--json` has them whole.
const NODE_WIDTH: usize = 40;

/// The narrowest column of notes.
const NOTE_WIDTH: usize = 30;

/// Held paths named; `--json` has more.
const HELD: usize = 5;

/// What opens the trees for the service.
const DROP_IN: &str = "syncagent config systemd > /etc/systemd/system/syncagent.service.d/trees.conf";

/// Days before its end from which a certificate is mentioned.
const CERTIFICATE_DAYS: i64 = 30;

/// The trees (or `only` the one), for a terminal of `width` columns; without one no line is broken. Each line
/// has its end.
pub(crate) fn table(status: &Status, only: Option<&str>, width: Option<u16>) -> String {
    let mut out = wrapped(0, &agent(status), width);
    for tree in status.trees.iter().filter(|t| only.is_none_or(|name| t.name == name)) {
        out += "\n";
        out += &wrapped(0, &headline(tree), width);
        for (indent, line) in problems(status, tree) {
            out += &wrapped(indent, &line, width);
        }
        if let Some(line) = convergence(tree) {
            out += &wrapped(2, &line, width);
        }
        out += &nodes(status, tree, width);
    }
    out
}

fn agent(status: &Status) -> String {
    let zone = status.zone.as_ref().map(|z| format!(" in zone {}", shown(z))).unwrap_or_default();
    let mut line = format!(
        "{}{zone}, cluster {}, syncagent {}, up {}",
        status.node,
        shown(&status.cluster),
        shown(&status.version),
        duration(status.started_ms_ago)
    );
    match status.certificate_days_left {
        Some(days) if days < 0 => line += "; its certificate has EXPIRED",
        Some(days) if days <= CERTIFICATE_DAYS => {
            line += &format!("; its certificate expires in {}", count(days.unsigned_abs(), "day"));
        }
        _ => {}
    }
    if let Some(drained) = &status.drained {
        line += &format!("; DRAINED {}", by(drained));
    }
    line
}

/// By whom, since when and why something is so.
fn by(mark: &Mark) -> String {
    let reason = mark.reason.as_ref().map(|r| format!(": {}", shown(r))).unwrap_or_default();
    format!("by {}, {} ago{reason}", shown(&mark.who), duration(mark.for_ms))
}

fn headline(tree: &TreeStatus) -> String {
    let mut line = format!("{}  {}", shown(&tree.name), shown(&tree.path));
    match (tree.head, tree.head_age_ms) {
        (Some(head), Some(age)) => line += &format!("  generation {head}, {} old", duration(age)),
        (Some(head), None) => line += &format!("  generation {head}"),
        (None, _) => match tree.nodes.first().and_then(|own| own.applied.max(own.generation)) {
            // a mirror whose source was not heard since the start
            Some(has) => line += &format!("  generation {has} in place, the newest is not known yet"),
            None => line += "  no generation yet",
        },
    }
    if let Some(files) = tree.files {
        line += &format!("  {}", count(files, "file"));
    }
    line
}

/// How long generations took to be in place, lately if there were any.
fn convergence(tree: &TreeStatus) -> Option<String> {
    let c = tree.convergence.filter(|c| c.last_1000.count > 0)?;
    let (p, of) =
        if c.hour.count > 0 { (c.hour, "the last hour") } else { (c.last_1000, "1,000 generations") };
    let Percentiles { p50_ms, p95_ms, p99_ms, max_ms, .. } = p;
    let [p50, p95, p99, max] = [p50_ms, p95_ms, p99_ms, max_ms].map(duration);
    Some(format!("in place after {p50} (p50), {p95} (p95), {p99} (p99), {max} (max) in {of}"))
}

/// What is wrong with the tree here, the worst first, as indented lines; a command has one of its own.
fn problems(status: &Status, tree: &TreeStatus) -> Vec<(u16, String)> {
    const BELOW: u16 = 6;
    let mut lines = Vec::new();
    let mut say = |indent, line| lines.push((indent, line));
    if let Some(holder) = &tree.lock {
        say(2, format!("! locked by {}", shown(holder)));
    }
    if let Some(why) = &tree.unwritable {
        say(2, format!("! the tree cannot be written: {}; where that is the service's sandbox:", shown(why)));
        say(BELOW, DROP_IN.to_owned());
        say(BELOW, "systemctl daemon-reload && systemctl restart syncagent".to_owned());
    }
    if let Some(hold) = &tree.hold {
        let (who, command, age) = (shown(&hold.who), shown(&hold.command), duration(hold.since_ms()));
        match &hold.failed {
            None => say(2, format!("! held by {who} for {age}, until this command ends: {command}")),
            Some(why) => {
                say(
                    2,
                    format!(
                        "! held since a command of {who} failed, {age} ago: {}; to let it go:",
                        shown(why)
                    ),
                );
                say(BELOW, format!("syncagent hold {} --release", word(&tree.name)));
            }
        }
    }
    for node in &tree.nodes {
        let Some(plan) = &node.plan else { continue };
        let there = if node.node == status.node { "to" } else { &format!("on {} to", node.node) };
        let lost = count(plan.lost, "file");
        say(
            2,
            format!("! refused: {} ({lost} lost); {there} let exactly this through:", shown(&plan.reason)),
        );
        say(BELOW, format!("syncagent approve {} {}", word(&tree.name), word(&plan.id)));
    }
    // without a reason it is not known yet, or the tree is not open: what keeps it so is said elsewhere
    if let Some(why) = tree.watch.reason.as_ref().filter(|_| !tree.watch.native) {
        say(2, format!("! changes are found by scanning, not by events: {}", shown(why)));
    }
    if tree.held_count > 0 {
        let paths = count(tree.held_count, "path");
        say(2, format!("! {paths} held back; what was published before stays:"));
        let some = &tree.held[..tree.held.len().min(HELD)];
        for h in some {
            say(BELOW, format!("{} ({}, for {})", shown(&h.path), shown(&h.why), duration(h.for_ms)));
        }
        let more = tree.held_count.saturating_sub(some.len() as u64);
        if more > 0 {
            say(BELOW, format!("and {more} more"));
        }
    }
    if let Some(age) = tree.unpublished_age_ms {
        say(2, format!("! a change waits unpublished for {}", duration(age)));
    }
    if tree.refused_peers > 0 {
        let requests = count(tree.refused_peers, "request");
        say(2, format!("! {requests} of peers refused since the start; the log says whose and why"));
    }
    lines
}

/// The nodes; their notes as a column where there is room for one, else as lines below.
fn nodes(status: &Status, tree: &TreeStatus, width: Option<u16>) -> String {
    let mut nodes: Vec<&NodeStatus> = tree.nodes.iter().collect();
    nodes.sort_by_key(|n| (n.node != status.node, !in_trouble(n)));
    let rows: Vec<[String; 9]> = nodes.into_iter().map(|n| row(status, n)).collect();
    let Some(columns) = width.map(usize::from) else { return grid(&rows, 9, NODE_WIDTH, None) };
    let bare = grid(&rows, 8, NODE_WIDTH, None).lines().map(str::len).max().unwrap_or(0);
    if bare + 2 + NOTE_WIDTH <= columns {
        return grid(&rows, 9, NODE_WIDTH, width);
    }
    let longest = rows.iter().map(|r| r[0].len()).max().unwrap_or(0).min(NODE_WIDTH);
    let mut out = grid(&rows, 8, longest.saturating_sub(bare.saturating_sub(columns)).max(12), None);
    for [node, .., note] in rows.iter().filter(|r| !r[8].is_empty()) {
        out += &wrapped(4, &format!("{node}: {note}"), width);
    }
    out
}

/// The first `columns` of each row, node ids cut to `ids`.
fn grid(rows: &[[String; 9]], columns: usize, ids: usize, width: Option<u16>) -> String {
    let mut table = Table::new();
    table.set_header(&COLUMNS[..columns]);
    for row in rows {
        let mut row = row[..columns].to_vec();
        if row[0].len() > ids {
            row[0] = format!("{:.*}...", ids - 3, row[0]);
        }
        table.add_row(row);
    }
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    for (column, name) in table.column_iter_mut().zip(COLUMNS) {
        column.set_padding((if name == "NODE" { 2 } else { 0 }, if name == "NOTE" { 0 } else { 2 }));
        // only notes are long, so only they wrap
        if name != "NOTE" {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        if ["BEHIND", "LAG", "CONTACT", "DRIFT"].contains(&name) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    plain(table)
}

fn row(status: &Status, node: &NodeStatus) -> [String; 9] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    [
        node.node.to_string(),
        name(&node.role),
        name(&node.state),
        or_dash(node.generation.map(|g| g.to_string())),
        or_dash(node.behind.map(|n| n.to_string())),
        or_dash(node.lag_ms.map(duration)),
        or_dash(node.contact_age_ms.map(duration)),
        node.drift.to_string(),
        note(status, node),
    ]
}

fn note(status: &Status, node: &NodeStatus) -> String {
    let mut notes = Vec::new();
    if let Some(paused) = &node.paused {
        notes.push(format!("paused {}", by(paused)));
    }
    if let Some(drained) = node.drained.as_ref().filter(|_| node.node != status.node) {
        notes.push(format!("drained {}", by(drained)));
    }
    if let Some(refresh) = &node.refresh {
        notes.extend(refreshing(node, refresh));
    }
    if let Some(e) = &node.error {
        notes.push(format!("{} (for {})", shown(&e.what), duration(e.for_ms)));
    }
    if let Some(plan) = &node.plan {
        notes.push(format!("refused plan {}", shown(&plan.id)));
    }
    if !node.connected && node.state != State::Disconnected {
        notes.push("not connected".into());
    }
    if let (false, Some(age)) = (node.connected, node.confirmed_age_ms) {
        notes.push(format!("confirmed {} ago", duration(age)));
    }
    if let Some(zone) = node.zone.as_ref().filter(|z| Some(*z) != status.zone.as_ref()) {
        notes.push(format!("zone {}", shown(zone)));
    }
    if let Some(version) = node.version.as_ref().filter(|v| **v != status.version) {
        notes.push(format!("version {}", shown(version)));
    }
    notes.join("; ")
}

/// What the local server has not taken up yet, and why.
fn refreshing(node: &NodeStatus, refresh: &RefreshStatus) -> Option<String> {
    if refresh.state == RefreshState::Idle {
        return None;
    }
    let of = refresh.action.as_ref().map(|a| format!(" {}", shown(a))).unwrap_or_default();
    let which = node.applied.map(|g| format!(", {g} is in place")).unwrap_or_default();
    let why = refresh.error.as_ref().map(|e| {
        let attempts = count(refresh.attempts, "attempt");
        format!(": {} ({attempts}, for {})", shown(&e.what), duration(e.for_ms))
    });
    Some(format!("refresh{of} {}{which}{}", name(&refresh.state), why.unwrap_or_default()))
}

/// Whether somebody should look.
fn in_trouble(node: &NodeStatus) -> bool {
    use State::{Disconnected, Drift, Failed, Incomplete, Refused, RolledBack, Superseded};
    let state =
        matches!(node.state, Refused | Drift | Incomplete | Superseded | Disconnected | Failed | RolledBack);
    let stuck = |r: &RefreshStatus| matches!(r.state, RefreshState::Failing | RefreshState::VerifyFailed);
    let ordered = node.paused.is_some() || node.drained.is_some();
    state
        || ordered
        || node.refresh.as_ref().is_some_and(stuck)
        || node.drift > 0
        || node.plan.is_some()
        || node.error.is_some()
        || !node.connected
}

/// The word that a program reads in the document.
pub(in crate::cli) fn name(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| Some(v.as_str()?.to_owned())).unwrap_or_default()
}

/// One line without control characters. Paths in messages are escaped already, so `\` is left alone.
pub(in crate::cli) fn shown(text: &str) -> String {
    escape(text.as_bytes()).replace("\\\\", "\\")
}

/// One word for a shell, whatever a peer sent.
fn word(text: &str) -> String {
    // fails for NUL only, which is escaped
    shlex::try_quote(&shown(text)).map(String::from).unwrap_or_default()
}

/// Milliseconds for people, rounded down: "240 ms", "3.2 s", "42 s", "5 min", "2 h", "3 days".
pub(in crate::cli) fn duration(ms: u64) -> String {
    const SECOND: u64 = 1_000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const TWO_DAYS: u64 = 48 * HOUR;
    match ms {
        0..SECOND => format!("{ms} ms"),
        SECOND..10_000 => format!("{}.{} s", ms / SECOND, ms % SECOND / 100),
        10_000..MINUTE => format!("{} s", ms / SECOND),
        MINUTE..HOUR => format!("{} min", ms / MINUTE),
        HOUR..TWO_DAYS => format!("{} h", ms / HOUR),
        TWO_DAYS.. => format!("{} days", ms / (24 * HOUR)),
    }
}

/// `line`, indented and broken between words at `width`.
fn wrapped(indent: u16, line: &str, width: Option<u16>) -> String {
    let mut table = Table::new();
    table.add_row([line]);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    if let Some(column) = table.column_mut(0) {
        column.set_padding((indent, 0));
    }
    plain(table)
}

fn plain(mut table: Table) -> String {
    table.load_style(comfy_table::presets::NOTHING);
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
pub(super) mod tests;
