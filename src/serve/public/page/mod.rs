//! The page for people: what is wrong first, then every tree with its nodes. Plain HTML that needs no JavaScript and no
//! other host; a little script replaces what has changed every two seconds.
//!
//! Much of it was said by peers: every text goes through the template's escaping, and a policy forbids whatever it
//! does not bring itself.

mod chart;
mod text;
mod trouble;

use std::hash::{BuildHasher as _, Hasher as _};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::model::{GenId, NodeStatus, RefreshState, State, Status, TreeStatus};
use text::{ago, count, short, size};
use trouble::{Grade, troubles};

use super::metrics::word;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("refresh.js");
/// Rows of a tree that are shown; `syncagent status` has them all.
const ROWS: usize = 200;
/// Problems that are shown.
const PROBLEMS: usize = 50;

/// A word for one answer, which nobody can foresee.
pub(super) fn nonce() -> String {
    // each one is keyed by the system's randomness
    let random = || std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

/// What the page may do.
pub(super) fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    )
}

/// How the lag of a node in a tree went, in ms; see [`super::view::Courses`].
type Course<'a> = &'a dyn Fn(&str, &str) -> Vec<Option<u32>>;

/// The whole page. `unknown`: why the status says nothing of now.
pub(super) fn html(status: &Status, course: Course<'_>, unknown: Option<&str>, nonce: &str) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title(status, unknown)) }
                noscript { meta http-equiv="refresh" content="5"; }
                style nonce=(nonce) { (PreEscaped(STYLE)) }
            }
            body {
                main { (body(status, course, unknown)) }
                p #silent role="status" hidden { "No answer from the agent; what is shown is old." }
                script nonce=(nonce) { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

fn title(status: &Status, unknown: Option<&str>) -> String {
    let worst = troubles(status).into_iter().map(|t| t.grade).max();
    match worst.max(unknown.map(|_| Grade::Bad)) {
        Some(Grade::Bad) => format!("! {} – syncagent", status.node),
        _ => format!("{} – syncagent", status.node),
    }
}

fn body(status: &Status, course: Course<'_>, unknown: Option<&str>) -> Markup {
    let out = status.trees.iter().filter_map(|t| t.nodes.first()).any(|own| !own.faults.is_empty());
    let (class, says) = match (&status.drained, out || unknown.is_some()) {
        (Some(_), _) => ("warn", "drained: takes no traffic"),
        (None, true) => ("bad", "takes no traffic"),
        (None, false) => ("good", "takes traffic"),
    };
    html! {
        header {
            h1 { (status.node) }
            (badge(class, says))
            p .facts {
                "cluster " b { (status.cluster) }
                @if let Some(zone) = &status.zone { " · zone " b { (zone) } }
                " · up " (ago(status.started_ms_ago)) " · syncagent " (status.version)
                @if let Some(days) = status.certificate_days_left {
                    " · certificate " @if days < 0 { "has expired" } @else { (days) " days left" }
                }
            }
        }
        (problems(status, unknown))
        @for tree in &status.trees { (of_tree(tree, course)) }
        footer {
            p { "Also here: " a href="/status" { "status" } ", " a href="/metrics" { "metrics" } ", "
                a href="/ha/health" { "health" } }
        }
    }
}

fn problems(status: &Status, unknown: Option<&str>) -> Markup {
    let mut all = troubles(status);
    all.sort_by_key(|trouble| std::cmp::Reverse(trouble.grade));
    let more = all.len().saturating_sub(PROBLEMS);
    html! {
        section .problems aria-labelledby="wrong" {
            h2 #wrong { @if all.is_empty() && unknown.is_none() { "Nothing is wrong" } @else { "What is wrong" } }
            ul {
                @if let Some(unknown) = unknown { li .bad { strong { "failure" } " " (unknown) } }
                @for t in all.iter().take(PROBLEMS) {
                    li class=(t.grade.class()) {
                        strong { (t.grade.word()) }
                        span .where { (t.place) }
                        span .what {
                            (t.what)
                            @if let Some(ms) = t.for_ms { span .since { " for " (ago(ms)) } }
                        }
                    }
                }
                @if more > 0 { li .note { "and " (more) " more; see `syncagent status`" } }
            }
        }
    }
}

fn of_tree(tree: &TreeStatus, course: Course<'_>) -> Markup {
    let more = tree.nodes.len().saturating_sub(ROWS);
    html! {
        section {
            h2 { (tree.name) }
            p .facts {
                code { (tree.path) }
                @if let Some(head) = tree.head { " · generation " b { (head) } }
                @if let Some(ms) = tree.head_age_ms { ", published " (ago(ms)) " ago" }
                @if let Some(files) = tree.files { " · " (count(files, "file")) }
                @if let Some(hour) = tree.convergence.map(|c| c.hour).filter(|hour| hour.count > 0) {
                    " · in place after " (short(hour.p50_ms)) " (half), " (short(hour.p99_ms)) " (99 %)"
                }
            }
            table {
                caption { "Nodes of " (tree.name) }
                thead { tr {
                    @for name in ["Node", "State", "Generation", "Behind", "Lag", "Last hour", "Contact", "Server", "Notes"] {
                        th scope="col" { (name) }
                    }
                } }
                tbody {
                    @for node in tree.nodes.iter().take(ROWS) { (row(tree, node, course)) }
                }
            }
            @if more > 0 { p .facts { "and " (more) " more nodes; see `syncagent status`" } }
            (recent(tree))
        }
    }
}

fn row(tree: &TreeStatus, node: &NodeStatus, course: Course<'_>) -> Markup {
    let points = course(&tree.name, node.node.as_str());
    html! {
        tr {
            th scope="row" {
                (node.node)
                small { (word(&node.role)) @if let Some(zone) = &node.zone { ", " (zone) } }
            }
            td data-label="State" { (badge(state_class(node), &word(&node.state))) }
            td data-label="Generation" { (generation(node.generation)) }
            td .number data-label="Behind" { @match node.behind { Some(n) => { (n) } None => { "?" } } }
            td .number data-label="Lag" { @match node.lag_ms { Some(ms) => { (short(ms)) } None => { "?" } } }
            td data-label="Last hour" { (chart::lag(&points)) }
            td .number data-label="Contact" {
                @match node.contact_age_ms { Some(ms) => { (short(ms)) } None => { "–" } }
            }
            td data-label="Server" { (refresh(node)) }
            td .notes data-label="Notes" { (notes(node)) }
        }
    }
}

fn generation(id: Option<GenId>) -> Markup {
    html! { @match id { Some(id) => { (id) } None => { "none" } } }
}

fn refresh(node: &NodeStatus) -> Markup {
    let Some(refresh) = &node.refresh else { return html! { "–" } };
    let class = match refresh.state {
        RefreshState::Idle => "good",
        RefreshState::Failing | RefreshState::VerifyFailed => "bad",
        _ => "busy",
    };
    let says = match refresh.state {
        RefreshState::Idle => "told".to_owned(),
        state => word(&state),
    };
    html! {
        (badge(class, &says))
        @if refresh.attempts > 1 { " " small { (refresh.attempts) " attempts" } }
    }
}

/// What is special about a node, in short; the reasons are with the problems.
fn notes(node: &NodeStatus) -> Markup {
    let mut notes: Vec<String> = Vec::new();
    if let Some(mark) = &node.drained {
        notes.push(format!("drained for {}", ago(mark.for_ms)));
    } else if !node.faults.is_empty() {
        notes.push("takes no traffic".into());
    }
    if let Some(mark) = &node.paused {
        notes.push(format!("paused for {}", ago(mark.for_ms)));
    }
    if node.drift > 0 {
        notes.push(format!("{} edited", count(node.drift, "path")));
    }
    if let Some(plan) = &node.plan {
        notes.push(format!("plan {} waits", plan.id));
    }
    if let Some(applied) = node.applied.filter(|applied| Some(*applied) != node.generation) {
        notes.push(format!("{applied} is in place"));
    }
    if node.consistent {
        notes.push("consistent".into());
    }
    html! { @for (i, note) in notes.iter().enumerate() { @if i > 0 { " · " } (note) } }
}

fn recent(tree: &TreeStatus) -> Markup {
    if tree.recent.is_empty() {
        return html! {};
    }
    html! {
        details id={ "recent-" (tree.name) } {
            summary { "Recent generations" }
            table .recent {
                caption { "Recent generations of " (tree.name) }
                thead { tr {
                    @for name in ["Generation", "Published", "Files", "Changed", "Deleted", "Brought"] {
                        th scope="col" { (name) }
                    }
                } }
                tbody {
                    @for r in &tree.recent {
                        tr {
                            th scope="row" { (r.generation) }
                            td data-label="Published" { (ago(r.age_ms)) " ago" }
                            td .number data-label="Files" { (r.files) }
                            td .number data-label="Changed" { (r.changed) }
                            td .number data-label="Deleted" { (r.deleted) }
                            td .number data-label="Brought" { (size(r.bytes)) }
                        }
                    }
                }
            }
        }
    }
}

fn state_class(node: &NodeStatus) -> &'static str {
    match node.state {
        State::Current => "good",
        State::Failed | State::Superseded => "bad",
        State::Refused
        | State::Drift
        | State::Incomplete
        | State::Disconnected
        | State::Held
        | State::RolledBack
        | State::Paused => "warn",
        State::Starting
        | State::Settling
        | State::Fetching
        | State::Committing
        | State::Refreshing
        | State::Unknown => "busy",
    }
}

/// A word with a colour and, for those who see none, a sign.
fn badge(class: &str, says: &str) -> Markup {
    let sign = match class {
        "good" => "✓",
        "bad" => "✕",
        "warn" => "!",
        _ => "…",
    };
    html! { span class={ "badge " (class) } { span aria-hidden="true" { (sign) } " " (says) } }
}

#[cfg(test)]
mod tests;
