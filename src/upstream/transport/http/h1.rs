//! HTTP/1.1 towards upstreams without TLS: a pool of connections that a call reads and writes
//! itself.
//!
//! Decided: written here, and not hyper's. With hyper each connection is a task, so that a call
//! wakes two tasks more and hands itself through three queues, which costs as much as all the
//! rest of a call. What an answer's head says is still read by `httparse`, as in hyper; what is
//! ours is which connection to take, and where a body ends. Upstreams with TLS may speak HTTP/2
//! and stay with hyper (see `client`).
//!
//! *What is sent twice*: nothing of which the system took a single byte. A kept connection that
//! fails before that gives way to another one; every other failure leaves open what the upstream
//! got (RFC 9112, 9.3.1).

pub mod again;
mod body;
pub mod head;
mod pool;

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::{Method, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::TcpStream;
use tower_service::Service as _;

use std::sync::Arc;

pub use body::Body;
pub use head::{Head, Header, Media};

use crate::wire::READ_SIZE;

use again::Again;
use head::{Framing, Parsed};
use pool::Idle;

/// Bodies up to this size are sent with the head in one piece; larger ones are not copied.
const JOINED_MAX: usize = 64 << 10;
/// Most bytes of an answer that are taken while the request is still being written.
const AHEAD_MAX: usize = 64 << 10;

/// A connection, and what was read from it and is not used yet.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    unread: BytesMut,
    again: Again,
}

/// Why a request has no response.
#[derive(Debug)]
pub(super) enum Failed {
    /// No connection could be had.
    Connect(String),
    /// There was one, and not a byte was written.
    NotSent(io::Error),
    /// Something was written; what the upstream got of it is not known.
    Lost(io::Error),
}

/// The connections to one upstream.
pub(super) struct Pool {
    idle: Arc<Idle>,
    connector: HttpConnector,
    dial_time: Duration,
}

impl Pool {
    /// A pool that connects when used. Dialling takes `dial_time` at most; what is not used for
    /// `idle_time` is closed.
    pub fn new(connector: HttpConnector, dial_time: Duration, idle_time: Duration) -> Pool {
        Pool { idle: Arc::new(Idle::new(idle_time)), connector, dial_time }
    }

    /// Send a request and read the head of its response. Of two headers with one name the later
    /// counts. Dropping the future closes the connection.
    pub async fn send(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &[&[Header]],
        body: &Bytes,
    ) -> Result<(Head, Body), Failed> {
        let mut message = head::request(method, uri, headers, body);
        let joined = body.len() <= JOINED_MAX;
        if joined {
            message.extend_from_slice(body);
        }
        let rest: &[u8] = if joined { &[] } else { body };
        loop {
            let kept = self.idle.take();
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => Box::pin(self.dial(uri)).await?,
            };
            let mut whole = true;
            for part in [&message[..], rest] {
                match connection.write(part).await {
                    Ok(()) => {}
                    Err(Unwritten::Nothing(error)) if part.as_ptr() == message.as_ptr() => {
                        if is_kept {
                            whole = false;
                            break;
                        }
                        return Err(Failed::NotSent(error));
                    }
                    Err(Unwritten::Answered) => {
                        // It does not want the rest.
                        let (head, framing) = connection.head().await.map_err(Failed::Lost)?;
                        return Ok((head, Body::new(connection, framing, None)));
                    }
                    Err(Unwritten::Nothing(error) | Unwritten::Partly(error)) => {
                        return Err(Failed::Lost(error));
                    }
                }
            }
            if !whole {
                continue;
            }
            let Parsed { head, framing, reusable } =
                connection.response().await.map_err(Failed::Lost)?;
            let home = reusable.then(|| self.idle.clone());
            return Ok((head, Body::new(connection, framing, home)));
        }
    }

    async fn dial(&self, uri: &Uri) -> Result<Connection, Failed> {
        let dialled = self.connector.clone().call(uri.clone());
        match tokio::time::timeout(self.dial_time, dialled).await {
            Ok(Ok(io)) => Ok(Connection {
                stream: io.into_inner(),
                unread: BytesMut::new(),
                again: Again::default(),
            }),
            Ok(Err(error)) => Err(Failed::Connect(super::client::chain(&error))),
            Err(_) => Err(Failed::Connect(format!("no connection within {:?}", self.dial_time))),
        }
    }
}

enum Unwritten {
    Nothing(io::Error),
    Partly(io::Error),
    // The upstream refused before it had all.
    Answered,
}

impl Connection {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), Unwritten> {
        let mut at = 0;
        while at < bytes.len() {
            let error = match self.stream.try_write(&bytes[at..]) {
                Ok(n) => {
                    at += n;
                    continue;
                }
                Err(error) => error,
            };
            let failed = if error.kind() == io::ErrorKind::WouldBlock {
                match self.writable().await {
                    Ok(false) => continue,
                    Ok(true) => return Err(Unwritten::Answered),
                    Err(error) => error,
                }
            } else {
                error
            };
            // An upstream that has said why it closes is heard.
            if at > 0 && self.refused() {
                return Err(Unwritten::Answered);
            }
            return Err(if at == 0 {
                Unwritten::Nothing(failed)
            } else {
                Unwritten::Partly(failed)
            });
        }
        Ok(())
    }

    // Wait until more can be written; reads meanwhile, so that an upstream that answers before it
    // has read all is not waited for by both sides. True: it has refused.
    async fn writable(&mut self) -> io::Result<bool> {
        let room = self.unread.len() < AHEAD_MAX;
        let interest =
            if room { Interest::READABLE | Interest::WRITABLE } else { Interest::WRITABLE };
        let ready = self.stream.ready(interest).await?;
        if room && ready.is_readable() {
            self.unread.reserve(READ_SIZE);
            match self.stream.try_read_buf(&mut self.unread) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if self.refused() => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn refused(&self) -> bool {
        matches!(head::parse(&self.unread), Ok(Some((parsed, _))) if parsed.head.status.as_u16() >= 400)
    }

    async fn head(&mut self) -> io::Result<(Head, Framing)> {
        let parsed = self.response().await?;
        Ok((parsed.head, parsed.framing))
    }

    // The head of the final response (RFC 9110, 15.2: any number of interim ones may come first).
    async fn response(&mut self) -> io::Result<Parsed> {
        loop {
            if let Some((parsed, length)) = self.again.parse(&self.unread)? {
                let _ = self.unread.split_to(length);
                if !parsed.head.status.is_informational() {
                    return Ok(parsed);
                }
                continue;
            }
            self.unread.reserve(READ_SIZE);
            if self.stream.read_buf(&mut self.unread).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    // Whether it can carry another request: neither closed nor speaking out of turn.
    fn is_quiet(&self) -> bool {
        let read = self.stream.try_read(&mut [0]);
        self.unread.is_empty()
            && matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}
