//! Prepared pages of a view's lists, and the cursors between them.

use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::BufMut;

use super::View;
use crate::call::Form;
use crate::catalog::merge::{Merged, Place};
use crate::catalog::shelf::{Key, Pages};
use crate::catalog::slice::digest_of;
use crate::protocol::method::ListKind;
use crate::protocol::older;
use crate::protocol::prepared::Prepared;

/// How long a client may keep a page while nothing is degraded, in milliseconds. A change is told
/// at once to who listens; this bounds how long the others may be behind. A degraded page may not
/// be kept at all.
pub const LIST_TTL_MS: u64 = 30_000;

/// A cursor that is none of ours, or of a list that has changed: the client starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cursor is not valid, or the list has changed; start again without one")]
pub struct BadCursor;

/// What one list of a view shows; made when first asked for.
#[derive(Default)]
pub(super) struct Shown(OnceLock<Listed>);

struct Listed {
    places: Vec<Place>,
    digest: [u8; 32],
    // Of one size: it is a setting. Pages of another are made anew each time.
    pages: OnceLock<Arc<Pages>>,
}

impl View {
    /// One page of a list, ready to be sent. The first is got without a cursor.
    ///
    /// Pages are made once and shared with all views that show the same. When something seen is stale or missing, `_meta` says so.
    pub fn page(
        &self,
        kind: ListKind,
        cursor: Option<&str>,
        page_size: usize,
        form: Form,
    ) -> Result<Prepared, BadCursor> {
        let size = page_size.max(1);
        let list = self.prepared(kind);
        let number = match cursor {
            None => 0,
            Some(text) => {
                let at = read_cursor(text, kind, &list.digest).ok_or(BadCursor)?;
                if at == 0 || at >= list.places.len() || at % size != 0 {
                    return Err(BadCursor);
                }
                at / size
            }
        };
        let make = || self.write_page(kind, list, number, size, form);
        let pages = list.pages.get_or_init(|| {
            let (digest, degraded) = (list.digest, self.degraded.clone());
            self.catalog.shelf().pages(Key { kind, digest, degraded, size }, list.places.len())
        });
        if pages.size != size {
            return Ok(make());
        }
        Ok(pages.get(number, form, make))
    }

    /// A digest of what the list shows: it changes when an item does, and not when only what is
    /// said about the upstreams' state does. So a client is told of a change exactly when asking
    /// again would show other items.
    pub fn digest(&self, kind: ListKind) -> [u8; 32] {
        self.prepared(kind).digest
    }

    /// How many items the list shows.
    pub fn count(&self, kind: ListKind) -> usize {
        self.prepared(kind).places.len()
    }

    fn prepared(&self, kind: ListKind) -> &Listed {
        self.shown[kind as usize].0.get_or_init(|| {
            let mut places = Vec::new();
            let digest = digest_of(self.entries(kind).map(|(place, entry)| {
                places.push(place);
                &entry.digest
            }));
            Listed { places, digest, pages: OnceLock::new() }
        })
    }

    fn write_page(
        &self,
        kind: ListKind,
        list: &Listed,
        number: usize,
        size: usize,
        form: Form,
    ) -> Prepared {
        let start = number * size;
        let end = (start + size).min(list.places.len());
        let items = || {
            list.places[start..end].iter().filter_map(|place| {
                let merged: &Merged = &self.catalog.parts()[place.part as usize];
                merged.list(kind).map(|l| &l.entries[place.entry as usize].raw)
            })
        };
        let more = self.degraded.as_ref().map_or(0, String::len) + 256;
        let mut out = Vec::with_capacity(items().map(|raw| raw.len() + 1).sum::<usize>() + more);
        out.put_u8(b'{');
        if form == Form::Canonical {
            let ttl = if self.is_degraded() { 0 } else { LIST_TTL_MS };
            // Private: another consumer may see other items.
            let head =
                format!("\"resultType\":\"complete\",\"ttlMs\":{ttl},\"cacheScope\":\"private\",");
            out.put_slice(head.as_bytes());
        }
        out.put_slice(format!("\"{}\":[", kind.member()).as_bytes());
        for (n, raw) in items().enumerate() {
            if n > 0 {
                out.put_u8(b',');
            }
            match (kind, form) {
                (ListKind::Tools, Form::Plain) => out.put_slice(&older::tool(raw)),
                _ => out.put_slice(raw),
            }
        }
        out.put_u8(b']');
        if end < list.places.len() {
            let next = write_cursor(kind, &list.digest, end);
            out.put_slice(format!(",\"nextCursor\":\"{next}\"").as_bytes());
        }
        if let Some(degraded) = &self.degraded {
            out.put_slice(b",\"_meta\":");
            out.put_slice(degraded.as_bytes());
        }
        out.put_u8(b'}');
        Prepared::new(out)
    }
}

// A cursor holds which list, the first bytes of its digest, and how many items are behind it.
// Nothing in it is secret and whoever makes one up gets only what they may see anyway, so it is
// neither sealed nor signed.
const DIGEST_BYTES: usize = 8;

fn write_cursor(kind: ListKind, digest: &[u8; 32], at: usize) -> String {
    let mut raw = vec![kind as u8];
    raw.extend_from_slice(&digest[..DIGEST_BYTES]);
    raw.extend_from_slice(&(at as u32).to_be_bytes());
    URL_SAFE_NO_PAD.encode(raw)
}

fn read_cursor(text: &str, kind: ListKind, digest: &[u8; 32]) -> Option<usize> {
    // The length first: nothing long is decoded.
    if text.len() > 32 {
        return None;
    }
    let raw = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (of, at) = raw.split_at_checked(1 + DIGEST_BYTES)?;
    let at = u32::from_be_bytes(at.try_into().ok()?);
    (of[0] == kind as u8 && of[1..] == digest[..DIGEST_BYTES]).then_some(at as usize)
}
