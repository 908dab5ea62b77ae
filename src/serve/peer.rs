//! Who is on the other end of the local socket, as the kernel says (SO_PEERCRED).

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::net::UnixListener;

use crate::agent::Ordered;
use crate::disk::wall_ms;
use crate::error::{Class, Error, Result};
use crate::model::escape;

/// Of what somebody says of himself so many characters are kept: they are shown, logged and sent to the source.
const LONGEST: usize = 500;

/// Words of somebody else's in one line.
pub(super) fn said(words: &str) -> String {
    escape(words.as_bytes()).chars().take(LONGEST).collect()
}

/// A process of this host.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peer {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let cred = stream.io().peer_cred().ok();
        Self { uid: cred.map(|c| c.uid()), pid: cred.and_then(|c| c.pid()).filter(|pid| *pid > 0) }
    }
}

impl Peer {
    /// The user and the process, for people. Blocking: users may be kept on a network.
    pub(super) fn who(self) -> String {
        let user = self.uid.map_or_else(
            || "unknown".to_owned(),
            |uid| match uzers::get_user_by_uid(uid) {
                Some(user) => user.name().to_string_lossy().into_owned(),
                None => format!("uid {uid}"),
            },
        );
        // sudo keeps the login's user in the audit id
        let login = self.pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/loginuid")).ok());
        let login = login.and_then(|uid| uid.trim().parse::<u32>().ok()).filter(|uid| Some(*uid) != self.uid);
        let login = login.and_then(uzers::get_user_by_uid).map(|u| u.name().to_string_lossy().into_owned());
        match (login, self.pid) {
            (Some(login), Some(pid)) => format!("{user}, logged in as {login} (process {pid})"),
            (None, Some(pid)) => format!("{user} (process {pid})"),
            (_, None) => user,
        }
    }

    /// # Errors
    /// The process is in a container of its own, and cannot be seen from here.
    pub(super) fn pid(self) -> Result<i32> {
        let hidden = "the process that asks cannot be seen from the agent (another PID namespace), so its end could not be noticed";
        self.pid.ok_or_else(|| Error::new(Class::Config, hidden))
    }

    /// An order of this process, now.
    pub(super) fn ordered(self, reason: Option<String>) -> Ordered {
        Ordered { who: self.who(), reason: reason.as_deref().map(said), at_ms: wall_ms() }
    }
}
