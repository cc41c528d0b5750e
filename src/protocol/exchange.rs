//! A request with the address, the id and the `_meta` exchanged, and every other byte as it came.

use std::ops::Range;

use bytes::Bytes;

use super::address::Parsed;
use super::form::strip_members;
use super::message::{Frame, message};
use super::meta::ObjectWriter;
use super::splice::{Edit, Splice};
use super::walk;

/// What stands in the request afterwards.
#[derive(Clone, Debug)]
pub struct Exchange<'a> {
    /// The name or URI that takes the place of the address, if the request has one.
    pub native: &'a str,
    /// The raw id.
    pub id: &'a [u8],
    /// The raw `_meta` object. An empty one is left out where there was none.
    pub meta: &'a [u8],
    /// Members of the params that are left out: the reader has no word for them.
    pub unknown: &'a [&'a str],
    /// Members that are added to the params.
    pub more: &'a [(&'static str, Bytes)],
    /// One more edit on the params, if there are any.
    pub edit: Option<Edit>,
}

impl Exchange<'_> {
    /// The bytes of the request `frame`, whose params say `parsed`.
    ///
    /// What has no place yet is put first into the params. Without params they are made.
    pub fn apply(&self, frame: &Frame, parsed: &Parsed) -> Bytes {
        let Some(params) = frame.params_span() else {
            let mut made = ObjectWriter::new();
            made.raw("_meta", self.meta);
            for (k, v) in self.more {
                made.raw(k, v);
            }
            return message(Some(self.id), frame.method(), Some(&made.finish()));
        };
        let mut s = Splice::new();
        s.replace(frame.id_span().expect("a request has an id"), self.id);
        let shift = |r: Range<usize>| r.start + params.start..r.end + params.start;
        if let Some(address) = &parsed.address {
            let (range, text) = address.edit(self.native);
            s.replace(shift(range), text);
        }
        if let Some((range, with)) = &self.edit {
            s.replace(shift(range.clone()), with.as_slice());
        }
        let body = &frame.bytes()[params.clone()];
        let cuts = match self.unknown {
            [] => Vec::new(),
            keys => strip_members(body, keys),
        };
        if let Some(span) = &parsed.meta {
            s.replace(shift(span.clone()), self.meta);
        }
        let adds_meta = parsed.meta.is_none() && self.meta != b"{}";
        if adds_meta || !self.more.is_empty() {
            let empty = if cuts.is_empty() {
                body[1..].iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'}')
            } else {
                let mut left = Splice::new();
                for cut in &cuts {
                    left.replace(cut.clone(), b"".as_slice());
                }
                walk::members(&left.apply(&Bytes::copy_from_slice(body))).is_empty()
            };
            let mut more = ObjectWriter::new();
            for (k, v) in self.more {
                more.raw(k, v);
            }
            if adds_meta {
                more.raw("_meta", self.meta);
            }
            // Right behind the opening brace; a comma only if something follows.
            let mut more = more.finish();
            more.pop();
            more.remove(0);
            if !empty {
                more.push(b',');
            }
            s.replace(params.start + 1..params.start + 1, more);
        }
        for cut in cuts {
            s.replace(shift(cut), b"".as_slice());
        }
        s.apply(frame.bytes())
    }
}
