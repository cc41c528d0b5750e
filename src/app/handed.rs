//! A listening socket that somebody else holds and hands over: systemd's socket activation.
//!
//! Decided (2026-11-21): this is how two gateways stand behind one address, and how one is replaced
//! without a moment in which nobody listens. All that have the socket accept from one queue, which
//! ends with none of them. With `SO_REUSEPORT` each has a queue of its own, and what waits in it is
//! reset when its gateway closes it: calls would be lost at each restart, unless the machine's
//! `net.ipv4.tcp_migrate_req` is changed for everybody.

use std::io;
use std::net;

use tokio::net::TcpListener;

use crate::config::Config;

use super::AppError;

/// What was handed over to this process, before it is known whether and how it is to serve.
#[derive(Debug)]
pub struct Handed {
    count: usize,
    first: io::Result<Option<net::TcpListener>>,
}

impl Handed {
    /// Take what was handed over (`LISTEN_FDS`). To be called before there is another thread: the
    /// variables are taken out of the environment, which must not change while others read it.
    #[allow(
        clippy::disallowed_methods,
        reason = "this is the one place, and `main` begins with it"
    )]
    pub fn take() -> Handed {
        let mut given = listenfd::ListenFd::from_env();
        // From here on no child has the socket too.
        Handed { count: given.len(), first: given.take_tcp_listener(0) }
    }

    /// The socket to serve instead of `gateway.listen`, if there is one.
    ///
    /// # Errors
    /// It is no listening TCP socket, one of several, or open to all while there are no consumers.
    pub(super) fn socket(self, config: &Config) -> Result<Option<TcpListener>, AppError> {
        if self.count > 1 {
            return Err(AppError::Start(format!(
                "{} sockets were handed over (LISTEN_FDS) and one is served; give the socket unit \
                 one ListenStream=",
                self.count
            )));
        }
        let wrong =
            |e| AppError::Start(format!("the socket that was handed over (LISTEN_FDS): {e}"));
        let Some(socket) = self.first.map_err(wrong)? else { return Ok(None) };
        socket.set_nonblocking(true).map_err(wrong)?;
        let at = socket.local_addr().map_err(wrong)?;
        if config.consumers.is_empty() && !at.ip().is_loopback() {
            return Err(AppError::Config(format!(
                "the socket that was handed over listens on {at}: without consumers the gateway \
                 serves loopback only; add one with `weir key new NAME`, or listen on 127.0.0.1"
            )));
        }
        TcpListener::from_std(socket).map(Some).map_err(wrong)
    }
}
