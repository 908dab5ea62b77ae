//! The local socket: HTTP/1.1 with JSON, `GET /1/status`, and orders as `POST /1/approve`, `/1/reset`, `/1/pause`,
//! `/1/resume`, `/1/drain`, `/1/undrain`, `/1/hold`, `/1/wait`, `/1/refresh`, `/1/forget`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{ConnectInfo, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::peer::{Peer, said};
use crate::agent::{Agent, HistoryEntry, HoldOrder, Ordered, Retention, RollbackOrder, TrashOrder, Wait};
use crate::error::{Class, Error, Result};
use crate::model::NodeId;

/// What went wrong, as it is sent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    /// The error's class, in words of our own.
    pub(super) class: String,
    /// The sentence for the operator.
    pub(super) message: String,
}

/// What an order did, as it is sent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) message: String,
}

#[derive(Deserialize)]
struct Approve {
    tree: String,
    plan: String,
}

#[derive(Deserialize)]
struct Reset {
    tree: String,
}

/// Answers on `socket` until `stop`.
pub async fn local(socket: UnixListener, agent: Arc<Agent>, stop: CancellationToken) {
    let app = Router::new()
        .route("/1/status", get(|State(agent): State<Arc<Agent>>| async move { Json(agent.status()) }))
        .route("/1/approve", post(approve))
        .route("/1/reset", post(reset))
        .route("/1/pause", post(pause))
        .route("/1/resume", post(resume))
        .route("/1/drain", post(drain))
        .route("/1/undrain", post(undrain))
        .route("/1/hold", post(hold))
        .route("/1/wait", post(wait))
        .route("/1/refresh", post(refresh))
        .route("/1/forget", post(forget))
        .route("/1/trash", post(trash))
        .route("/1/history", get(history))
        .route("/1/rollback", post(rollback))
        .with_state(agent)
        .into_make_service_with_connect_info::<Peer>();
    let served = axum::serve(socket, app).with_graceful_shutdown(async move { stop.cancelled().await }).await;
    if let Err(e) = served {
        tracing::error!("the local socket: {e}");
    }
}

async fn approve(State(agent): State<Arc<Agent>>, Query(order): Query<Approve>) -> Response {
    match order.plan.parse() {
        Ok(id) => answer(move || agent.approve(&order.tree, id)).await,
        Err(e) => failed(&Error::new(Class::Config, e.to_string())),
    }
}

async fn reset(State(agent): State<Arc<Agent>>, Query(order): Query<Reset>) -> Response {
    answer(move || agent.reset(&order.tree)).await
}

/// A pause, a resume, a drain.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Marked {
    /// Which tree; empty for the node.
    pub tree: String,
    /// Why, in the operator's words.
    pub reason: Option<String>,
}

/// A refresh by hand.
#[derive(Debug, Serialize, Deserialize)]
pub struct RefreshAsked {
    /// Which tree.
    pub tree: String,
    /// Also what the server has been told of.
    pub force: bool,
}

/// A mirror that is gone for good.
#[derive(Debug, Serialize, Deserialize)]
pub struct ForgetAsked {
    /// Which tree.
    pub tree: String,
    /// Which node.
    pub node: NodeId,
}

/// What a deploy job asks for.
#[derive(Debug, Serialize, Deserialize)]
pub struct HoldAsked {
    /// The tree.
    pub tree: String,
    /// Chosen by the job, to be known again by.
    pub id: String,
    /// What it runs, at the beginning.
    pub command: Option<String>,
    /// How it ended, at the end.
    pub end: Option<HoldEnd>,
}

/// How a hold ends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldEnd {
    /// The command succeeded.
    Publish,
    /// It could not be run.
    NotBegun,
    /// It failed, and how.
    Fail(String),
    /// Let it go, whoever holds it.
    Release,
}

type From = ConnectInfo<Peer>;

async fn pause(State(agent): State<Arc<Agent>>, from: From, Json(order): Json<Marked>) -> Response {
    answer(move || agent.pause(&order.tree, from.0.ordered(order.reason))).await
}

async fn resume(State(agent): State<Arc<Agent>>, from: From, Json(order): Json<Marked>) -> Response {
    answer(move || agent.resume(&order.tree, &from.0.ordered(order.reason))).await
}

async fn drain(State(agent): State<Arc<Agent>>, from: From, Json(order): Json<Marked>) -> Response {
    let drained = agent.clone();
    let answer = answer(move || drained.drain(from.0.ordered(order.reason))).await;
    // whoever goes on now may rely on it
    agent.until_shown().await;
    answer
}

async fn undrain(State(agent): State<Arc<Agent>>, from: From, Json(order): Json<Marked>) -> Response {
    let drained = agent.clone();
    let answer = answer(move || drained.undrain(&from.0.ordered(order.reason))).await;
    agent.until_shown().await;
    answer
}

async fn forget(State(agent): State<Arc<Agent>>, from: From, Json(asked): Json<ForgetAsked>) -> Response {
    answer(move || agent.forget(&asked.tree, &asked.node, &from.0.ordered(None))).await
}

async fn hold(State(agent): State<Arc<Agent>>, from: From, Json(asked): Json<HoldAsked>) -> Response {
    let HoldAsked { tree, id, command, end } = asked;
    answer(move || {
        let order = match end {
            None => {
                let command = said(&command.unwrap_or_default());
                HoldOrder::Begin { id, who: from.0.who(), pid: from.0.pid()?, command }
            }
            Some(HoldEnd::Publish) => HoldOrder::Publish { id },
            Some(HoldEnd::NotBegun) => HoldOrder::NotBegun { id },
            Some(HoldEnd::Fail(why)) => HoldOrder::Fail { id, why: said(&why) },
            Some(HoldEnd::Release) => HoldOrder::Release { who: from.0.who() },
        };
        agent.hold(&tree, order)
    })
    .await
}

async fn refresh(State(agent): State<Arc<Agent>>, from: From, Json(asked): Json<RefreshAsked>) -> Response {
    let by = tokio::task::spawn_blocking(move || from.0.ordered(None)).await.unwrap_or_else(|_| unknown());
    match agent.refresh(&asked.tree, asked.force, &by).await {
        Ok(message) => Json(Done { message }).into_response(),
        Err(e) => failed(&e),
    }
}

fn unknown() -> Ordered {
    Ordered { who: "unknown".into(), reason: None, at_ms: crate::disk::wall_ms() }
}

async fn wait(State(agent): State<Arc<Agent>>, Json(wait): Json<Wait>) -> Response {
    match agent.wait(wait).await {
        Ok(waited) => Json(waited).into_response(),
        Err(e) => failed(&e),
    }
}

async fn rollback(
    State(agent): State<Arc<Agent>>,
    Query(of): Query<Reset>,
    Json(order): Json<RollbackOrder>,
) -> Response {
    let gone = Arc::new(AtomicBool::new(false));
    let asker = Asker(gone.clone());
    let answer = answer_with(move || agent.rollback(&of.tree, order, &gone)).await;
    drop(asker);
    answer
}

/// Goes with the connection that an order came by.
struct Asker(Arc<AtomicBool>);

impl Drop for Asker {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `GET /1/history`.
#[derive(Debug, Serialize, Deserialize)]
pub struct HistoryAnswer {
    /// Newest first.
    pub entries: Vec<HistoryEntry>,
    /// What a source keeps for rollbacks.
    pub retention: Option<Retention>,
}

#[derive(Deserialize)]
struct HistoryOf {
    tree: String,
    limit: usize,
}

async fn history(State(agent): State<Arc<Agent>>, Query(of): Query<HistoryOf>) -> Response {
    let read = move || {
        let (entries, retention) = (agent.history(&of.tree, of.limit)?, agent.retention(&of.tree)?);
        Ok(HistoryAnswer { entries, retention })
    };
    answer_with(read).await
}

async fn trash(
    State(agent): State<Arc<Agent>>,
    Query(of): Query<Reset>,
    Json(order): Json<TrashOrder>,
) -> Response {
    answer_with(move || agent.trash(&of.tree, order)).await
}

/// Orders wait for the disk, which must not hold up other answers.
async fn answer(order: impl FnOnce() -> Result<String> + Send + 'static) -> Response {
    answer_with(move || order().map(|message| Done { message })).await
}

async fn answer_with<T: Serialize + Send + 'static>(
    order: impl FnOnce() -> Result<T> + Send + 'static,
) -> Response {
    match tokio::task::spawn_blocking(order).await {
        Ok(Ok(done)) => Json(done).into_response(),
        Ok(Err(e)) => failed(&e),
        Err(_) => failed(&Error::integrity("the order was not carried out: an internal error; see the log")),
    }
}

fn failed(e: &Error) -> Response {
    let code = match e.class {
        Class::Config => StatusCode::BAD_REQUEST,
        Class::Refused => StatusCode::CONFLICT,
        Class::Transient | Class::Busy => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (code, Json(Failure { class: format!("{:?}", e.class), message: e.to_string() })).into_response()
}
