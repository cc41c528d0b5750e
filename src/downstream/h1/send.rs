//! A response on its way.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::Body as _;
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::body::OutBody;
use super::super::reply::IS_JSON;
use super::head::{self, Sends};
use super::io::{Part, Shared};

/// Pieces of a body that are written at once: an answer, the end of its stream behind it.
const FRAMES_MAX: usize = 4;
/// So many bytes are enough at once, whatever the number of pieces.
const BATCH: usize = 16 << 10;
/// A head that needed more room than this does not keep it.
const HEAD_KEPT: usize = 4 << 10;

/// A response, and how much of it is sent. The next piece of its body is asked for when the socket
/// has taken all before it.
pub struct Sending {
    // Until the head is written.
    head: Option<(Version, StatusCode, HeaderMap)>,
    // What it says besides its headers.
    besides: &'static [u8],
    body: OutBody,
    sends: Sends,
    // Of the announced length.
    left: u64,
    over: bool,
    /// The connection can go on afterwards.
    pub keep: bool,
}

impl Sending {
    /// The answer to a request of this version; `keep`: the connection goes on if it can.
    pub fn new(
        response: Response<OutBody>,
        version: Version,
        is_head: bool,
        keep: bool,
    ) -> Sending {
        let (parts, body) = response.into_parts();
        let length = body.size_hint().exact();
        let sends = match parts.status {
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => {
                Sends::Nothing
            }
            _ if is_head => Sends::HeadOnly(length),
            _ => match length {
                Some(length) => Sends::Length(length),
                None if version == Version::HTTP_10 => Sends::UntilClose,
                None => Sends::Chunks,
            },
        };
        let is_named = body.is_end_stream() || parts.headers.contains_key(CONTENT_TYPE);
        let besides = if is_named { &[][..] } else { IS_JSON };
        let keep = keep && sends != Sends::UntilClose;
        let has_body = matches!(sends, Sends::Length(1..) | Sends::Chunks | Sends::UntilClose);
        let head = Some((version, parts.status, parts.headers));
        let left = length.unwrap_or(0);
        let body = if has_body { body } else { OutBody::empty() };
        Sending { head, besides, body, sends, left, over: !has_body, keep }
    }

    /// Whether the connection becomes something else afterwards.
    pub fn switches(&self) -> bool {
        self.head.as_ref().is_some_and(|(_, status, _)| *status == StatusCode::SWITCHING_PROTOCOLS)
    }

    /// Resolves when the socket has taken all of it.
    pub fn poll<S>(&mut self, io: &Shared<S>, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            ready!(io.lock().poll_backlog(cx))?;
            if self.over && self.head.is_none() {
                return Poll::Ready(Ok(()));
            }
            let mut frames = [const { Bytes::new() }; FRAMES_MAX];
            let mut count = 0;
            let gathered = self.gather(cx, &mut frames, &mut count);
            if count == 0 && self.head.is_none() && !self.over && gathered.is_ok() {
                return Poll::Pending;
            }
            let last = self.over && gathered.is_ok();
            self.write(io, cx, &frames[..count], last)?;
            // What came before the break is sent; that there is no end says the rest.
            gathered?;
        }
    }

    // What there is of the body, to a bound.
    fn gather(
        &mut self,
        cx: &mut Context<'_>,
        frames: &mut [Bytes; FRAMES_MAX],
        count: &mut usize,
    ) -> io::Result<()> {
        let mut size = 0;
        while !self.over && *count < FRAMES_MAX && size < BATCH {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    self.end()?;
                    break;
                }
                Poll::Ready(Some(Err(error))) => return Err(error),
                Poll::Ready(Some(Ok(frame))) => frame,
            };
            // An empty chunk would be the last one.
            let Some(data) = frame.into_data().ok().filter(|data| !data.is_empty()) else {
                continue;
            };
            if matches!(self.sends, Sends::Length(_)) {
                let left = self.left.checked_sub(data.len() as u64);
                self.left = left.ok_or_else(|| io::Error::other("longer than announced"))?;
            }
            size += data.len();
            frames[*count] = data;
            *count += 1;
            if self.body.is_end_stream() {
                self.end()?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.over = true;
        // What worked on it is over too.
        self.body = OutBody::empty();
        if matches!(self.sends, Sends::Length(_)) && self.left > 0 {
            return Err(io::Error::other("shorter than announced"));
        }
        Ok(())
    }

    fn write<S>(
        &mut self,
        io: &Shared<S>,
        cx: &mut Context<'_>,
        frames: &[Bytes],
        last: bool,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        thread_local! {
            static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        LINES.with_borrow_mut(|lines| {
            lines.clear();
            if let Some((version, status, headers)) = self.head.take() {
                let headers = (&headers, self.besides);
                head::write(lines, version, status, headers, self.sends, self.keep);
            }
            // Where the lines before each frame end, and those behind the last one.
            let mut ends = [0; FRAMES_MAX + 1];
            let chunked = self.sends == Sends::Chunks;
            for (at, frame) in frames.iter().enumerate() {
                if chunked {
                    if at > 0 {
                        lines.extend_from_slice(b"\r\n");
                    }
                    head::chunk(lines, frame.len());
                }
                ends[at] = lines.len();
            }
            if chunked && !frames.is_empty() {
                lines.extend_from_slice(b"\r\n");
            }
            if chunked && last {
                lines.extend_from_slice(b"0\r\n\r\n");
            }
            ends[frames.len()] = lines.len();
            let mut parts = [const { Part::Lent(&[]) }; FRAMES_MAX * 2 + 1];
            let (mut count, mut from) = (0, 0);
            for (at, end) in ends[..=frames.len()].iter().enumerate() {
                if *end > from {
                    parts[count] = Part::Lent(&lines[from..*end]);
                    count += 1;
                    from = *end;
                }
                if let Some(frame) = frames.get(at) {
                    parts[count] = Part::Shared(frame);
                    count += 1;
                }
            }
            let written = io.lock().offer(cx, &parts[..count]);
            if lines.capacity() > HEAD_KEPT {
                *lines = Vec::new();
            }
            written
        })
    }
}
