//! The local socket: HTTP/1.1 with JSON, `GET /1/status`, `POST /1/approve`, `POST /1/reset`.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, HistoryEntry, Retention, RollbackOrder, TrashOrder};
use crate::error::{Class, Error, Result};

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
        .route("/1/trash", post(trash))
        .route("/1/history", get(history))
        .route("/1/rollback", post(rollback))
        .with_state(agent);
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

async fn rollback(
    State(agent): State<Arc<Agent>>,
    Query(of): Query<Reset>,
    Json(order): Json<RollbackOrder>,
) -> Response {
    answer_with(move || agent.rollback(&of.tree, order)).await
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
