//! The key by which an upstream knows a call again: with it a write may be repeated, since the
//! upstream carries it out once however often it comes.
//!
//! One key for each call of a client, the same in each attempt, and never the same in two calls.
//! One that the agent gave itself is kept.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hyper::header::HeaderValue;

use crate::call::Call;
use crate::catalog::view::Route;
use crate::config::KeyPlace;
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::idempotency::{Said, look};
use crate::protocol::splice::{Edit, edited};

use super::link::Link;
use super::mirror::Header;

/// The key of one call.
#[derive(Debug)]
pub struct Key {
    way: Way,
    /// A request with it has gone, and nothing has come of it that must not come again: an attempt
    /// that fails now may be repeated.
    pub repeatable: AtomicBool,
    // An answer came: whatever else the call takes, it is not begun anew.
    answered: AtomicBool,
}

#[derive(Debug)]
enum Way {
    /// The agent's own argument.
    Given,
    /// An edit on the params.
    Filled(Edit),
    Header(Header),
}

impl Key {
    /// The key of a call, if it can carry one. `None`: it cannot, so that it must not be repeated.
    pub fn of(place: &KeyPlace, route: &Route, call: &Call) -> Option<Key> {
        if call.method.name != "tools/call" || call.task.is_some() {
            return None;
        }
        let way = match place {
            KeyPlace::Argument(_) if !route.declares_key() => return None,
            KeyPlace::Argument(argument) => {
                let params = call.frame.params()?;
                match look(&params, argument, "") {
                    Said::Key => Way::Given,
                    Said::Odd => return None,
                    Said::Nothing(..) => match look(&params, argument, &of_call(call)?) {
                        Said::Nothing(range, with) => Way::Filled((range, with)),
                        Said::Key | Said::Odd => return None,
                    },
                }
            }
            KeyPlace::Header(name) => {
                Way::Header((name.clone(), HeaderValue::from_str(&of_call(call)?).ok()?))
            }
        };
        Some(Key { way, repeatable: AtomicBool::new(false), answered: AtomicBool::new(false) })
    }

    /// What is put into the params.
    pub fn edit(&self) -> Option<Edit> {
        match &self.way {
            Way::Filled(edit) => Some(edit.clone()),
            Way::Given | Way::Header(_) => None,
        }
    }

    /// The params with it.
    pub fn params(&self, params: Bytes) -> Bytes {
        match &self.way {
            Way::Filled(edit) => edited(&params, [edit.clone()]),
            Way::Given | Way::Header(_) => params,
        }
    }

    /// The header that carries it.
    pub fn header(&self) -> Option<&Header> {
        match &self.way {
            Way::Header(header) => Some(header),
            Way::Given | Way::Filled(_) => None,
        }
    }

    /// A request with it is about to leave on this link.
    ///
    /// # Errors
    /// When an earlier one carried the key and this link cannot: the upstream would not know the
    /// call again.
    pub fn leaves_on(&self, link: &Link) -> Result<(), Fault> {
        self.leaves(link.wire.is_pipe())
    }

    fn leaves(&self, pipe: bool) -> Result<(), Fault> {
        if self.answered.load(Ordering::Relaxed) {
            return Ok(());
        }
        let carried = self.header().is_none() || !pipe;
        let before = self.repeatable.swap(carried, Ordering::Relaxed);
        if before && !carried {
            let text = "the upstream is now reached in a way that carries no idempotency key";
            return Err(Fault::new(Reason::ConnectionLost, Delivery::Unknown, text));
        }
        Ok(())
    }

    /// An answer came: what happens from now on is not to be begun anew.
    pub fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
        self.repeatable.store(false, Ordering::Relaxed);
    }
}

// The call's earlier rounds had one already (2026-07-28 basic/patterns/mrtr).
fn of_call(call: &Call) -> Option<String> {
    let key = call.earlier.as_ref().and_then(|earlier| earlier.key.as_deref());
    let key = match key {
        Some(key) => key.to_owned(),
        None => fresh()?,
    };
    let _ = call.key.set(key.as_str().into());
    Some(key)
}

// A version 4 UUID (RFC 9562, section 5.4), the form that most vendors ask for: 122 random bits.
// Without randomness there is no key, and no repetition.
fn fresh() -> Option<String> {
    use std::fmt::Write as _;
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).ok()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut out = String::with_capacity(36);
    for (n, byte) in bytes.iter().enumerate() {
        if matches!(n, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        let _ = write!(out, "{byte:02x}");
    }
    Some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_is_not_begun_anew_whatever_is_sent_after() {
        let name = hyper::header::HeaderName::from_static("idempotency-key");
        let way = Way::Header((name, HeaderValue::from_static("k")));
        let key = Key { way, repeatable: AtomicBool::default(), answered: AtomicBool::default() };
        let repeatable = || key.repeatable.load(Ordering::Relaxed);
        assert!(!repeatable());
        // A pipe carries no header; where one has gone with it, the next must too.
        assert!(key.leaves(true).is_ok() && !repeatable());
        assert!(key.leaves(false).is_ok() && repeatable());
        assert_eq!(key.leaves(true).unwrap_err().delivery, Delivery::Unknown);
        assert!(key.leaves(false).is_ok() && repeatable());
        key.answered();
        // The rounds that follow carry it as well.
        assert!(key.leaves(false).is_ok() && !repeatable());
        assert!(key.leaves(true).is_ok() && !repeatable());
    }

    #[test]
    fn keys_are_uuids_and_no_two_are_the_same() {
        let keys: std::collections::BTreeSet<_> = (0..1000).map(|_| fresh().unwrap()).collect();
        assert_eq!(keys.len(), 1000);
        for key in keys {
            let parts: Vec<_> = key.split('-').map(str::len).collect();
            assert_eq!(parts, [8, 4, 4, 4, 12], "{key}");
            assert!(
                key.bytes().all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            );
            assert_eq!(&key[14..15], "4");
            assert!(matches!(&key[19..20], "8" | "9" | "a" | "b"), "{key}");
        }
    }
}
