//! The body of a response, read from its connection as it is asked for.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::body::{Frame, SizeHint};
use tokio_util::io::poll_read_buf;

use super::head::{Framing, broken};
use super::pool::Idle;
use super::{Connection, READ_SIZE};

/// A body of known length up to this is given in one piece: that saves its reader a copy.
const WHOLE_MAX: u64 = 256 << 10;
/// Room for what is read at a time of a longer one: as much as a socket mostly holds, and little
/// beside what may be kept of a large answer.
const ROOM: usize = 64 << 10;
/// Longest line that says how long a chunk is, or is a trailer; and most bytes of trailers.
const LINE_MAX: usize = 4 << 10;
const TRAILERS_MAX: usize = 16 << 10;

/// A body. Read to its end, it gives its connection back; dropped before that, it closes it.
#[derive(Debug)]
pub struct Body {
    connection: Option<Connection>,
    // `None`: the connection is closed afterwards.
    home: Option<Arc<Idle>>,
    left: Left,
}

#[derive(Clone, Copy, Debug)]
enum Left {
    Length(u64),
    UntilClose,
    // Chunked (RFC 9112, 7.1): a line with a size comes; so many bytes of a chunk; the end of its
    // line; trailers, of which so many bytes were read.
    Size,
    Chunk(u64),
    ChunkEnd,
    Trailers(usize),
    Nothing,
}

impl Body {
    /// The body that follows a head.
    pub(super) fn new(connection: Connection, framing: Framing, home: Option<Arc<Idle>>) -> Body {
        let left = match framing {
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Size,
            Framing::UntilClose => Left::UntilClose,
        };
        let mut body = Body { connection: Some(connection), home, left };
        if matches!(body.left, Left::Length(0)) {
            body.end();
        }
        body
    }

    // All of it was read.
    fn end(&mut self) {
        self.left = Left::Nothing;
        if let (Some(home), Some(connection)) = (self.home.take(), self.connection.take())
            && connection.unread.is_empty()
        {
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
            match self.step() {
                Ok(Step::Data(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(Step::End) => return Poll::Ready(None),
                Ok(Step::Again) => {}
                Ok(Step::Read(room)) => {
                    let connection = self.connection.as_mut().expect("there is more to read");
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

    // What can be done with what has been read.
    fn step(&mut self) -> io::Result<Step> {
        let Some(connection) = &mut self.connection else { return Ok(Step::End) };
        let unread = &mut connection.unread;
        match self.left {
            Left::Nothing => Ok(Step::End),
            Left::Length(left) => {
                if left <= WHOLE_MAX && (unread.len() as u64) < left {
                    return Ok(Step::Read(left as usize - unread.len()));
                }
                if unread.is_empty() {
                    return Ok(Step::Read(ROOM));
                }
                let data = take(unread, left);
                let left = left - data.len() as u64;
                self.left = Left::Length(left);
                if left == 0 {
                    self.end();
                }
                Ok(Step::Data(data))
            }
            Left::UntilClose | Left::Chunk(_) if unread.is_empty() => Ok(Step::Read(READ_SIZE)),
            Left::UntilClose => Ok(Step::Data(unread.split().freeze())),
            Left::Size => {
                let Some(line) = line(unread)? else { return Ok(Step::Read(READ_SIZE)) };
                self.left = match size(&line)? {
                    0 => Left::Trailers(0),
                    size => Left::Chunk(size),
                };
                Ok(Step::Again)
            }
            Left::Chunk(left) => {
                let data = take(unread, left);
                let left = left - data.len() as u64;
                self.left = if left == 0 { Left::ChunkEnd } else { Left::Chunk(left) };
                Ok(Step::Data(data))
            }
            Left::ChunkEnd => match &unread[..] {
                [b'\r', b'\n', ..] => {
                    unread.advance(2);
                    self.left = Left::Size;
                    Ok(Step::Again)
                }
                [] | [b'\r'] => Ok(Step::Read(READ_SIZE)),
                _ => Err(broken("a chunk that does not end where it should")),
            },
            Left::Trailers(seen) => {
                let Some(line) = line(unread)? else { return Ok(Step::Read(READ_SIZE)) };
                if line.is_empty() {
                    self.end();
                    return Ok(Step::End);
                }
                let seen = seen + line.len() + "\r\n".len();
                if seen > TRAILERS_MAX {
                    return Err(broken("trailers without end"));
                }
                self.left = Left::Trailers(seen);
                Ok(Step::Again)
            }
        }
    }
}

enum Step {
    Data(Bytes),
    // So many bytes more would be welcome.
    Read(usize),
    Again,
    End,
}

fn take(unread: &mut BytesMut, most: u64) -> Bytes {
    let n = usize::try_from(most).map_or(unread.len(), |most| most.min(unread.len()));
    unread.split_to(n).freeze()
}

// The next line without its end; `None` while it is not all there.
fn line(unread: &mut BytesMut) -> io::Result<Option<BytesMut>> {
    let Some(end) = memchr::memchr(b'\n', unread) else {
        return if unread.len() > LINE_MAX { Err(broken("a line without end")) } else { Ok(None) };
    };
    if end > LINE_MAX || end == 0 || unread[end - 1] != b'\r' {
        return Err(broken("a line that does not end as it should"));
    }
    let mut line = unread.split_to(end + 1);
    line.truncate(end - 1);
    Ok(Some(line))
}

// Without extensions, which mean nothing here.
fn size(line: &[u8]) -> io::Result<u64> {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
    let wrong = || broken("a chunk without a size");
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(wrong());
    }
    let text = std::str::from_utf8(digits).map_err(|_| wrong())?;
    u64::from_str_radix(text, 16).map_err(|_| wrong())
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
        matches!(self.left, Left::Nothing)
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
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

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
            let connection = Connection { stream, unread: BytesMut::new() };
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
        let long = [b"1;".as_slice(), &[b'x'; LINE_MAX + 9], b"\r\na\r\n0\r\n\r\n"].concat();
        let trailers =
            [b"0\r\n".as_slice(), &b"a: b\r\n".repeat(TRAILERS_MAX / 4), b"\r\n"].concat();
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
