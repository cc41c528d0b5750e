//! Weirkeeper: a federating MCP proxy. One endpoint in front of many MCP servers.
//!
//! > A **consumer** makes a **call**; its **view** of the **catalog** gives a **route**; the
//! > route's **upstream** carries the call, under its **guard**, over a **link**; the
//! > **terminal** goes back and a **record** stays. All of it is read from one immutable
//! > **snapshot**, and one thread writes snapshots.
//!
//! # The walk of one call
//!
//! ```text
//!  bytes in                                                               bytes out
//!     │                                                                       ▲
//!     ▼                                                                       │
//!  downstream/http.rs     host, origin, key, body, era      downstream/render.rs
//!     │ (or stdio.rs)     message → Call                    terminal → message
//!     ▼                                                                       ▲
//!  gateway.rs             admit; open the record            close the record  │
//!     ▼                                                                       │
//!  gateway/router.rs      method table × view → Plan                          │
//!     ├─ Answer ───────── lists, discover: prepared bytes from memory ────────┤
//!     └─ Forward(Route)                                                       │
//!          ▼                                                                  │
//!  upstream.rs            guard: breaker · concurrency · limiter · deadline · retry
//!          ▼                                                                  │
//!  upstream/link.rs       exchange address, id and `_meta`; send; wait ─ Terminal
//! ```
//!
//! # What is true because it is absent
//!
//! - No list, handshake or discovery asks an upstream: `gateway` has no way to fan out.
//! - Nothing between the edges asks which era a peer is of; a result travels in the form it came
//!   in and is reworded at the edge only if the caller's era needs it.
//! - No [`catalog::view::Route`] without a view: what a consumer does not see it cannot call, and
//!   "unknown" and "forbidden" are the same answer.
//! - No link outside [`upstream`]: `send` takes a route and goes through the guard.
//! - A module names only modules above it in this file (`tests/tidy.rs` checks each `use`).
//!
//! # Decided
//!
//! *Where rmcp sits* (2026-11-21). In the tests, as the peer at both ends; not in the data path.
//! Its services and transports are typed from end to end: a message that goes through them loses
//! what the types don't know (fields of tools and results, number text, ids such as `1.0`), and
//! costs about ten times a borrowed scan. `rmcp_spike` in `tests/rmcp.rs` holds the losses against
//! the version in use; when it fails the decision is worth another look. Rejected: rmcp's client
//! under a typed façade with raw bytes beside it: two truths about one message.
//!
//! *How links are shared* (2026-11-21). One link per upstream, shared by all consumers, which
//! declares no client capabilities to an old upstream: what is asked on it is refused, never
//! broadcast. A caller that can be asked gets a conversation of its owner (`isolation`), made when
//! first needed. Rejected: a link per session for all, which starts a process per client for every
//! stdio server.
//!
//! *Who is asked, and how* (2026-11-21). A call has one way back, for notices and questions
//! ([`call::Notices`]); the upstream's edge puts questions in, the client's edge takes them out in
//! its own words. A call whose caller has to come back with the answer is parked whole, upstream
//! and all. Rejected: translating each pair of eras, which is four bridges instead of two ends.
//!
//! *Children have a supervisor* (2026-11-21). A stdio upstream is started by a tiny copy of this
//! program that adopts every descendant and ends them when the gateway is gone, however it went.
//! Rejected: a process group alone, which a grandchild leaves with `setsid`.

// In dependency order.
pub mod aside;
pub mod place;
pub mod timer;
pub mod wire;
pub mod protocol;
pub mod failure;
pub mod config;
pub mod seal;
pub mod shim;
pub mod package;
pub mod guard;
pub mod observe;
pub mod call;
pub mod catalog;
pub mod identity;
pub mod upstream;
pub mod gateway;
pub mod control;
pub mod downstream;
pub mod bridge;
pub mod admin;
pub mod app;
pub mod cli;
