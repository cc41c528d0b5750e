//! The little of HTTP/1.1 that both sides of a proxy need here, and the text whose every byte is
//! checked.

use std::io::{self, Read};
use std::net::TcpStream;

use memchr::memmem;

/// Bytes that one read asks for: a 64 KiB answer comes in few reads.
const READ: usize = 128 << 10;

/// What was read and not yet understood.
#[derive(Default)]
pub struct Inbox {
    data: Vec<u8>,
    len: usize,
}

/// What a read came to.
pub enum Got {
    /// Bytes.
    Some,
    /// Nothing for now.
    Later,
    /// The other side has closed.
    End,
}

impl Inbox {
    /// Read once.
    ///
    /// # Errors
    /// What the socket says, other than that there is nothing for now.
    pub fn read(&mut self, from: &mut impl Read) -> io::Result<Got> {
        if self.data.len() < self.len + READ {
            self.data.resize(self.len + READ, 0);
        }
        match from.read(&mut self.data[self.len..]) {
            Ok(0) => Ok(Got::End),
            Ok(n) => {
                self.len += n;
                Ok(Got::Some)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Got::Later),
            Err(e) => Err(e),
        }
    }

    /// What is there.
    pub fn bytes(&self) -> &[u8] {
        &self.data[..self.len]
    }

    /// Forget the first `n` bytes.
    pub fn consume(&mut self, n: usize) {
        self.data.copy_within(n..self.len, 0);
        self.len -= n;
    }
}

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By its length.
    Length(usize),
    /// In chunks.
    Chunked,
    /// By the end of the connection: a stream.
    Close,
}

/// The head of a message.
#[derive(Debug)]
pub struct Head {
    /// Its length, the empty line included.
    pub len: usize,
    /// The status; 0 for a request.
    pub status: u16,
    /// How its body ends.
    pub framing: Framing,
    /// Whether the body is an event stream.
    pub events: bool,
    /// `Mcp-Session-Id`.
    pub session: Option<String>,
}

/// Read a head; `None` until it is complete.
pub fn head(bytes: &[u8]) -> Option<Head> {
    let len = memmem::find(bytes, b"\r\n\r\n")? + 4;
    let mut lines = bytes[..len - 4].split(|b| *b == b'\n');
    let first = lines.next().unwrap_or_default();
    let response = first.starts_with(b"HTTP/");
    let status = if response { digits(first.get(9..12).unwrap_or_default()) as u16 } else { 0 };
    // A request without a length has no body, a response ends with its connection.
    let framing = if response { Framing::Close } else { Framing::Length(0) };
    let mut head = Head { len, status, framing, events: false, session: None };
    for line in lines {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            head.framing = Framing::Length(digits(value));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            head.framing = Framing::Chunked;
        } else if name.eq_ignore_ascii_case(b"content-type") {
            head.events = value.starts_with(b"text/event-stream");
        } else if name.eq_ignore_ascii_case(b"mcp-session-id") {
            head.session = Some(String::from_utf8_lossy(value).into_owned());
        }
    }
    if matches!(head.status, 100..200 | 204 | 304) {
        head.framing = Framing::Length(0);
    }
    Some(head)
}

fn digits(text: &[u8]) -> usize {
    text.iter()
        .take_while(|b| b.is_ascii_digit())
        .fold(0, |n, b| n.saturating_mul(10) + usize::from(b - b'0'))
}

/// The answer that is coming in on a connection.
#[derive(Default)]
pub struct Incoming {
    head: Option<Head>,
    // Of a chunked body: what is decoded, and how far.
    body: Vec<u8>,
    at: usize,
}

/// A whole answer.
pub struct Answer<'a> {
    /// Its head.
    pub head: &'a Head,
    /// Its body, without chunks.
    pub body: &'a [u8],
}

impl Incoming {
    /// Look for a whole answer; the number is that of its bytes.
    ///
    /// # Errors
    /// What is wrong with its form.
    pub fn next<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Option<(Answer<'a>, usize)>, String> {
        if self.head.is_none() {
            self.head = head(bytes);
            self.at = self.head.as_ref().map_or(0, |h| h.len);
            self.body.clear();
        }
        let Some(head) = &self.head else { return Ok(None) };
        match head.framing {
            Framing::Length(n) => {
                let whole = head.len + n;
                let there = bytes.len() >= whole;
                Ok(there.then(|| (Answer { head, body: &bytes[head.len..whole] }, whole)))
            }
            Framing::Chunked => {
                let done = dechunk(bytes, &mut self.at, &mut self.body)?;
                Ok(done.then_some((Answer { head, body: &self.body }, self.at)))
            }
            Framing::Close => Err("an answer without length".into()),
        }
    }

    /// Ready for the next answer.
    pub fn reset(&mut self) {
        self.head = None;
    }
}

// Whole chunks go into `body`; true after the last.
fn dechunk(bytes: &[u8], at: &mut usize, body: &mut Vec<u8>) -> Result<bool, String> {
    loop {
        let rest = &bytes[*at..];
        let Some(line) = memmem::find(rest, b"\r\n") else { return Ok(false) };
        let size =
            std::str::from_utf8(&rest[..line]).ok().map(|s| s.split(';').next().unwrap_or(s));
        let size = size.and_then(|s| usize::from_str_radix(s.trim(), 16).ok());
        let size = size.ok_or("a chunk without a size")?;
        let end = line + 2 + size + 2;
        if rest.len() < end {
            return Ok(false);
        }
        body.extend_from_slice(&rest[line + 2..end - 2]);
        *at += end;
        if size == 0 {
            return Ok(true);
        }
    }
}

/// The message in a body: the body itself, or the last data of an event stream.
pub fn message<'a>(answer: &Answer<'a>) -> &'a [u8] {
    if !answer.head.events {
        return answer.body;
    }
    let mut rest = answer.body;
    let mut last: &[u8] = b"";
    while let Some(at) = memmem::find(rest, b"data:") {
        let line = &rest[at + 5..];
        let end = memchr::memchr(b'\n', line).unwrap_or(line.len());
        let data = line[..end].trim_ascii();
        if !data.is_empty() {
            last = data;
        }
        rest = &line[end..];
    }
    last
}

/// The letters of the text; their number is prime, so that a block that is lost or doubled shows.
const PERIOD: usize = 251;
/// Bytes of the text that are kept ready.
const KEPT: usize = (64 << 10) + 2 * PERIOD;

/// The text that answers carry: which byte stands where follows from the nonce.
pub struct Pattern(Vec<u8>);

impl Default for Pattern {
    fn default() -> Self {
        let letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
        Pattern((0..KEPT).map(|n| letters[(n % PERIOD * 7) % letters.len()]).collect())
    }
}

impl Pattern {
    /// The text for a nonce, in pieces.
    pub fn pieces(&self, nonce: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
        let start = nonce.iter().map(|b| usize::from(*b)).sum::<usize>() % PERIOD;
        // Pieces are whole periods, so that each begins at the same place.
        let piece = (KEPT - PERIOD) / PERIOD * PERIOD;
        (0..size).step_by(piece).map(move |at| &self.0[start..start + piece.min(size - at)])
    }

    /// Whether `text` is the text for a nonce, all of it.
    pub fn matches(&self, nonce: &[u8], text: &[u8]) -> bool {
        let mut rest = text;
        self.pieces(nonce, text.len()).all(|piece| {
            let (this, behind) = rest.split_at(piece.len());
            rest = behind;
            this == piece
        })
    }
}

/// A connection from an address of its own among the loopback ones: so ports do not run out.
///
/// # Errors
/// What the system says.
pub fn connect(to: std::net::SocketAddr, from: u8) -> io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType};
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    let own = std::net::SocketAddr::from(([127, 0, 1, from.max(1)], 0));
    rustix::net::bind(&socket, &own)?;
    rustix::net::connect(&socket, &to)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}
