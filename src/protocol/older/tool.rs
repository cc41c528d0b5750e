//! Tools for readers of a revision with a handshake.

use bytes::Bytes;

use super::{may_hold, members_at, value_of};
use crate::protocol::form::strip_members;
use crate::protocol::splice::Splice;
use crate::protocol::walk::says;

/// A tool as every revision before 2026-07-28 can read it: without an `outputSchema` whose root
/// is no object. Those revisions allow none (2025-11-25 schema, `Tool`), and there are clients
/// that refuse the whole list over one. What the tool then returns has a text copy of its own.
pub fn tool(raw: &Bytes) -> Bytes {
    if !may_hold(raw, &["outputSchema"]) {
        return raw.clone();
    }
    let members = members_at(raw, &(0..raw.len()));
    let Some(schema) = value_of(raw, &members, "outputSchema") else { return raw.clone() };
    let root = value_of(raw, &members_at(raw, &schema), "type");
    if root.is_some_and(|root| says(&raw[root], "object")) {
        return raw.clone();
    }
    let mut splice = Splice::new();
    for cut in strip_members(raw, &["outputSchema"]) {
        splice.replace(cut, b"".as_slice());
    }
    splice.apply(raw)
}
