//! As much HTTP/1.1 as the two peers of a measured gateway need: blocking, one connection at a
//! time, bodies with a length.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

/// One end of a connection.
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A request or response as it came.
pub struct Heard {
    /// Request or status line, then one header a line.
    pub head: String,
    /// All of the body.
    pub body: Vec<u8>,
}

impl Heard {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|l| l.split_once(':'));
        lines.filter(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).next()
    }

    /// Whether the first line has this word: the verb of a request, the status of a response.
    pub fn says(&self, word: &str) -> bool {
        self.head.lines().next().is_some_and(|l| l.split(' ').any(|w| w == word))
    }
}

impl Wire {
    /// Over this connection.
    pub fn new(stream: TcpStream) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        Ok(Wire { stream, buffer: Vec::new() })
    }

    /// Send it in one piece.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next request or response; `None` when the other end has closed.
    pub fn next(&mut self) -> io::Result<Option<Heard>> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let rest = self.buffer.split_off(end + 4);
                let head = String::from_utf8_lossy(&self.buffer).into_owned();
                self.buffer = rest;
                let mut heard = Heard { head, body: Vec::new() };
                let length = heard.header("content-length").map_or(Ok(0), str::parse);
                let length: usize = length.map_err(io::Error::other)?;
                while self.buffer.len() < length {
                    if !self.more()? {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                let rest = self.buffer.split_off(length);
                heard.body = std::mem::replace(&mut self.buffer, rest);
                return Ok(Some(heard));
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    fn more(&mut self) -> io::Result<bool> {
        let mut piece = [0; 16 << 10];
        let n = self.stream.read(&mut piece)?;
        self.buffer.extend_from_slice(&piece[..n]);
        Ok(n > 0)
    }
}
