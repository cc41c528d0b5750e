//! Sessions that are held open, each with its stream, and one large answer that is read slowly.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::Client;
use crate::job::{Era, Report, Route};
use crate::wire::{self, Incoming, Pattern};

/// How long a stream may take to open.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections from one loopback address: few enough that its ports do not run out, with those of
/// earlier rounds still closing.
const PER_ADDRESS: usize = 500;
/// Bytes of a slow reader's buffer.
const SIP: usize = 256 << 10;

/// Sessions, each on a connection of its own that carries its stream.
#[derive(Default)]
pub struct Sessions {
    open: Vec<(String, TcpStream)>,
    end: Option<(Route, Option<String>)>,
    // So that no round takes the addresses of the one before.
    opened: usize,
}

impl Sessions {
    /// Open more.
    ///
    /// # Errors
    /// What went wrong with the first that failed.
    pub fn open(&mut self, route: Route, key: Option<String>, count: usize) -> Result<(), String> {
        for _ in 0..count {
            let from = (self.opened / PER_ADDRESS % 200 + 1) as u8;
            self.opened += 1;
            let client = Client::new(route.addr, &route.path, key.as_deref(), Era::Legacy, from)?;
            let session = client.session().ok_or("no session")?.to_owned();
            let mut stream = client.into_stream();
            let request = bare("GET", &route, key.as_deref(), &session, "text/event-stream");
            stream.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
            let status = status(&mut stream)?;
            if status != 200 {
                return Err(format!("a stream was answered with HTTP {status}"));
            }
            self.open.push((session, stream));
        }
        self.end = Some((route, key));
        Ok(())
    }

    /// End all: each is deleted and its connection closed.
    ///
    /// # Errors
    /// What went wrong with the first that failed.
    pub fn end(&mut self) -> Result<(), String> {
        let Some((route, key)) = self.end.take() else { return Ok(()) };
        let mut other = wire::connect(route.addr, 250).map_err(|e| e.to_string())?;
        other.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
        for (session, stream) in self.open.drain(..) {
            let request = bare("DELETE", &route, key.as_deref(), &session, "application/json");
            other.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
            let status = status(&mut other)?;
            if !(200..300).contains(&status) {
                return Err(format!("the end of a session was answered with HTTP {status}"));
            }
            drop(stream);
        }
        Ok(())
    }
}

fn bare(method: &str, route: &Route, key: Option<&str>, session: &str, accept: &str) -> String {
    let key = key.map(|k| format!("Authorization: Bearer {k}\r\n")).unwrap_or_default();
    format!(
        "{method} {} HTTP/1.1\r\nHost: {}\r\nAccept: {accept}\r\n{key}Mcp-Session-Id: {session}\r\n\
         MCP-Protocol-Version: {}\r\n\r\n",
        route.path,
        route.addr,
        Era::Legacy.revision()
    )
}

// Of an answer whose body is of no interest, or is a stream that goes on.
fn status(stream: &mut TcpStream) -> Result<u16, String> {
    let mut bytes = vec![0; 4096];
    let mut len = 0;
    loop {
        match stream.read(&mut bytes[len..]) {
            Ok(0) => return Err("the connection was closed".into()),
            Ok(n) => len += n,
            Err(e) => return Err(e.to_string()),
        }
        if let Some(head) = wire::head(&bytes[..len]) {
            return Ok(head.status);
        }
    }
}

/// Ask for one answer of `size` bytes of text and read it at `pace` bytes a second.
///
/// # Errors
/// What went wrong before the answer.
pub fn large(route: &Route, key: Option<&str>, size: usize, pace: usize) -> Result<Report, String> {
    const NONCE: &str = "0123456789abcdef";
    let client = Client::new(route.addr, &route.path, key, Era::Legacy, 1)?;
    let session = client.session().map(str::to_owned);
    let mut stream = client.into_stream();
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params":
        {"name": route.tool, "arguments": {"nonce": NONCE, "size": size}}});
    let request = crate::client::request(
        (route.addr, &route.path),
        key,
        session.as_deref(),
        Era::Legacy,
        None,
        &body.to_string(),
    );
    stream.write_all(&request).map_err(|e| e.to_string())?;
    let began = Instant::now();
    let mut report = Report::default();
    let mut all = Vec::with_capacity(size + SIP);
    let mut sip = vec![0; SIP];
    let mut incoming = Incoming::default();
    loop {
        let n = stream.read(&mut sip).map_err(|e| format!("after {} bytes: {e}", all.len()))?;
        if n == 0 {
            return Err(format!("the connection was closed after {} bytes", all.len()));
        }
        all.extend_from_slice(&sip[..n]);
        // Only what may be the whole is looked at.
        if all.len() < size && all.len() > SIP {
            let due = Duration::from_secs_f64(all.len() as f64 / pace as f64);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            continue;
        }
        let Some((answer, _)) = incoming.next(&all)? else { continue };
        report.seconds = began.elapsed().as_secs_f64();
        report.bytes = answer.body.len();
        let message = wire::message(&answer);
        match text(message) {
            Some(text) => {
                let begin = format!("{} {NONCE} ", route.upstream);
                let right = text.strip_prefix(begin.as_bytes()).is_some_and(|rest| {
                    rest.len() == size && Pattern::default().matches(NONCE.as_bytes(), rest)
                });
                if right { report.calls = 1 } else { report.wrong(|| "another text".into()) }
            }
            None => report
                .wrong(|| String::from_utf8_lossy(&message[..message.len().min(300)]).into_owned()),
        }
        return Ok(report);
    }
}

fn text(message: &[u8]) -> Option<&[u8]> {
    crate::mock::field(message, b"\"text\":\"")
}
