//! What it costs to read only the address of a message and carry the rest as bytes, beside reading
//! all of it. Interleaved rounds in one run, medians, and the ratio of the two: machines differ,
//! and so do their moods, but both sides have the same one.
//!
//! `cargo bench --bench envelope`
#![allow(missing_docs, clippy::print_stdout)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use weirkeeper::protocol::message::Frame;

/// Rounds of each side; an odd number has a middle.
const ROUNDS: usize = 31;
/// How long one round takes, so that a clock's tick is nothing in it.
const ROUND: Duration = Duration::from_millis(20);

fn message(size: usize) -> Bytes {
    let mut rows = Vec::new();
    let row = json!({"id": 1.50, "name": "Ada Lovelace", "tags": ["a", "b"], "open": true});
    let one = row.to_string().len();
    rows.resize((size / one).max(1), row);
    let call = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call",
        "params": {"name": "crm__import", "arguments": {"rows": rows}}});
    call.to_string().into()
}

/// Time per message in one round.
fn round(message: &Bytes, times: u32, work: &dyn Fn(&Bytes)) -> Duration {
    let began = Instant::now();
    for _ in 0..times {
        work(black_box(message));
    }
    began.elapsed() / times
}

/// How often it takes to fill a round.
fn times(message: &Bytes, work: &dyn Fn(&Bytes)) -> u32 {
    let began = Instant::now();
    let mut times = 0;
    while began.elapsed() < ROUND {
        work(black_box(message));
        times += 1;
    }
    times
}

fn main() {
    let scan: &dyn Fn(&Bytes) = &|m| {
        black_box(Frame::scan(m.clone()).expect("a valid message"));
    };
    let parse: &dyn Fn(&Bytes) = &|m| {
        let value: Value = serde_json::from_slice(m).expect("a valid message");
        black_box(serde_json::to_vec(&value).expect("a value serialises"));
    };
    println!("{:>12} {:>14} {:>16} {:>8}", "bytes", "scan", "read and write", "ratio");
    for size in [128, 10_000, 1_000_000] {
        let message = message(size);
        let (scans, parses) = (times(&message, scan), times(&message, parse));
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            a.push(round(&message, scans, scan));
            b.push(round(&message, parses, parse));
        }
        a.sort();
        b.sort();
        let (a, b) = (a[ROUNDS / 2], b[ROUNDS / 2]);
        let ratio = b.as_secs_f64() / a.as_secs_f64();
        println!("{:>12} {a:>14.2?} {b:>16.2?} {ratio:>8.1}", message.len());
    }
}
