//! The body of a response, read from its connection as it is asked for.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Frame, SizeHint};
use tokio_util::io::poll_read_buf;

use crate::wire::{Left, READ_SIZE, Step};

use super::Connection;
use super::head::Framing;
use super::pool::Idle;

/// A body. Read to its end, it gives its connection back; dropped before that, it closes it.
#[derive(Debug)]
pub struct Body {
    connection: Option<Connection>,
    // `None`: the connection is closed afterwards.
    home: Option<Arc<Idle>>,
    left: Left,
    // It has a buffer of its own.
    large: bool,
}

impl Body {
    /// The body that follows a head.
    pub(super) fn new(connection: Connection, framing: Framing, home: Option<Arc<Idle>>) -> Body {
        let left = match framing {
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Size,
            Framing::UntilClose => Left::UntilClose,
        };
        let mut body = Body { connection: Some(connection), home, left, large: false };
        if matches!(body.left, Left::Length(0)) {
            body.end();
        }
        body
    }

    // All of it was read.
    fn end(&mut self) {
        self.left = Left::Nothing;
        if let (Some(home), Some(mut connection)) = (self.home.take(), self.connection.take())
            && connection.unread.is_empty()
        {
            // Not kept: it would be memory for nothing while the connection rests, and the next
            // large answer, of which more came at once, would have to be copied out of it.
            if self.large {
                connection.unread = BytesMut::new();
            }
            home.keep(connection);
        }
        self.connection = None;
    }

    fn fail(&mut self) {
        self.left = Left::Nothing;
        self.connection = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
            match self.left.step(&mut connection.unread) {
                Ok(Step::Data(data)) => {
                    if self.left.is_over() {
                        self.end();
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Ok(Step::End) => {
                    self.end();
                    return Poll::Ready(None);
                }
                Ok(Step::Read(room)) => {
                    self.large |= room > READ_SIZE;
                    connection.unread.reserve(room);
                    let stream = Pin::new(&mut connection.stream);
                    let read = ready!(poll_read_buf(stream, cx, &mut connection.unread));
                    let failed = match (read, self.left) {
                        (Ok(0), Left::UntilClose) => {
                            self.end();
                            return Poll::Ready(None);
                        }
                        (Ok(0), _) => io::ErrorKind::UnexpectedEof.into(),
                        (Ok(_), _) => continue,
                        (Err(error), _) => error,
                    };
                    self.fail();
                    return Poll::Ready(Some(Err(failed)));
                }
                Err(error) => {
                    self.fail();
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.get_mut().poll(cx).map(|data| data.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Left::Length(left) => SizeHint::with_exact(left),
            Left::Nothing => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::BytesMut;
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::super::again::Again;
    use super::*;
    use std::time::Duration;

    // What a body is read as that comes in these pieces, the connection's end behind them.
    async fn read(framing: Framing, pieces: Vec<Vec<u8>>) -> (Result<Vec<u8>, io::Error>, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let writes = async {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.set_nodelay(true).unwrap();
            for piece in pieces {
                let _ = socket.write_all(&piece).await;
                tokio::task::yield_now().await;
            }
            let _ = socket.shutdown().await;
            socket
        };
        let reads = async {
            let (stream, _) = listener.accept().await.unwrap();
            let home = Arc::new(Idle::new(Duration::from_secs(60)));
            let (unread, again) = (BytesMut::new(), Again::default());
            let connection = Connection { stream, unread, again };
            let body = Body::new(connection, framing, Some(home.clone()));
            let read = body.collect().await.map(|whole| whole.to_bytes().to_vec());
            (read, home)
        };
        let (_socket, (read, home)) = tokio::join!(writes, reads);
        (read, !home.is_empty())
    }

    fn cut(text: &[u8], at: usize) -> Vec<Vec<u8>> {
        text.chunks(at.max(1)).map(<[u8]>::to_vec).collect()
    }

    #[tokio::test]
    async fn bodies_end_where_they_should_however_they_are_cut() {
        let chunked: &[u8] = b"5;x=y\r\nhello\r\n6 \r\n world\r\n0\r\ntrailer: x\r\n\r\n";
        for at in [1, 2, 3, 7, 100] {
            let (read_, kept) = read(Framing::Chunked, cut(chunked, at)).await;
            assert_eq!((read_.unwrap(), kept), (b"hello world".to_vec(), true));
            let (read_, kept) = read(Framing::Length(5), cut(b"hello", at)).await;
            assert_eq!((read_.unwrap(), kept), (b"hello".to_vec(), true));
            let (read_, _) = read(Framing::UntilClose, cut(b"hello", at)).await;
            assert_eq!(read_.unwrap(), b"hello");
        }
        // What follows is not ours, and its connection is no use.
        let (read_, kept) = read(Framing::Length(5), cut(b"hello HTTP/1.1", 100)).await;
        assert_eq!((read_.unwrap(), kept), (b"hello".to_vec(), false));
    }

    #[tokio::test]
    async fn what_breaks_off_or_is_no_chunk_is_an_error() {
        let long = [b"1;".as_slice(), &[b'x'; 5 << 10], b"\r\na\r\n0\r\n\r\n"].concat();
        let trailers = [b"0\r\n".as_slice(), &b"a: b\r\n".repeat(4 << 10), b"\r\n"].concat();
        let cases: [(Framing, &[u8]); 10] = [
            (Framing::Length(9), b"hello"),
            (Framing::Chunked, b"5\r\nhel"),
            (Framing::Chunked, b"5\r\nhello\r\n"),
            (Framing::Chunked, b"5\r\nhelloXX"),
            (Framing::Chunked, b"-5\r\nhello\r\n0\r\n\r\n"),
            (Framing::Chunked, b"\r\n"),
            (Framing::Chunked, b"5\nhello\n0\n\n"),
            (Framing::Chunked, b"ffffffffffffffffff\r\n"),
            (Framing::Chunked, &long),
            (Framing::Chunked, &trailers),
        ];
        for (framing, text) in cases {
            let (read, kept) = read(framing, cut(text, 1 << 20)).await;
            assert!(
                read.is_err() && !kept,
                "{}",
                String::from_utf8_lossy(&text[..9.min(text.len())])
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn chunks_are_put_together_as_they_were_cut(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            at in 1usize..50,
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (read, kept) = runtime.block_on(read(Framing::Chunked, cut(&text, at)));
            prop_assert_eq!(read.unwrap(), chunks.concat());
            prop_assert!(kept);
        }
    }
}
