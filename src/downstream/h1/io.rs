//! The socket of one connection, what was read from it, and what it has not taken yet.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use crate::wire::{Left, Step};

use super::again::Again;

/// Room for what is read at a time, once for each thread: a connection holds what was read, and no
/// room for more.
const SCRATCH: usize = 16 << 10;
/// Bytes behind a request that are kept while it is answered: many small requests. Who sends more
/// waits.
const AHEAD_MAX: usize = 16 << 10;
/// Pieces written at a time of what was left.
const SLICES_MAX: usize = 16;
/// What a client that expects it is told before it sends the body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Shared by who serves a connection and the body of its request; they run in one task, so nobody
/// waits for it.
pub struct Shared<S>(Mutex<Io<S>>);

/// See the module.
pub struct Io<S> {
    stream: S,
    /// What was read and is not used yet.
    pub unread: BytesMut,
    /// What came with the head that was read last, until it is known what of it is the body.
    pub behind: Bytes,
    /// The head that was kept last.
    pub again: Again,
    /// What is left of the request's body.
    pub left: Left,
    /// The client waits for `100 Continue`.
    pub expects: bool,
    /// Who answered leaves the rest of the body, and would have it read.
    pub left_behind: bool,
    // What is still to be said of `CONTINUE`.
    interim: &'static [u8],
    // What the socket has not taken yet.
    backlog: VecDeque<Bytes>,
    /// Since when it takes nothing.
    pub stuck: Option<Instant>,
}

impl<S> Shared<S> {
    /// A connection from which something was read already.
    pub fn new(stream: S, unread: BytesMut) -> Shared<S> {
        Shared(Mutex::new(Io {
            stream,
            unread,
            behind: Bytes::new(),
            again: Again::default(),
            left: Left::Nothing,
            expects: false,
            left_behind: false,
            interim: &[],
            backlog: VecDeque::new(),
            stuck: None,
        }))
    }

    /// For a moment.
    pub fn lock(&self) -> MutexGuard<'_, Io<S>> {
        // What a panic leaves is a connection that ends.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream and what was read of it.
    pub fn into_parts(self) -> (S, Bytes) {
        let io = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        (io.stream, io.unread.freeze())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    /// Read what there is, behind what is unread; 0: the client has closed.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        thread_local! {
            static ROOM: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
        }
        ROOM.with_borrow_mut(|room| {
            let mut read = ReadBuf::new(room);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
            self.unread.extend_from_slice(read.filled());
            Poll::Ready(Ok(read.filled().len()))
        })
    }

    /// Resolves when the client has gone. What it sends meanwhile is kept, to a bound; a body is
    /// left to whom it is for.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.left.is_over() && self.unread.len() < AHEAD_MAX {
            if !matches!(ready!(self.poll_fill(cx)), Ok(1..)) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// The next piece of the request's body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            let room = match self.left.step(&mut self.unread) {
                Ok(Step::Data(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(Step::End) => return Poll::Ready(None),
                Ok(Step::Read(room)) => room,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            if std::mem::take(&mut self.expects) && self.unread.is_empty() {
                self.interim = CONTINUE;
            }
            while !self.interim.is_empty() {
                match ready!(Pin::new(&mut self.stream).poll_write(cx, self.interim)) {
                    Ok(n) => self.interim = &self.interim[n..],
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
            }
            self.unread.reserve(room);
            match ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.unread)) {
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Pass over what is there of the request's body: how much it was, `None` at its end.
    pub fn poll_pass_over(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<usize>>> {
        // Not gathered, however short it is.
        if let Left::Length(left) = self.left {
            if self.unread.is_empty() {
                match ready!(self.poll_fill(cx)) {
                    Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
            }
            let passed = usize::try_from(left).unwrap_or(usize::MAX).min(self.unread.len());
            self.unread.advance(passed);
            let left = left - passed as u64;
            self.left = if left == 0 { Left::Nothing } else { Left::Length(left) };
            return Poll::Ready(Some(Ok(passed)));
        }
        self.poll_body(cx).map(|data| data.map(|data| data.map(|data| data.len())))
    }

    /// Give up memory that is not needed.
    pub fn rest(&mut self) {
        if self.unread.is_empty() {
            self.unread = BytesMut::new();
        }
    }

    /// Say no more of `100 Continue`, unless half of it was said.
    pub fn begin_response(&mut self) {
        let interim = std::mem::take(&mut self.interim);
        if interim.len() < CONTINUE.len() && !interim.is_empty() {
            self.backlog.push_back(Bytes::from_static(interim));
        }
    }

    /// Write what can be written of these parts, and keep the rest. What is `shared` is not copied.
    pub fn offer(&mut self, cx: &mut Context<'_>, parts: &[Part<'_>]) -> io::Result<()> {
        debug_assert!(parts.len() <= SLICES_MAX);
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut total = 0;
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part.bytes());
            total += part.bytes().len();
        }
        let mut written = 0;
        if self.backlog.is_empty() {
            let stream = Pin::new(&mut self.stream);
            match stream.poll_write_vectored(cx, &slices[..parts.len()]) {
                Poll::Ready(Ok(0)) if total > 0 => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => written = n,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {}
            }
        }
        if written == total {
            return Ok(());
        }
        for part in parts {
            let bytes = part.bytes();
            let done = written.min(bytes.len());
            written -= done;
            if done < bytes.len() {
                self.backlog.push_back(match part {
                    Part::Shared(all) => all.slice(done..),
                    Part::Lent(_) => Bytes::copy_from_slice(&bytes[done..]),
                });
            }
        }
        Ok(())
    }

    /// Resolves when the socket has taken all there was.
    pub fn poll_backlog(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.backlog.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, bytes) in slices.iter_mut().zip(&self.backlog) {
                *slice = IoSlice::new(bytes);
                count += 1;
            }
            let stream = Pin::new(&mut self.stream);
            let mut written = match stream.poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.stuck.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            };
            self.stuck = None;
            while let Some(first) = self.backlog.front_mut().filter(|_| written > 0) {
                let done = written.min(first.len());
                first.advance(done);
                written -= done;
                if first.is_empty() {
                    self.backlog.pop_front();
                }
            }
        }
        if self.backlog.capacity() > 0 {
            self.backlog = VecDeque::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Say that nothing more will be said.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Of what is to be written.
pub enum Part<'a> {
    /// Has to be copied to be kept.
    Lent(&'a [u8]),
    /// Can be kept as it is.
    Shared(&'a Bytes),
}

impl Part<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Part::Lent(bytes) => bytes,
            Part::Shared(bytes) => bytes,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn what_a_socket_does_not_take_is_kept_in_order() {
        use tokio::io::AsyncReadExt as _;
        let (ours, mut theirs) = tokio::io::duplex(7);
        let shared = Shared::new(ours, BytesMut::new());
        let large = Bytes::from_static(b"0123456789");
        let write = async {
            for _ in 0..2 {
                poll_fn(|cx| {
                    let parts = [Part::Lent(b"abc"), Part::Shared(&large), Part::Lent(b"xyz")];
                    Poll::Ready(shared.lock().offer(cx, &parts))
                })
                .await
                .unwrap();
            }
            poll_fn(|cx| shared.lock().poll_backlog(cx)).await.unwrap();
            assert_eq!(shared.lock().backlog.capacity(), 0);
        };
        let read = async {
            let mut got = [0; 32];
            theirs.read_exact(&mut got).await.unwrap();
            got
        };
        let ((), got) = tokio::join!(write, read);
        assert_eq!(&got, b"abc0123456789xyzabc0123456789xyz");
    }
}
