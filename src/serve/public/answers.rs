//! What is answered, by path.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::view::{View, Viewer};
use super::{WRITERS, agent_check, metrics, page};
use crate::disk::{boot_ms, wall_ms};
use crate::error::lock;
use crate::model;

/// The main loop is dead when it did not go round for so long, in ms.
const DEAD: u64 = 30_000;
/// A picture of the agent's state that is older, in ms, says nothing of now.
const STALE: u64 = 15_000;
/// HAProxy is told to take an earlier `drain` back for so long, in ms; always, it would overrule its own operator.
const READY: u64 = 60_000;

/// What the answers are made from.
pub(super) struct Answers {
    viewer: Viewer,
    heartbeat: Arc<AtomicU64>,
    /// When the agent started, as the host's clock had it then, in s since the unix epoch. Monitoring takes another value
    /// for a restart, so it is not calculated from an age again, which is that of the last picture.
    started: i64,
    /// When the node was last seen drained, or began, boot time in ms.
    drained_at: Mutex<u64>,
    /// Large documents are written by threads of their own; more of them at once only wait.
    writers: Semaphore,
}

impl Answers {
    pub(super) fn new(viewer: Viewer, heartbeat: Arc<AtomicU64>) -> Self {
        let now = boot_ms();
        let last = viewer.last();
        let up = last.status.started_ms_ago.saturating_add(now.saturating_sub(last.at));
        let started = wall_ms().saturating_sub(i64::try_from(up).unwrap_or(0)) / 1000;
        Self { viewer, heartbeat, started, drained_at: Mutex::new(now), writers: Semaphore::new(WRITERS) }
    }

    /// The line for an agent check.
    pub(super) async fn agent_line(&self) -> String {
        let view = self.viewer.look().await;
        let mut faults = view.faults();
        let unknown = stale(&view);
        faults.extend(unknown.as_deref());
        let drained = &view.status.drained;
        if drained.is_some() {
            // it has a word of its own
            faults.retain(|fault| !fault.starts_with("drained by "));
        }
        let now = boot_ms();
        let mut last = lock(&self.drained_at);
        if drained.is_some() {
            *last = now;
        }
        agent_check::line(&faults, drained.is_some(), now.saturating_sub(*last) < READY)
    }

    /// Writes a document in another thread, so that nobody waits behind it.
    async fn write(&self, kind: &'static str, write: impl FnOnce() -> String + Send + 'static) -> Response {
        let Ok(_place) = self.writers.acquire().await else {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(text) => ([(CONTENT_TYPE, HeaderValue::from_static(kind))], text).into_response(),
            Err(_) => said(StatusCode::INTERNAL_SERVER_ERROR, "an internal error"),
        }
    }
}

/// All paths; GET and HEAD only.
pub(super) fn router(answers: Arc<Answers>) -> Router {
    Router::new()
        .route("/", get(people))
        .route("/ha/health", get(health))
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(numbers))
        .route("/status", get(status))
        .fallback(elsewhere)
        .method_not_allowed_fallback(not_so)
        .layer(middleware::map_response(headers))
        .with_state(answers)
}

/// No path of ours: also `OPTIONS *` and `CONNECT`, which have none at all.
async fn elsewhere(method: Method) -> Response {
    if !matches!(method, Method::GET | Method::HEAD) {
        return ([(ALLOW, HeaderValue::from_static("GET,HEAD"))], not_so().await).into_response();
    }
    said(StatusCode::NOT_FOUND, "not here; see / /ha/health /livez /readyz /metrics /status")
}

async fn not_so() -> Response {
    said(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD")
}

/// To a request with a body.
pub(super) async fn no_body() -> Response {
    headers(said(StatusCode::PAYLOAD_TOO_LARGE, "a request has no body here")).await
}

/// Nothing here is to be kept, guessed or framed by anybody.
async fn headers(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A status and a line.
fn said(status: StatusCode, line: &str) -> Response {
    let kind = [(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))];
    (status, kind, format!("{line}\n")).into_response()
}

/// 200 and `ok`, or 503 and the reasons in one line.
fn judged<S: AsRef<str>>(faults: &[S]) -> Response {
    if faults.is_empty() {
        return said(StatusCode::OK, "ok");
    }
    let faults: Vec<&str> = faults.iter().map(AsRef::as_ref).collect();
    said(StatusCode::SERVICE_UNAVAILABLE, &faults.join("; "))
}

/// Why a picture says nothing of now.
fn stale(view: &View) -> Option<String> {
    let age = boot_ms().saturating_sub(view.at);
    (age > STALE).then(|| format!("the agent hangs: its state is not known since {} s", age / 1000))
}

#[derive(Deserialize)]
struct Which {
    tree: Option<String>,
}

async fn health(
    State(answers): State<Arc<Answers>>,
    which: Result<Query<Which>, QueryRejection>,
) -> Response {
    let Ok(Query(which)) = which else {
        return said(StatusCode::BAD_REQUEST, "ask for one tree: /ha/health?tree=NAME");
    };
    let view = answers.viewer.look().await;
    if let Some(unknown) = stale(&view) {
        return judged(&[unknown]);
    }
    let Some(name) = which.tree else { return judged(&view.faults()) };
    match view.status.trees.iter().find(|tree| tree.name == name) {
        Some(tree) => judged(tree.nodes.first().map_or(&[][..], |own| &own.faults)),
        None => said(
            StatusCode::NOT_FOUND,
            &format!("there is no tree `{}` here", model::escape(name.as_bytes())),
        ),
    }
}

async fn alive(State(answers): State<Arc<Answers>>) -> Response {
    pulse(boot_ms().saturating_sub(answers.heartbeat.load(Ordering::Relaxed)))
}

/// `age`: ms since the main loop last went round.
fn pulse(age: u64) -> Response {
    let dead = (age > DEAD).then(|| format!("the main loop hangs since {} s", age / 1000));
    judged(dead.as_slice())
}

async fn ready(State(answers): State<Arc<Answers>>) -> Response {
    let view = answers.viewer.look().await;
    let starting = view
        .status
        .trees
        .iter()
        .filter(|tree| tree.nodes.first().is_none_or(|own| own.state == model::State::Starting));
    let mut not: Vec<String> = starting.map(|tree| format!("{}: starting", tree.name)).collect();
    let nothing = |tree: &&model::TreeStatus| tree.nodes.first().is_some_and(|own| own.empty == Some(true));
    let empty = view.status.trees.iter().filter(nothing);
    not.extend(empty.map(|tree| format!("{}: nothing of it was ever completely applied here", tree.name)));
    not.extend(stale(&view));
    judged(&not)
}

async fn status(State(answers): State<Arc<Answers>>) -> Response {
    let view = answers.viewer.look().await;
    let write = move || serde_json::to_string(&view.status).unwrap_or_default();
    answers.write("application/json", write).await
}

async fn numbers(State(answers): State<Arc<Answers>>) -> Response {
    let view = answers.viewer.look().await;
    let (started, known) = (answers.started, stale(&view).is_none());
    answers.write(metrics::CONTENT_TYPE, move || metrics::text(&view.status, started, known)).await
}

async fn people(State(answers): State<Arc<Answers>>) -> Response {
    let view = answers.viewer.look().await;
    let nonce = page::nonce();
    let policy = page::policy(&nonce);
    let (its, unknown) = (answers.clone(), stale(&view));
    let write = move || {
        let courses = its.viewer.courses();
        let course = |tree: &str, node: &str| courses.of(tree, node);
        page::html(&view.status, &course, unknown.as_deref(), &nonce)
    };
    let mut response = answers.write("text/html; charset=utf-8", write).await;
    let mut more = HeaderMap::new();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        more.insert(HeaderName::from_static("content-security-policy"), policy);
    }
    more.insert(HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer"));
    response.headers_mut().extend(more);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_loop_that_does_not_go_round_is_dead_after_half_a_minute() {
        for (age, status) in [(0, 200), (30_000, 200), (30_001, 503)] {
            assert_eq!(pulse(age).status(), status, "{age} ms");
        }
    }

    #[test]
    fn an_old_picture_says_nothing_of_now() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/status/schema-1.json");
        let status: model::Status = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let now = boot_ms();
        assert_eq!(stale(&View { status: status.clone(), at: now }), None);
        let old = View { status, at: now.saturating_sub(STALE + 1_500) };
        assert!(stale(&old).unwrap().contains("hangs"));
    }
}
