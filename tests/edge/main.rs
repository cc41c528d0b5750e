//! The HTTP edge from outside: the built program, bytes on a socket, and what comes back. No
//! upstream is needed; the gateway's own tools are enough to call.
#![allow(clippy::unwrap_used)]

#[path = "../harness/mod.rs"]
mod harness;

mod bad_input;
mod bounds;
mod doors;
mod ends;
mod handed;
mod legacy;
mod modern;
mod refusals;
mod streams;
mod wire;
