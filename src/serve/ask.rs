//! Asking an agent on this host.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;

use super::local::Failure;
use crate::error::{Class, Context as _, Error, Result};
use crate::model::escaped;

/// Above what any order may take.
const TIMEOUT: Duration = Duration::from_secs(150);
/// Whether somebody gave up is looked at so often.
const TICK: Duration = Duration::from_millis(50);
/// A status with thousands of nodes has some megabytes.
const MAX_ANSWER: usize = 256 << 20;

/// The path of a request with its query. What an operator typed arrives as it is: it can end no value and begin no other.
#[must_use]
pub fn query(path: &str, values: &[(&str, &str)]) -> String {
    let mut all = path.to_owned();
    for (i, (key, value)) in values.iter().enumerate() {
        all.push(if i == 0 { '?' } else { '&' });
        all.push_str(key);
        all.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                all.push(char::from(byte));
            } else {
                let _ = write!(all, "%{byte:02X}");
            }
        }
    }
    all
}

/// Whether somebody listens on `socket`, as far as this process may know. Never waits.
pub fn listens(socket: &Path) -> bool {
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(address) = SocketAddrUnix::new(socket) else { return false };
    let Ok(own) = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) else { return false };
    !matches!(connect(&own, &address), Err(Errno::NOENT | Errno::NOTDIR | Errno::CONNREFUSED))
}

/// Sends a request to the agent that listens on `socket`, and gives the body of its answer.
///
/// # Errors
/// No agent is there, it may not be asked, or its own answer is an error.
pub fn ask(socket: &Path, method: &Method, path: &str) -> Result<Bytes> {
    ask_with(socket, method, path, Bytes::new(), TIMEOUT)
}

/// [`ask`] with a JSON body.
///
/// # Errors
/// As of [`ask`].
pub fn tell(socket: &Path, path: &str, body: &impl serde::Serialize) -> Result<Bytes> {
    let body = serde_json::to_vec(body).map_err(|e| Error::integrity(e.to_string()))?;
    ask_with(socket, &Method::POST, path, body.into(), TIMEOUT)
}

/// As [`ask`], with a body, and for orders that may take longer.
///
/// # Errors
/// As [`ask`].
pub fn ask_with(socket: &Path, method: &Method, path: &str, body: Bytes, limit: Duration) -> Result<Bytes> {
    ask_until(socket, method, path, body, limit, &AtomicBool::new(false))
}

/// As [`ask_with`], until `cancel` is set.
///
/// # Errors
/// As [`ask`]; [`Class::Interrupted`].
pub fn ask_until(
    socket: &Path,
    method: &Method,
    path: &str,
    body: Bytes,
    limit: Duration,
    cancel: &AtomicBool,
) -> Result<Bytes> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context(|| "start".into())?;
    let late = || {
        let what = format!("the agent on {} does not answer", escaped(socket));
        Error::new(Class::Transient, what)
    };
    let cancelled = async {
        while !cancel.load(Ordering::Relaxed) {
            tokio::time::sleep(TICK).await;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            () = cancelled => Err(Error::new(Class::Interrupted, "interrupted")),
            answer = tokio::time::timeout(limit, send(socket, method, path, body)) => answer.map_err(|_| late())?,
        }
    })
}

async fn send(socket: &Path, method: &Method, path: &str, body: Bytes) -> Result<Bytes> {
    let shown = escaped(socket);
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(|e| {
        let hint = match e.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                "; is the agent running (systemctl status syncagent)? Another socket is given with --socket or --config"
            }
            std::io::ErrorKind::PermissionDenied => "; the rights on this file say who may administer the agent",
            _ => "",
        };
        Error::new(Class::Transient, format!("cannot ask the agent on {shown}: {e}{hint}"))
    })?;
    let broken = |e: &dyn std::fmt::Display| {
        Error::new(Class::Transient, format!("the agent on {shown} broke off: {e}"))
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method.clone())
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json");
    let request = request.body(Full::new(body)).map_err(|e| Error::integrity(e.to_string()))?;
    let answer = sender.send_request(request).await.map_err(|e| broken(&e))?;
    let status = answer.status();
    let body =
        Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| broken(&e))?.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    let failure: Failure = serde_json::from_slice(&body)
        .map_err(|_| Error::integrity(format!("the agent on {shown} answered {status}")))?;
    let class = match failure.class.as_str() {
        "Config" => Class::Config,
        "Refused" => Class::Refused,
        "Busy" => Class::Busy,
        "Transient" => Class::Transient,
        _ => Class::Permanent,
    };
    Err(Error::new(class, failure.message))
}

#[cfg(test)]
mod tests {
    use axum::extract::Query;

    use super::*;

    #[test]
    fn what_was_typed_arrives_as_it_is() {
        for typed in
            ["t", "", "a&limit=1", "a b", "a#b", "a?b", "50%", "%41", "a+b", "a=b", "ü/\u{1}\n", "~._-"]
        {
            let path = query("/1/x", &[("tree", typed), ("limit", "7")]);
            let uri: hyper::Uri = path.parse().unwrap();
            assert_eq!(uri.path(), "/1/x");
            let Query(all) = Query::<Vec<(String, String)>>::try_from_uri(&uri).unwrap();
            assert_eq!(all, [("tree".into(), typed.to_owned()), ("limit".into(), "7".into())], "{path}");
        }
        assert_eq!(query("/1/status", &[]), "/1/status");
    }
}
