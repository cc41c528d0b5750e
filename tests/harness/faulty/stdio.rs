//! Over stdin and stdout, a line a message.

use std::io::{BufRead as _, Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::table::{Fault, Tables};
use super::words::{Asked, GARBAGE, notice};
use super::{Log, Peer, die};

/// How much of a request is looked at before it is there as a whole.
const BEGINNING: usize = 4 << 10;
/// Pieces of a line that is sent slowly, or is long.
const PIECE: usize = 64 << 10;

pub fn run(peer: &Peer, tables: Tables, log: Option<Log>) {
    let log = log.map(Arc::new);
    flood(tables.clone());
    let mut input = std::io::stdin().lock();
    let mut line = Vec::new();
    loop {
        line.clear();
        // The beginning first: what is to end before its request has come must not wait for it.
        let n = (&mut input).take(BEGINNING as u64).read_until(b'\n', &mut line).unwrap_or(0);
        if n == 0 {
            return;
        }
        let table = tables.now();
        if !line.ends_with(b"\n") {
            let asked = Asked::guess(&line);
            let fault = table.fault(&asked);
            let again = fault.first && log.as_deref().is_some_and(|log| log.knows(&asked));
            if let Some(at) = fault.cut_request.filter(|_| !again) {
                note(log.as_deref(), &asked, fault);
                while line.len() < at {
                    let mut more = vec![0; PIECE.min(at - line.len())];
                    match input.read(&mut more) {
                        Ok(0) | Err(_) => break,
                        Ok(n) => line.extend_from_slice(&more[..n]),
                    }
                }
                die();
            }
            if input.read_until(b'\n', &mut line).unwrap_or(0) == 0 {
                return;
            }
        }
        let asked = Asked::read(&line);
        let mut fault = table.fault(&asked);
        if asked.is_request() {
            fault = note(log.as_deref(), &asked, fault);
        }
        if fault.cut_request.is_some() {
            die();
        }
        if !asked.is_request() {
            continue;
        }
        let tools = peer.tools;
        if fault.delay.is_zero() && fault.crawl.is_none() {
            answer(&asked, &fault, tools, log.as_deref());
        } else {
            let log = log.clone();
            std::thread::spawn(move || {
                std::thread::sleep(fault.delay);
                answer(&asked, &fault, tools, log.as_deref());
            });
        }
    }
}

fn note(log: Option<&Log>, asked: &Asked, fault: Fault) -> Fault {
    match log {
        Some(log) => log.arrival(asked, fault),
        None => fault,
    }
}

fn answer(asked: &Asked, fault: &Fault, tools: usize, log: Option<&Log>) {
    if fault.stall {
        return;
    }
    if let (Some(log), None) = (log, fault.status) {
        log.carry_out(asked);
    }
    let mut text = match fault.status {
        Some(code) => asked.refusal(code),
        None => asked.answer(tools),
    };
    if fault.garble {
        GARBAGE.clone_into(&mut text);
    }
    text.push('\n');
    if fault.duplicate {
        text = text.repeat(2);
    }
    let mut out = std::io::stdout().lock();
    if let Some(length) = fault.line {
        let piece = vec![b'x'; PIECE];
        let mut left = length;
        while left > 0 {
            let n = left.min(PIECE);
            if out.write_all(&piece[..n]).is_err() {
                die();
            }
            left -= n;
        }
        let _ = out.write_all(b"\n");
    }
    if let Some(at) = fault.cut {
        let _ = out.write_all(&text.as_bytes()[..at.min(text.len())]);
        let _ = out.flush();
        die();
    }
    if fault.crash {
        die();
    }
    if let Some(rate) = fault.crawl {
        for byte in text.as_bytes() {
            if out.write_all(&[*byte]).and_then(|()| out.flush()).is_err() {
                die();
            }
            std::thread::sleep(Duration::from_micros(1_000_000 / rate as u64));
        }
        return;
    }
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        die();
    }
}

// The row of `GET` says what comes unasked.
fn flood(tables: Tables) {
    std::thread::spawn(move || {
        let stream = Asked { method: "GET".to_owned(), ..Asked::default() };
        let (mut number, mut rate) = (u64::MAX, None);
        let (mut sent, mut since) = (0u64, Instant::now());
        loop {
            if tables.number() != number {
                number = tables.number();
                rate = tables.now().fault(&stream).flood;
                (sent, since) = (0, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(1));
            let Some(rate) = rate else { continue };
            let due = (since.elapsed().as_micros() * rate as u128 / 1_000_000) as u64;
            // What could not be sent in time is not sent afterwards.
            sent = sent.max(due.saturating_sub(rate as u64 / 10));
            let mut lines = String::new();
            while sent < due {
                lines.push_str(&notice(sent));
                lines.push('\n');
                sent += 1;
            }
            let mut out = std::io::stdout().lock();
            if out.write_all(lines.as_bytes()).and_then(|()| out.flush()).is_err() {
                die();
            }
        }
    });
}
