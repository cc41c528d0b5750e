//! The role that stands for the upstreams: several mock servers on ports of their own, in one
//! process with one thread, over plain sockets and epoll. A call costs about three microseconds.

use std::collections::BinaryHeap;
use std::io::{Read as _, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::job::Mock;
use crate::mock::{Said, Server};
use crate::wire::{self, Framing, Got, Inbox};

/// Events taken at once.
const EVENTS: usize = 256;
/// The token of the pipe to who started this; its end is ours.
const PIPE: u64 = u64::MAX;
/// Tokens of connections begin here, those of listeners are below.
const FIRST: u64 = 1 << 16;

struct Connection {
    stream: TcpStream,
    inbox: Inbox,
    out: Vec<u8>,
    sent: usize,
    server: usize,
    // Told apart from an earlier one in the same place.
    number: u64,
    waits_to_write: bool,
    // Carries what comes unasked.
    is_stream: bool,
}

// An answer that is due later; the soonest is the greatest.
struct Late {
    at: Instant,
    place: usize,
    number: u64,
    bytes: Vec<u8>,
}

impl PartialEq for Late {
    fn eq(&self, other: &Late) -> bool {
        self.at == other.at
    }
}
impl Eq for Late {}
impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Late) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Late {
    fn cmp(&self, other: &Late) -> std::cmp::Ordering {
        other.at.cmp(&self.at)
    }
}

/// Serve until the pipe to our parent ends. The first line on stdout names the ports.
///
/// # Errors
/// What the system says.
pub fn run(mocks: Vec<Mock>) -> std::io::Result<()> {
    let servers: Vec<Server> = mocks.into_iter().map(Server::new).collect();
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut listeners = Vec::new();
    for place in 0..servers.len() {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        epoll::add(&poll, &listener, EventData::new_u64(place as u64), EventFlags::IN)?;
        listeners.push(listener);
    }
    let stdin = std::io::stdin();
    epoll::add(&poll, &stdin, EventData::new_u64(PIPE), EventFlags::IN)?;
    let ports: Vec<u16> =
        listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect::<std::io::Result<_>>()?;
    println!("{}", serde_json::to_string(&ports)?);

    let mut role = Role {
        servers,
        poll,
        connections: Vec::new(),
        free: Vec::new(),
        count: 0,
        late: BinaryHeap::new(),
    };
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    loop {
        let patience = role.late.peek().map(|l| {
            let left = l.at.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        events.clear();
        match epoll::wait(
            &role.poll,
            rustix::buffer::spare_capacity(&mut events),
            patience.as_ref(),
        ) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        for event in &events {
            let token = event.data.u64();
            if token == PIPE {
                let mut word = [0; 64];
                let n = stdin.lock().read(&mut word).unwrap_or(0);
                if n == 0 {
                    return Ok(());
                }
                let servers = word[..n].split(|b| *b == b'\n');
                let servers = servers.filter_map(|w| std::str::from_utf8(w).ok()?.parse().ok());
                servers.for_each(|server| role.change(server));
            } else if token < FIRST {
                role.accept(&listeners[token as usize], token as usize)?;
            } else {
                role.serve((token - FIRST) as usize);
            }
        }
        role.say_late();
    }
}

struct Role {
    servers: Vec<Server>,
    poll: std::os::fd::OwnedFd,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    count: u64,
    late: BinaryHeap<Late>,
}

impl Role {
    fn accept(&mut self, listener: &TcpListener, server: usize) -> std::io::Result<()> {
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let place = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let token = EventData::new_u64(FIRST + place as u64);
            epoll::add(&self.poll, &stream, token, EventFlags::IN)?;
            self.count += 1;
            self.connections[place] = Some(Connection {
                stream,
                inbox: Inbox::default(),
                out: Vec::new(),
                sent: 0,
                server,
                number: self.count,
                waits_to_write: false,
                is_stream: false,
            });
        }
        Ok(())
    }

    // Change a server's list and tell whoever listens.
    fn change(&mut self, server: usize) {
        let Some(notice) = self.servers.get_mut(server).map(Server::change) else { return };
        let mut event = b"event: message\ndata: ".to_vec();
        event.extend_from_slice(notice);
        event.extend_from_slice(b"\n\n");
        for place in 0..self.connections.len() {
            let connection = self.connections[place].as_mut();
            let Some(connection) = connection.filter(|c| c.is_stream && c.server == server) else {
                continue;
            };
            connection.out.extend_from_slice(format!("{:x}\r\n", event.len()).as_bytes());
            connection.out.extend_from_slice(&event);
            connection.out.extend_from_slice(b"\r\n");
            self.flush(place, true);
        }
    }

    fn serve(&mut self, place: usize) {
        let Some(connection) = &mut self.connections[place] else { return };
        let read = match connection.inbox.read(&mut connection.stream) {
            Ok(Got::Some) => {
                let server = &self.servers[connection.server];
                connection.answer_all(server, place, &mut self.late)
            }
            Ok(Got::Later) => true,
            Ok(Got::End) | Err(_) => false,
        };
        self.flush(place, read);
    }

    fn flush(&mut self, place: usize, alive: bool) {
        let Some(connection) = &mut self.connections[place] else { return };
        if !(alive && connection.write().is_ok()) {
            self.connections[place] = None;
            self.free.push(place);
            return;
        }
        let waits = connection.sent < connection.out.len();
        if waits != connection.waits_to_write {
            connection.waits_to_write = waits;
            let flags = if waits { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            let token = EventData::new_u64(FIRST + place as u64);
            let _ = epoll::modify(&self.poll, &connection.stream, token, flags);
        }
    }

    fn say_late(&mut self) {
        while self.late.peek().is_some_and(|l| l.at <= Instant::now()) {
            let Some(late) = self.late.pop() else { return };
            if let Some(Some(connection)) = self.connections.get_mut(late.place)
                && connection.number == late.number
            {
                connection.out.extend_from_slice(&late.bytes);
                self.flush(late.place, true);
            }
        }
    }
}

impl Connection {
    // All requests that are there; false if one makes no sense.
    fn answer_all(&mut self, server: &Server, place: usize, late: &mut BinaryHeap<Late>) -> bool {
        loop {
            let bytes = self.inbox.bytes();
            let Some(head) = wire::head(bytes) else { return true };
            let Framing::Length(length) = head.framing else { return false };
            let whole = head.len + length;
            if bytes.len() < whole {
                return true;
            }
            let delay = if bytes.starts_with(b"POST") {
                respond(server, &bytes[head.len..whole], &mut self.out)
            } else if bytes.starts_with(b"DELETE") {
                self.out.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                None
            } else if bytes.starts_with(b"GET") && server.streams() {
                self.out.extend_from_slice(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n",
                );
                self.is_stream = true;
                None
            } else {
                let no = b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n";
                self.out.extend_from_slice(no);
                None
            };
            self.inbox.consume(whole);
            if let Some((from, delay_ms)) = delay {
                let bytes = self.out.split_off(from);
                let at = Instant::now() + Duration::from_millis(delay_ms);
                late.push(Late { at, place, number: self.number, bytes });
            }
        }
    }

    fn write(&mut self) -> std::io::Result<()> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }
}

// Append the response; where it begins and how long it waits, if it does.
fn respond(server: &Server, message: &[u8], out: &mut Vec<u8>) -> Option<(usize, u64)> {
    // The body is written first and then moved behind its head, whose length is fixed.
    const JSON: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 0000000000\r\n\r\n";
    const DIGITS: usize = 10;
    const EVENTS: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n00000000\r\nevent: message\ndata: ";
    const EVENT: usize = b"event: message\ndata: ".len();
    let sse = memchr::memmem::find(message, b"\"sse\":true").is_some();
    let begin = out.len();
    let head = if sse { EVENTS } else { JSON };
    out.extend_from_slice(head);
    let body = out.len();
    let said = server.answer(message, out);
    let length = out.len() - body;
    match said {
        Said::Message { sse: true, .. } => {
            out.extend_from_slice(b"\n\n\r\n0\r\n\r\n");
            let size = format!("{:08x}", EVENT + length + 2);
            let at = body - EVENT - 2 - 8;
            out[at..at + 8].copy_from_slice(size.as_bytes());
        }
        Said::Message { sse: false, .. } => {
            let at = body - 4 - DIGITS;
            put_number(&mut out[at..at + DIGITS], length);
        }
        Said::Nothing => {
            out.truncate(begin);
            out.extend_from_slice(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n");
        }
        Said::Welcome | Said::Refusal(_) => {
            let body = out.split_off(body);
            out.truncate(begin);
            let (status, more) = match said {
                Said::Refusal(status) => (status, String::new()),
                _ => (200, format!("Mcp-Session-Id: mock-{begin}-{length}\r\n")),
            };
            let head = format!(
                "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\n\r\n",
                body.len()
            );
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(&body);
        }
    }
    match said {
        Said::Message { delay_ms, .. } if delay_ms > 0 => Some((begin, delay_ms)),
        _ => None,
    }
}

/// Write `n` with leading zeros.
pub fn put_number(place: &mut [u8], mut n: usize) {
    for byte in place.iter_mut().rev() {
        *byte = b'0' + (n % 10) as u8;
        n /= 10;
    }
}
