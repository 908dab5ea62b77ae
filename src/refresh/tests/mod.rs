//! Real servers on loopback, real programs, real files.

mod blocking;
mod http;
mod leftover;
mod programs;
mod secrets;
mod states;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{Changed, Refresher, Setup};
use crate::config::{Config, Refresh};
use crate::model::{GenId, NodeId, RefreshState, TreePath};

fn id(number: u64) -> GenId {
    GenId { epoch: 1, number }
}

fn paths(list: &[&str]) -> Changed {
    Changed::Paths(list.iter().map(|path| TreePath::new(path.as_bytes()).unwrap()).collect())
}

/// What the configuration's text makes of `[[…refresh]]` tables.
#[track_caller]
fn rules(tables: &str) -> Vec<Refresh> {
    let tables = tables.replace("[[refresh]]", "[[tree.t.refresh]]");
    let text = format!(
        "[node]\nid = \"app1\"\n[tree.t]\npath = \"/srv/t\"\nrole = \"mirror\"\nsource = \"unix:/s\"\n{tables}"
    );
    let parsed = Config::parse(&text);
    parsed.config.unwrap_or_else(|| panic!("{:#?}", parsed.problems)).trees.remove(0).refresh
}

/// A state directory, and what has happened to the refresher on it.
struct Bench {
    dir: TempDir,
    news: Arc<AtomicUsize>,
    rolled_back: Arc<Mutex<Vec<GenId>>>,
}

impl Bench {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap(), news: Arc::default(), rolled_back: Arc::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    /// An executable script; its path.
    fn script(&self, name: &str, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.write(name, format!("#!/bin/sh\n{text}\n"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn start(&self, tables: &str) -> Arc<Refresher> {
        self.start_with(tables, "systemctl".into())
    }

    fn start_with(&self, tables: &str, systemctl: PathBuf) -> Arc<Refresher> {
        let state = self.path("state");
        std::fs::create_dir_all(&state).unwrap();
        let (news, rolled_back) = (self.news.clone(), self.rolled_back.clone());
        let setup = Setup {
            tree: "t".into(),
            node: NodeId::new("app1").unwrap(),
            path: "/srv/t".into(),
            rules: rules(tables),
            state,
            news: Arc::new(move || {
                news.fetch_add(1, Ordering::Relaxed);
            }),
            on_rollback: Some(Arc::new(move |generation| rolled_back.lock().unwrap().push(generation))),
        };
        Refresher::start_with(setup, systemctl).unwrap()
    }
}

/// Waits until `done`, for 20 s at most.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn completes(refresher: &Refresher, generation: GenId) {
    let done = || !refresher.is_open() && refresher.complete() == Some(generation);
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", refresher.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the last attempt failed; what it said.
async fn fails(refresher: &Refresher, state: RefreshState) -> String {
    until(&format!("{state:?}"), || {
        let status = refresher.status();
        status.state == state && status.error.is_some()
    })
    .await;
    refresher.status().error.unwrap().what
}

/// What a server does with a request.
enum Reply {
    Answer(u16, String),
    Hang,
}

fn answer(status: u16, body: &str) -> Reply {
    Reply::Answer(status, body.to_owned())
}

/// A server whose requests are kept as they came.
struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

type Handle = dyn Fn(usize, &str) -> Reply + Send + Sync;

impl Server {
    /// `handle` gets the number of the request, from 0, and its text.
    async fn new(handle: impl Fn(usize, &str) -> Reply + Send + Sync + 'static) -> Self {
        Self::over(None, handle).await
    }

    async fn over(
        tls: Option<tokio_rustls::TlsAcceptor>,
        handle: impl Fn(usize, &str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let (seen, handle): (_, Arc<Handle>) = (requests.clone(), Arc::new(handle));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, handle, tls) = (seen.clone(), handle.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &seen, &*handle).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &seen, &*handle).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, seen: &Mutex<Vec<String>>, handle: &Handle) {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    let whole = |text: &str| {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        (body.len() >= length.map_or(0, |n| n.parse().unwrap())).then_some(())
    };
    while whole(&text).is_none() {
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        if read == 0 {
            return;
        }
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(text.clone());
        seen.len() - 1
    };
    match handle(number, &text) {
        Reply::Hang => std::future::pending().await,
        Reply::Answer(status, body) => {
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    }
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
