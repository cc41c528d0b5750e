//! Over HTTP/1.1: an answer is JSON, and the stream of GET carries a flood.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::table::{Fault, Tables};
use super::words::{Asked, GARBAGE, notice};
use super::{Log, Peer, die};

/// How much of a request is looked at before it is taken.
const BEGINNING: usize = 8 << 10;
/// Pieces of what is long.
const PIECE: usize = 64 << 10;
/// How long the rest of a request's beginning may take.
const REST: Duration = Duration::from_millis(200);

struct World {
    tables: Tables,
    log: Option<Log>,
    tools: usize,
}

pub fn run(peer: &Peer, tables: Tables, log: Option<Log>) {
    let world = Arc::new(World { tables, log, tools: peer.tools });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ports = peer.ports.clone();
    runtime.block_on(async move {
        let mut all = Vec::new();
        for port in ports {
            let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free");
            let world = world.clone();
            all.push(tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let world = world.clone();
                    tokio::spawn(async move {
                        let _ = serve(stream, &world).await;
                    });
                }
            }));
        }
        for one in all {
            let _ = one.await;
        }
    });
}

async fn serve(mut stream: TcpStream, world: &World) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        let table = world.tables.now();
        // A request that is to be cut is looked at where it lies, and not taken.
        if table.asks() && buffer.is_empty() {
            let asked = peek(&stream).await?;
            let fault = table.fault(&asked);
            // Otherwise it is written down when it has been read.
            if fault.cut_request.is_some() && !(fault.first && world.knows(&asked)) {
                let fault = world.note(&asked, fault);
                take(&mut stream, fault.cut_request.unwrap_or(0)).await?;
                return end(stream, &fault);
            }
        }
        let Some((get, body)) = read(&mut stream, &mut buffer).await? else { return Ok(()) };
        if get {
            let asked = Asked { method: "GET".to_owned(), ..Asked::default() };
            let fault = world.note(&asked, table.fault(&asked));
            if fault.flood.is_none() && !fault.stall {
                stream.write_all(&whole(405, "")).await?;
                continue;
            }
            return live(stream, world).await;
        }
        let asked = Asked::read(&body);
        let fault = world.note(&asked, table.fault(&asked));
        if !fault.delay.is_zero() {
            tokio::time::sleep(fault.delay).await;
        }
        if fault.stall {
            let _ = stream.read_u8().await;
            return Ok(());
        }
        if let (Some(log), None) = (&world.log, fault.status) {
            log.carry_out(&asked);
        }
        let text = match (&fault, asked.is_request()) {
            (Fault { garble: true, .. }, _) => GARBAGE.to_owned(),
            (_, true) => asked.answer(world.tools),
            (_, false) => String::new(),
        };
        let usual = if asked.is_request() { 200 } else { 202 };
        let mut bytes = match fault.status {
            Some(status) => whole(status, ""),
            None => whole(usual, &text),
        };
        if let Some(length) = fault.line {
            return long(stream, length).await;
        }
        if fault.duplicate {
            bytes = bytes.repeat(2);
        }
        if let Some(at) = fault.cut {
            stream.write_all(&bytes[..at.min(bytes.len())]).await?;
            return end(stream, &fault);
        }
        if fault.crash {
            die();
        }
        if let Some(rate) = fault.crawl {
            for byte in bytes {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_micros(1_000_000 / rate as u64)).await;
            }
            continue;
        }
        stream.write_all(&bytes).await?;
    }
}

impl World {
    fn note(&self, asked: &Asked, fault: Fault) -> Fault {
        match &self.log {
            Some(log) => log.arrival(asked, fault),
            None => fault,
        }
    }

    fn knows(&self, asked: &Asked) -> bool {
        self.log.as_ref().is_some_and(|log| log.knows(asked))
    }
}

fn end(stream: TcpStream, fault: &Fault) -> io::Result<()> {
    if fault.crash {
        die();
    }
    if fault.reset {
        stream.set_zero_linger()?;
    }
    drop(stream);
    Ok(())
}

// The request that is coming, as much of it as is needed to know which it is.
async fn peek(stream: &TcpStream) -> io::Result<Asked> {
    let mut room = vec![0; BEGINNING];
    let end = Instant::now() + REST;
    let mut first = true;
    loop {
        let n = stream.peek(&mut room).await?;
        let bytes = &room[..n];
        let said = bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| &bytes[at + 4..]);
        if n == 0 || n == BEGINNING || (!first && Instant::now() > end) {
            return Ok(Asked::guess(said.unwrap_or_default()));
        }
        if let Some(body) = said
            && body.len() >= length_of(bytes)
        {
            return Ok(Asked::guess(body));
        }
        first = false;
        // There is something, and more must come: looking again would find the same at once.
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

async fn take(stream: &mut TcpStream, at: usize) -> io::Result<()> {
    let mut left = at;
    let mut room = vec![0; PIECE];
    while left > 0 {
        let n = left.min(PIECE);
        // A request that is shorter ends here as well.
        match tokio::time::timeout(REST, stream.read(&mut room[..n])).await {
            Ok(Ok(n)) if n > 0 => left -= n,
            _ => return Ok(()),
        }
    }
    Ok(())
}

// Whether it is a GET, and the body; `None` at the end.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<(bool, Vec<u8>)>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let whole = end + 4 + length_of(&buffer[..end + 4]);
            while buffer.len() < whole {
                if stream.read_buf(buffer).await? == 0 {
                    return Ok(None);
                }
            }
            let get = buffer.starts_with(b"GET");
            let body = buffer[end + 4..whole].to_vec();
            buffer.drain(..whole);
            return Ok(Some((get, body)));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn length_of(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head);
    let lines = head.lines().take_while(|l| !l.is_empty());
    let mut lengths = lines.filter_map(|l| {
        let (name, value) = l.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    lengths.next().unwrap_or(0)
}

fn whole(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

// One line of an event stream, which does not end for a long time.
async fn long(mut stream: TcpStream, length: usize) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: ";
    stream.write_all(head.as_bytes()).await?;
    let piece = vec![b'x'; PIECE];
    let mut left = length;
    while left > 0 {
        let n = left.min(PIECE);
        stream.write_all(&piece[..n]).await?;
        left -= n;
    }
    stream.write_all(b"\n\n").await
}

// The stream of GET, for as long as somebody listens.
async fn live(mut stream: TcpStream, world: &World) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let asked = Asked { method: "GET".to_owned(), ..Asked::default() };
    let (mut number, mut rate) = (u64::MAX, None);
    let (mut sent, mut since) = (0u64, Instant::now());
    loop {
        if world.tables.number() != number {
            number = world.tables.number();
            rate = world.tables.now().fault(&asked).flood;
            (sent, since) = (0, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let Some(rate) = rate else { continue };
        let due = (since.elapsed().as_micros() * rate as u128 / 1_000_000) as u64;
        // What could not be sent in time is not sent afterwards.
        sent = sent.max(due.saturating_sub(rate as u64 / 10));
        let mut events = String::new();
        while sent < due {
            events.push_str("data: ");
            events.push_str(&notice(sent));
            events.push_str("\n\n");
            sent += 1;
        }
        stream.write_all(events.as_bytes()).await?;
    }
}
