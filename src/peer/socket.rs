//! What every TCP connection gets, on both sides, so that a peer that vanished without a word is noticed.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;

/// Sent data that nobody acknowledges for so long, or a window that stays shut, ends the connection.
const UNACKNOWLEDGED_MS: u32 = 30_000;
/// A silent connection is probed after so long, and then so often; it ends after three probes.
const PROBE_AFTER: Duration = Duration::from_secs(15);
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

/// Sets no-delay, keep-alive and the user time-out.
pub(super) fn tune(socket: impl AsFd) -> rustix::io::Result<()> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(&socket, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(&socket, PROBES)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_user_timeout(&socket, UNACKNOWLEDGED_MS)
}
