//! The public port: health for load balancers, metrics, status, and a page for people.
//!
//! It has a thread and a runtime of its own, and answers from a picture of the agent's state that another thread
//! takes ([`view`]). So a hung disk, a stuck lock or a busy main loop make the picture old, never the answer late.
//! Nothing here writes to the log: who reads the log may hang, too.

mod agent_check;
mod answers;
mod conn;
mod metrics;
mod page;
mod view;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::error::{Context as _, Error, Result};
use conn::Table;

/// After a failed accept (no descriptors left) it waits; the queue of the kernel keeps who comes.
const BACK_OFF: Duration = Duration::from_millis(100);
/// HTTP connections at once.
const CONNECTIONS: usize = 256;
/// Agent checks at once.
const CHECKS: usize = 64;
/// Threads that write large documents: metrics, status, the page.
const WRITERS: usize = 2;

/// The addresses of the public port, bound.
pub struct Ports {
    public: Option<TcpListener>,
    agent_check: Option<TcpListener>,
}

impl Ports {
    /// Binds what is configured.
    ///
    /// # Errors
    /// An address cannot be used.
    pub fn bind(public: Option<SocketAddr>, agent_check: Option<SocketAddr>) -> Result<Self> {
        let bind = |address: Option<SocketAddr>, key: &str| {
            let cannot = |a| format!("listen on {a} (listen.{key})");
            let bound = address.map(|a| TcpListener::bind(a).context(|| cannot(a))).transpose()?;
            if let (Some(listener), Some(a)) = (&bound, address) {
                listener.set_nonblocking(true).context(|| cannot(a))?;
            }
            Ok::<_, Error>(bound)
        };
        Ok(Self { public: bind(public, "public")?, agent_check: bind(agent_check, "agent-check")? })
    }

    /// Answers for `agent` in threads of its own until `stop`.
    ///
    /// # Errors
    /// A thread or its runtime cannot be started.
    pub fn serve(self, agent: &Arc<Agent>, stop: &CancellationToken) -> Result<()> {
        if self.public.is_none() && self.agent_check.is_none() {
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(WRITERS)
            .build()
            .context(|| "start the runtime of the public port".into())?;
        let listen = |listener: Option<TcpListener>| {
            let _inside = runtime.enter();
            let cannot = || "listen on the public port".into();
            listener.map(|l| tokio::net::TcpListener::from_std(l).context(cannot)).transpose()
        };
        let (public, agent_check) = (listen(self.public)?, listen(self.agent_check)?);
        let viewer = view::start(agent)?;
        let answers = Arc::new(answers::Answers::new(viewer, agent.heartbeat()));
        let stop = stop.clone();
        let run = move || {
            runtime.block_on(async {
                let http = http(public, &answers, &stop);
                let checks = checks(agent_check, &answers, &stop);
                tokio::join!(http, checks);
            });
            // a writer may still be at work for somebody who is cut off now
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("public".into()).spawn(run).context(|| "start a thread".into())?;
        Ok(())
    }
}

async fn http(
    listener: Option<tokio::net::TcpListener>,
    answers: &Arc<answers::Answers>,
    stop: &CancellationToken,
) {
    let table = Table::new(CONNECTIONS);
    let router = answers::router(answers.clone());
    accept(listener, stop, |stream, at| {
        let (place, router) = (table.place(at.ip().to_canonical()), router.clone());
        tokio::spawn(conn::serve(stream, place, router));
    })
    .await;
    table.end();
}

async fn checks(
    listener: Option<tokio::net::TcpListener>,
    answers: &Arc<answers::Answers>,
    stop: &CancellationToken,
) {
    let table = Table::new(CHECKS);
    accept(listener, stop, |stream, at| {
        let (place, answers) = (table.place(at.ip().to_canonical()), answers.clone());
        tokio::spawn(agent_check::serve(stream, place, answers));
    })
    .await;
    table.end();
}

async fn accept(
    listener: Option<tokio::net::TcpListener>,
    stop: &CancellationToken,
    mut came: impl FnMut(tokio::net::TcpStream, SocketAddr),
) {
    let Some(listener) = listener else { return };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, at)) => came(stream, at),
                Err(_) => tokio::time::sleep(BACK_OFF).await,
            },
        }
    }
}
