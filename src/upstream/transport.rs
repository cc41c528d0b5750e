//! The ways to an upstream. A wire carries messages and pairs answers with requests; it knows
//! nothing of names, views, eras or guards.
//!
//! There are two: a [`http::HttpWire`], where each request has a response of its own, and a
//! [`pipe::Pipe`], where all messages share one connection: the pipes of a child ([`stdio`]), a
//! [`websocket`], or HTTP+SSE ([`sse`]). Both have the same shape: `request` sends one request and
//! returns its one answer, hands the notifications that belong to it to `on_notice` while it runs,
//! and tells the upstream when it is dropped before the answer came. What the upstream says unasked
//! goes to the receiver of [`Unasked`] that the wire was started with.

pub mod http;
mod pace;
pub mod pipe;
pub mod sse;
pub mod stdio;
pub mod websocket;

use crate::protocol::message::Frame;

/// Called with each notification that belongs to a running request; must not block.
pub type OnNotice<'a> = &'a (dyn Fn(Frame) + Send + Sync);

/// What an upstream says without being asked, or not in answer to any running request.
#[derive(Debug)]
pub enum Unasked {
    /// A request to us (`ping`, `sampling/createMessage`, …); the wire's owner answers it.
    Request(Frame),
    /// A notification tied to no running request (`notifications/tools/list_changed`, …).
    Notification(Frame),
}

/// Most [`Unasked`] messages that wait to be looked at; further notifications are dropped and
/// counted, so that a flooding upstream costs a counter and no memory.
pub const UNASKED_MAX: usize = 1024;
