//! A child driven over its pipes, with so many calls in flight: what it can do without a gateway.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use memchr::memchr;
use serde_json::json;

use crate::ask::{Check, Request};
use crate::job::{Ask, Era, Report};
use crate::upstream::put_number;

/// As ids in the load role: ten digits.
const FIRST_ID: usize = 1_000_000_000;
/// Bytes read at once.
const READ: usize = 64 << 10;

/// Drive it.
///
/// # Errors
/// What went wrong.
pub fn run(
    command: &[String],
    upstream: &str,
    flight: usize,
    seconds: f64,
) -> Result<Report, String> {
    let text = |e: std::io::Error| e.to_string();
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(text)?;
    let mut to = child.stdin.take().ok_or("no pipe")?;
    let mut from = child.stdout.take().ok_or("no pipe")?;
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params":
        {"protocolVersion": Era::Legacy.revision(), "capabilities": {},
         "clientInfo": {"name": "load", "version": "1"}}});
    to.write_all(format!("{hello}\n").as_bytes()).map_err(text)?;
    let mut buffer = vec![0; READ];
    let n = from.read(&mut buffer).map_err(text)?;
    if memchr(b'\n', &buffer[..n]).is_none() {
        return Err("no handshake".into());
    }
    let ask = Ask::Call { size: 128, sse: false, delay_ms: 0 };
    let check = Check::new(ask.clone());
    let mut request = Request::line(&ask, "echo", upstream);
    let mut report = Report::default();
    let (mut next, mut answered) = (FIRST_ID, FIRST_ID);
    let (mut out, mut inbox) = (Vec::new(), Vec::new());
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(seconds);
    loop {
        let open = Instant::now() < end;
        while open && next - answered < flight {
            if let Some(at) = request.id_at {
                put_number(&mut request.bytes[at..at + 10], next);
            }
            out.extend_from_slice(&request.bytes);
            next += 1;
        }
        to.write_all(&out).map_err(text)?;
        out.clear();
        if next == answered {
            break;
        }
        let n = from.read(&mut buffer).map_err(text)?;
        if n == 0 {
            return Err("the child has ended".into());
        }
        inbox.extend_from_slice(&buffer[..n]);
        let mut done = 0;
        while let Some(end) = memchr(b'\n', &inbox[done..]) {
            let line = &inbox[done..done + end];
            match check.message(line, &request, answered as u64, request.nonce()) {
                Ok(()) => report.calls += 1,
                Err(e) => report.wrong(|| e.to_owned()),
            }
            answered += 1;
            done += end + 1;
        }
        inbox.drain(..done);
    }
    report.seconds = began.elapsed().as_secs_f64();
    drop(to);
    let _ = child.wait();
    Ok(report)
}
