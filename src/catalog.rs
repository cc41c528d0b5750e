//! What all upstreams together offer: an immutable, numbered value without any I/O.
//!
//! ```text
//! list pages ──▶ slice ──▶ merge ──▶ view ──▶ list pages, routes
//!  (one upstream's)  │   (names given,  (what one
//!                    ▼    collisions)    consumer may see)
//!                  keep (on disk)
//! ```
//!
//! * [`naming`] gives public names and URIs and takes URIs apart; nothing else does.
//! * [`mod@slice`] is what one upstream said, item by item, as it said it.
//! * [`merge`] joins the slices in the order of the configuration. What an unchanged slice was
//!   turned into is taken over from the catalog before.
//! * [`view`] answers lists and resolves names. One rule decides both, so what is seen can be
//!   called and what is not seen cannot: a [`view::Route`] comes from nowhere else.
//! * [`freshness`] is how sure we are of a slice, and how we tell.
//! * [`keep`] remembers the last slices over a restart.
//!
//! The catalog does not know how an upstream is reached, or whether it is up.

pub mod facts;
pub mod freshness;
pub mod keep;
pub mod merge;
pub mod naming;
mod shelf;
pub mod slice;
pub mod view;

#[cfg(test)]
pub(crate) mod testing;
