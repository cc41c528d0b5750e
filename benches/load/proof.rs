//! Before answers are trusted, that the check of answers is worth something: what is right passes,
//! and anything that is changed does not.

use std::net::SocketAddr;

use crate::ask::{Check, Request};
use crate::job::{Ask, Era, Mock, Route};
use crate::mock::Server;
use crate::wire::Incoming;

/// Bytes of text: more than one piece of the pattern.
const SIZE: usize = 100_000;
const ID: u64 = 1_000_000_000;

/// Check the check.
///
/// # Errors
/// What it let through, or refused.
pub fn prove() -> Result<(), String> {
    let mock = Mock { name: "u3".into(), tools: 1, era: Era::Legacy };
    let addr = SocketAddr::from(([127, 0, 0, 1], 1));
    let route = Route { addr, path: "/".into(), tool: "echo".into(), upstream: mock.name.clone() };
    let ask = Ask::Call { size: SIZE, sse: false, delay_ms: 0 };
    let request = Request::new(&ask, &route, None, None, Era::Legacy);
    let mut right = b"HTTP/1.1 200 OK\r\nContent-Length: 0000000000\r\n\r\n".to_vec();
    let head = right.len();
    Server::new(mock).answer(&request.bytes, &mut right);
    let length = right.len() - head;
    crate::upstream::put_number(&mut right[head - 14..head - 4], length);
    let mut check = Check::new(ask);
    let mut passes = |bytes: &[u8], id: u64, nonce: &[u8]| {
        let mut incoming = Incoming::default();
        let answer = incoming.next(bytes).ok().flatten();
        answer.is_some_and(|(answer, _)| check.check(&answer, &request, id, nonce).is_ok())
    };
    let nonce = request.nonce();
    if !passes(&right, ID, nonce) {
        return Err("the check refuses what is right".into());
    }
    if passes(&right, ID + 1, nonce) || passes(&right, ID, b"nonce-9876543210") {
        return Err("the check takes another call's answer".into());
    }
    // The status, the upstream's name, and bytes all over the text, its last among them.
    let text = right.len() - SIZE - b"\"}],\"isError\":false}}".len();
    let name = text - nonce.len() - 2;
    let places = (0..SIZE).step_by(997).map(|at| text + at);
    for at in places.chain([9, name, text + SIZE - 1]) {
        let before = right[at];
        right[at] ^= 1;
        let passed = passes(&right, ID, nonce);
        right[at] = before;
        if passed {
            return Err(format!("the check does not see byte {at}"));
        }
    }
    Ok(())
}
