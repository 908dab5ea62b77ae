//! A request to the server. One connection for each; redirects are answers like others; no proxy is asked.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue, Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::blocking::Gate;
use super::template::{Facts, fill};
use crate::config::{Http, Value};
use crate::model::{escape, escaped};
use crate::peer::tls;

/// Of an answer's body so much is read.
const BODY: usize = 1 << 20;
/// Characters of it that an error quotes.
const QUOTED: usize = 200;
/// A secret is no longer.
const SECRET: u64 = 64 * 1024;

/// Asks once. The caller limits the time.
///
/// # Errors
/// What went wrong, in one line without secrets.
pub(super) async fn ask(http: &Http, facts: &Facts<'_>, gate: &Gate) -> Result<(), String> {
    let (headers, secrets) = headers(http, gate).await?;
    let target = fill(&http.url.target, facts);
    let body = http.body.as_ref().map(|body| fill(body, facts)).unwrap_or_default();
    let url = format!("{} {}", http.method, http.url).replace(&http.url.target, &target);
    let what = hide(&url, &secrets);
    let failed = |why: String| format!("{what}: {}", hide(&why, &secrets));
    let request = request(http, &target, headers, body).map_err(failed)?;

    let (host, port) = (http.url.host.as_str(), http.url.port);
    let stream = TcpStream::connect((host, port)).await.map_err(|e| failed(format!("no connection: {e}")))?;
    if !http.url.https {
        return answer(http, facts, send(stream, request).await, &what, &secrets).await;
    }
    let (ca, identity) = (http.ca.clone(), http.identity.clone());
    let identity_files = identity.iter().flat_map(|(cert, key)| [cert, key]);
    let files = ca.iter().chain(identity_files).cloned().collect();
    let config = gate.call(files, move || tls_config(ca.as_deref(), identity.as_ref()));
    let config = config.await.map_err(failed)?;
    let name =
        ServerName::try_from(host.to_owned()).map_err(|_| failed(format!("`{host}` is no host name")))?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = shaken.map_err(|e| failed(format!("no TLS: {}", root_cause(&e))))?;
    answer(http, facts, send(stream, request).await, &what, &secrets).await
}

fn request(
    http: &Http,
    target: &str,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: String,
) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::builder().method(http.method.as_str()).uri(target);
    let has = |name: &str| headers.iter().any(|(n, _)| n == name);
    let kind = if body.trim_start().starts_with(['{', '[']) {
        "application/json"
    } else {
        "text/plain; charset=utf-8"
    };
    let defaults = [
        ("host", http.url.authority()),
        ("user-agent", concat!("syncagent/", env!("CARGO_PKG_VERSION")).to_owned()),
        ("content-type", kind.to_owned()),
    ];
    for (name, value) in defaults {
        if !has(name) && (name != "content-type" || !body.is_empty()) {
            request = request.header(name, value);
        }
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.header("connection", "close").body(Full::new(Bytes::from(body)));
    request.map_err(|e| format!("cannot be asked for: {e}"))
}

type Answer = (Response<Incoming>, AbortOnDropHandle<()>);

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |e: hyper::Error| format!("no answer: {}", root_cause(&e));
    let (mut send, drive) = http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let drive = AbortOnDropHandle::new(tokio::spawn(async move {
        // how it ended shows in the answer
        let _ = drive.await;
    }));
    let response = send.send_request(request).await.map_err(broken)?;
    Ok((response, drive))
}

async fn answer(
    http: &Http,
    facts: &Facts<'_>,
    answer: Result<Answer, String>,
    what: &str,
    secrets: &[String],
) -> Result<(), String> {
    let (response, _drive) = answer.map_err(|why| format!("{what}: {}", hide(&why, secrets)))?;
    let status = response.status().as_u16();
    let good = http.expect.iter().any(|expect| expect.matches(status));
    if good && http.contains.is_none() {
        return Ok(());
    }
    let body = read(response.into_body()).await;
    let text = String::from_utf8_lossy(&body);
    let quoted = quote(&text, secrets);
    if !good {
        let expected: Vec<String> = http.expect.iter().map(ToString::to_string).collect();
        return Err(format!("{what} answered {status}, not {}{quoted}", expected.join(" or ")));
    }
    let wanted = http.contains.as_ref().map(|wanted| fill(wanted, facts)).unwrap_or_default();
    if text.contains(&wanted) {
        return Ok(());
    }
    let wanted = escape(hide(&wanted, secrets).as_bytes());
    Err(format!(
        "{what} answered {status} without `{}`{quoted}",
        wanted.chars().take(QUOTED).collect::<String>()
    ))
}

/// The beginning of a body; what breaks off is as long as it is.
async fn read(mut body: Incoming) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < BODY
        && let Some(Ok(frame)) = body.frame().await
    {
        if let Ok(data) = frame.into_data() {
            read.extend_from_slice(&data[..data.len().min(BODY - read.len())]);
        }
    }
    read
}

fn quote(body: &str, secrets: &[String]) -> String {
    let hidden = hide(body, secrets);
    let one_line = hidden.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut quoted = String::new();
    for c in one_line.chars().take(QUOTED) {
        quoted.push_str(&escape(c.encode_utf8(&mut [0; 4]).as_bytes()));
    }
    if quoted.is_empty() {
        return quoted;
    }
    let more = if one_line.chars().nth(QUOTED).is_some() { "…" } else { "" };
    format!(": {quoted}{more}")
}

/// `text` without the secrets, which a server may have sent back.
fn hide(text: &str, secrets: &[String]) -> String {
    secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "(hidden)"))
}

/// The headers with their values, and what of them must not be seen: longest first.
async fn headers(http: &Http, gate: &Gate) -> Result<(Vec<(HeaderName, HeaderValue)>, Vec<String>), String> {
    let (mut headers, mut secrets) = (Vec::new(), Vec::new());
    for (name, value) in &http.headers {
        let bad = |why: &str| format!("the header {name} {why}");
        let text = match value {
            Value::Literal(text) => text.clone(),
            Value::File(path) => {
                let path = path.clone();
                gate.call(vec![path.clone()], move || secret(&path)).await.map_err(|e| bad(&e))?
            }
            Value::Credential(credential) => {
                let dir = std::env::var_os("CREDENTIALS_DIRECTORY");
                let dir =
                    dir.ok_or_else(|| bad("wants a credential, and systemd gave none (LoadCredential=)"))?;
                let path = Path::new(&dir).join(credential);
                gate.call(vec![path.clone()], move || secret(&path)).await.map_err(|e| bad(&e))?
            }
        };
        let read = HeaderValue::from_str(&text);
        let mut read =
            read.map_err(|_| bad("cannot have what its file holds as a value: one line of text"))?;
        if !matches!(value, Value::Literal(_)) || crate::config::is_secret(name) {
            read.set_sensitive(true);
            // the part after "Bearer" alone is a secret, too
            secrets.extend(text.split_whitespace().filter(|part| part.len() > 5).map(str::to_owned));
            secrets.extend((!text.trim().is_empty()).then_some(text));
        }
        headers.push((HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("has no sound name"))?, read));
    }
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    Ok((headers, secrets))
}

/// What a file holds, without the line's end.
fn secret(path: &Path) -> Result<String, String> {
    let failed = |why: String| format!("cannot be read from {}: {why}", escaped(path));
    let mut text = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| std::io::Read::read_to_string(&mut std::io::Read::take(file, SECRET), &mut text));
    // the error of text that is none quotes nothing
    read.map_err(|e| failed(e.to_string()))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() { Err(failed("it is empty".into())) } else { Ok(text.to_owned()) }
}

fn tls_config(
    ca: Option<&Path>,
    identity: Option<&(std::path::PathBuf, std::path::PathBuf)>,
) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = ca {
        for cert in tls::certificates(ca, "CA file").map_err(|e| e.to_string())? {
            roots.add(cert).map_err(|e| format!("the CA file {} cannot be used: {e}", escaped(ca)))?;
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let mut what =
                String::from("this host has no CA certificates (ca-certificates), and `ca` names none");
            if let Some(e) = found.errors.first() {
                let _ = write!(what, ": {e}");
            }
            return Err(what);
        }
    }
    let unusable = |e: rustls::Error| format!("TLS cannot be set up: {e}");
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots);
    let Some((cert, key)) = identity else { return Ok(config.with_no_client_auth()) };
    let chain: Vec<CertificateDer<'static>> =
        tls::certificates(cert, "certificate").map_err(|e| e.to_string())?;
    let read = PrivateKeyDer::from_pem_file(key);
    let read = read.map_err(|_| format!("there is no key that can be read in {}", escaped(key)))?;
    config.with_client_auth_cert(chain, read).map_err(unusable)
}

/// hyper and rustls put the reason into the last of their sources.
fn root_cause(e: &(dyn std::error::Error + 'static)) -> String {
    let mut last = e;
    while let Some(source) = last.source() {
        last = source;
    }
    let text = last.to_string();
    let own = e.to_string();
    if own.contains(&text) { own } else { format!("{own}: {text}") }
}
