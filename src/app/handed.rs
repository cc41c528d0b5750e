//! A listening socket that somebody else holds and hands over: systemd's socket activation.
//!
//! Decided (2026-11-21): this is how two gateways stand behind one address, and how one is replaced
//! without a moment in which nobody listens. All that have the socket accept from one queue, which
//! ends with none of them. With `SO_REUSEPORT` each has a queue of its own, and what waits in it is
//! reset when its gateway closes it: calls would be lost at each restart, unless the machine's
//! `net.ipv4.tcp_migrate_req` is changed for everybody.

use tokio::net::TcpListener;

use crate::config::Config;

use super::AppError;

/// The socket that was handed over instead of `gateway.listen`, if one was (`LISTEN_FDS`).
///
/// # Errors
/// It is no listening TCP socket, one of several, or open to all while there are no consumers.
pub fn socket(config: &Config) -> Result<Option<TcpListener>, AppError> {
    let mut given = listenfd::ListenFd::from_env();
    match given.len() {
        0 => return Ok(None),
        1 => {}
        n => {
            return Err(AppError::Start(format!(
                "{n} sockets were handed over (LISTEN_FDS) and one is served; give the socket unit \
                 one ListenStream="
            )));
        }
    }
    let wrong = |e| AppError::Start(format!("the socket that was handed over (LISTEN_FDS): {e}"));
    let Some(socket) = given.take_tcp_listener(0).map_err(wrong)? else { return Ok(None) };
    socket.set_nonblocking(true).map_err(wrong)?;
    let at = socket.local_addr().map_err(wrong)?;
    if config.consumers.is_empty() && !at.ip().is_loopback() {
        return Err(AppError::Config(format!(
            "the socket that was handed over listens on {at}: without consumers the gateway serves \
             loopback only; add one with `weir key new NAME`, or listen on 127.0.0.1"
        )));
    }
    TcpListener::from_std(socket).map(Some).map_err(wrong)
}
