//! Replace a few ranges of a message and copy the rest as it is.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Edits of most messages: the id, the address, `_meta`.
const EDITS: usize = 4;

/// Edits on one byte string, applied together.
///
/// Ranges are offsets into the base, must not overlap and may be added in any order. The result
/// differs from the base in the edited ranges only; that is a property test in
/// `protocol::address`.
#[derive(Default)]
pub struct Splice<'a> {
    edits: Vec<(Range<usize>, Cow<'a, [u8]>)>,
}

impl<'a> Splice<'a> {
    /// No edits yet.
    pub fn new() -> Self {
        Splice { edits: Vec::with_capacity(EDITS) }
    }

    /// Put `with` in the place of `range`; an empty range inserts.
    pub fn replace(&mut self, range: Range<usize>, with: impl Into<Cow<'a, [u8]>>) {
        self.edits.push((range, with.into()));
    }

    /// How many edits there are.
    pub fn len(&self) -> usize {
        self.edits.len()
    }

    /// True if nothing would change.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// The base with all edits applied. Without edits the base is shared, not copied.
    ///
    /// # Panics
    /// If two edits overlap or one lies outside the base: a bug in the caller, never in the input.
    pub fn apply(mut self, base: &Bytes) -> Bytes {
        if self.edits.is_empty() {
            return base.clone();
        }
        let (mut out, at) = self.edited(base, base.len());
        out.extend_from_slice(&base[at..]);
        out.freeze()
    }

    /// The same in two pieces: up to the last edit, and what is behind it, which is shared with
    /// the base. If that is less than `least`, all of it is in the first.
    ///
    /// # Panics
    /// See [`Splice::apply`].
    pub fn apply_in_two(mut self, base: &Bytes, least: usize) -> (Bytes, Bytes) {
        let last = self.edits.iter().map(|(range, _)| range.end).max().unwrap_or(0);
        if base.len() - last < least {
            return (self.apply(base), Bytes::new());
        }
        let (out, at) = self.edited(base, last);
        (out.freeze(), base.slice(at..))
    }

    // All up to the last edit, with room for the base up to `end`; and where that edit ends.
    fn edited(&mut self, base: &[u8], end: usize) -> (BytesMut, usize) {
        self.edits.sort_by_key(|(r, _)| (r.start, r.end));
        // To the byte: what has room left over is kept at the cost of one more piece of memory.
        let grown: usize = self.edits.iter().map(|(_, w)| w.len()).sum();
        let cut: usize = self.edits.iter().map(|(r, _)| r.len()).sum();
        let mut out = BytesMut::with_capacity((end + grown).saturating_sub(cut));
        let mut at = 0;
        for (range, with) in &self.edits {
            assert!(range.start >= at, "edits overlap");
            out.extend_from_slice(&base[at..range.start]);
            out.extend_from_slice(with);
            at = range.end;
        }
        (out, at)
    }
}

/// Put the bytes in the place of the range.
pub type Edit = (Range<usize>, Vec<u8>);

/// The base with these edits; shared, not copied, if there are none.
pub fn edited(base: &Bytes, edits: impl IntoIterator<Item = Edit>) -> Bytes {
    let mut splice = Splice::new();
    for (range, with) in edits {
        splice.replace(range, with);
    }
    splice.apply(base)
}

/// Where `part` stands inside `whole`.
///
/// # Panics
/// If `part` is not a slice of `whole`.
pub fn range_of(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = (part.as_ptr() as usize)
        .checked_sub(whole.as_ptr() as usize)
        .expect("part of another buffer");
    let end = start + part.len();
    assert!(end <= whole.len(), "part of another buffer");
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_apply_in_place_whatever_their_order() {
        let base = Bytes::from_static(b"abcdef");
        let mut s = Splice::new();
        s.replace(4..5, b"EE".as_slice());
        s.replace(0..1, b"".as_slice());
        s.replace(2..2, b"--".as_slice());
        assert_eq!(&s.apply(&base)[..], b"b--cdEEf");
    }

    #[test]
    fn what_is_behind_the_last_edit_is_shared_if_it_is_worth_it() {
        let base = Bytes::from_static(b"abcdef");
        let edits = || {
            let mut s = Splice::new();
            s.replace(2..3, b"C".as_slice());
            s.replace(0..1, b"AA".as_slice());
            s
        };
        let (head, rest) = edits().apply_in_two(&base, 3);
        assert_eq!((&head[..], &rest[..]), (&b"AAbC"[..], &b"def"[..]));
        assert_eq!(rest.as_ptr(), base[3..].as_ptr());
        let (head, rest) = edits().apply_in_two(&base, 4);
        assert_eq!((&head[..], &rest[..]), (&b"AAbCdef"[..], &b""[..]));
        let (head, rest) = Splice::new().apply_in_two(&base, 3);
        assert_eq!([head, rest].concat(), b"abcdef");
    }

    #[test]
    fn no_edit_shares_the_base() {
        let base = Bytes::from(vec![1, 2, 3]);
        assert_eq!(Splice::new().apply(&base).as_ptr(), base.as_ptr());
    }
}
