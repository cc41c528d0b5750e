//! MCP as values: frames, methods, revisions, error codes. No I/O, no clock, no async.
//!
//! A message is read only as far as its address: [`message::Frame`] keeps the bytes as they
//! came and remembers *where* the id, the method, the params and the result stand. What has to
//! change on the way is changed by [`splice::Splice`], which copies everything else untouched:
//! unknown fields, number text and key order survive because nothing parses them.
//!
//! *Canonical* means: as the newest revision says it (2026-07-28). Old peers are translated at
//! the edges and nothing between the edges asks which era a peer is of.

pub mod address;
pub mod capability;
pub mod error;
pub mod exchange;
pub mod flow;
pub mod form;
pub mod header;
pub mod idempotency;
pub mod json;
pub mod message;
pub mod meta;
pub mod method;
pub mod older;
pub mod param;
pub mod prepared;
pub mod revision;
pub mod splice;
pub mod sse;
pub mod task;
pub mod walk;
