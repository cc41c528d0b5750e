//! The two forms of a result: with the members that only the newest revision has, and without.
//!
//! Both directions are splices at the top level of the result; all else stays byte for byte.

use std::ops::Range;

use bytes::Bytes;

use super::json::Member;
use super::splice::Splice;
use super::walk::{self, Walk, may_hold};

/// What kind of result it is; mandatory in the newest revision (2026-07-28 basic/index).
pub const RESULT_TYPE: &str = "resultType";
/// How long it may be kept, in milliseconds (2026-07-28 server/utilities/caching).
pub const TTL_MS: &str = "ttlMs";
/// For whom it may be kept (2026-07-28 server/utilities/caching).
pub const CACHE_SCOPE: &str = "cacheScope";

/// An old revision's result in the newest revision's words: `resultType`, and for `cacheable`
/// methods the cache hints, are added where they are missing. The hints allow no caching at all:
/// an old upstream has not said that its answer may be kept or shared.
///
/// A result of another type than `complete` has no hints and gets none. Not an object: unchanged.
pub fn to_canonical(result: &Bytes, cacheable: bool) -> Bytes {
    let mut add: Vec<(&str, &[u8])> = Vec::new();
    match value(result, RESULT_TYPE) {
        None => add.push((RESULT_TYPE, b"\"complete\"")),
        Some(at) if !walk::says(&result[at.clone()], "complete") => return result.clone(),
        Some(_) => {}
    }
    if cacheable {
        for (key, hint) in [(TTL_MS, b"0".as_slice()), (CACHE_SCOPE, b"\"private\"")] {
            if value(result, key).is_none() {
                add.push((key, hint));
            }
        }
    }
    let mut splice = Splice::new();
    if let Some((at, with)) = insert_members(result, &add) {
        splice.replace(at, with);
    }
    splice.apply(result)
}

/// A complete result without the members that old revisions don't know.
pub fn to_plain(result: &Bytes) -> Bytes {
    let mut splice = Splice::new();
    for cut in strip_members(result, &[RESULT_TYPE, TTL_MS, CACHE_SCOPE]) {
        splice.replace(cut, b"".as_slice());
    }
    splice.apply(result)
}

/// The edit that puts `members` (key, raw value) first into a raw object. `None` if there is
/// nothing to insert or no object to insert it into. Does not look whether they are there already.
pub fn insert_members(object: &[u8], members: &[(&str, &[u8])]) -> Option<(Range<usize>, Vec<u8>)> {
    let mut walk = Walk::new(object);
    if members.is_empty() || !walk.enter(b'{') {
        return None;
    }
    let at = memchr::memchr(b'{', object)? + 1;
    let mut with = Vec::new();
    for (n, (key, value)) in members.iter().enumerate() {
        if n > 0 {
            with.push(b',');
        }
        serde_json::to_writer(&mut with, key).expect("a string serialises");
        with.push(b':');
        with.extend_from_slice(value);
    }
    if walk.peek() != Some(b'}') {
        with.push(b',');
    }
    Some((at..at, with))
}

/// The ranges to cut so that a raw object loses the members `keys`, each with one comma.
pub fn strip_members(object: &[u8], keys: &[&str]) -> Vec<Range<usize>> {
    if !keys.iter().any(|key| may_hold(object, key)) {
        return Vec::new();
    }
    cuts(object, &walk::members(object), keys)
}

/// The same, where it is known where the members stand.
pub fn cuts(object: &[u8], members: &[Member], keys: &[&str]) -> Vec<Range<usize>> {
    let goes: Vec<bool> = members
        .iter()
        .map(|(key, _)| keys.iter().any(|k| walk::says(&object[key.clone()], k)))
        .collect();
    let mut cuts = Vec::new();
    let mut at = 0;
    while at < members.len() {
        if !goes[at] {
            at += 1;
            continue;
        }
        let first = at;
        while at < members.len() && goes[at] {
            at += 1;
        }
        // With the comma behind it, or as the last one with the comma before it.
        cuts.push(match (members.get(at), first.checked_sub(1)) {
            (Some((next, _)), _) => members[first].0.start..next.start,
            (None, Some(before)) => members[before].1.end..members[at - 1].1.end,
            (None, None) => members[first].0.start..members[at - 1].1.end,
        });
    }
    cuts
}

fn value(object: &[u8], key: &str) -> Option<Range<usize>> {
    if !may_hold(object, key) {
        return None;
    }
    let found =
        walk::members(object).into_iter().find(|(k, _)| walk::says(&object[k.clone()], key));
    found.map(|(_, value)| value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str, cacheable: bool) -> String {
        let out = to_canonical(&Bytes::copy_from_slice(text.as_bytes()), cacheable);
        String::from_utf8(out.to_vec()).unwrap()
    }
    fn plain(text: &str) -> String {
        let out = to_plain(&Bytes::copy_from_slice(text.as_bytes()));
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn what_is_missing_is_added_in_front() {
        assert_eq!(canonical("{}", false), r#"{"resultType":"complete"}"#);
        assert_eq!(
            canonical(r#" { "a":1.0}"#, true),
            r#" {"resultType":"complete","ttlMs":0,"cacheScope":"private", "a":1.0}"#
        );
        let told = r#"{"ttlMs":5,"resultType":"complete"}"#;
        assert_eq!(canonical(told, false), told);
        assert_eq!(
            canonical(told, true),
            r#"{"cacheScope":"private","ttlMs":5,"resultType":"complete"}"#
        );
        // A nested member of that name is not ours, an escaped one is.
        assert_eq!(
            canonical(r#"{"a":{"resultType":1}}"#, false),
            r#"{"resultType":"complete","a":{"resultType":1}}"#
        );
        let escaped = r#"{"\u0072esultType":"complete"}"#;
        assert_eq!(canonical(escaped, false), escaped);
        let asks = r#"{"resultType":"input_required"}"#;
        assert_eq!(canonical(asks, true), asks);
        assert_eq!(canonical("null", true), "null");
    }

    #[test]
    fn what_is_new_is_cut_with_its_comma() {
        for (text, want) in [
            (r#"{"resultType":"complete"}"#, "{}"),
            (r#"{"resultType":"complete","ttlMs":0}"#, "{}"),
            (r#"{ "resultType":"complete", "a":1 }"#, r#"{ "a":1 }"#),
            (r#"{"a":1 ,"resultType":"complete" }"#, r#"{"a":1 }"#),
            (r#"{"a":1,"ttlMs":0,"cacheScope":"x","b":2,"resultType":""}"#, r#"{"a":1,"b":2}"#),
            (r#"{"a":{"ttlMs":1}}"#, r#"{"a":{"ttlMs":1}}"#),
            (r#"{"ttlMs":1,"ttlMs":2,"a":1}"#, r#"{"a":1}"#),
            ("[]", "[]"),
        ] {
            assert_eq!(plain(text), want);
        }
    }

    proptest! {
        #[test]
        fn plain_undoes_canonical(
            members in proptest::collection::vec(
                ("[a-z\\\\n]{0,3}", proptest::sample::select(vec![
                    "1.10", "1e400", "\"ttlMs\"", "{\"ttlMs\" : 0}", "[ ]", "null", "\"\\ud800,}\"",
                ])),
                0..5,
            ),
            space in "[ \n\t]{0,2}",
            cacheable: bool,
        ) {
            let inner: Vec<_> = members.iter().map(|(k, v)| {
                format!("{space}{}{space}:{v}{space}", serde_json::to_string(k).unwrap())
            }).collect();
            let text = format!("{space}{{{}}}", inner.join(","));
            let there = canonical(&text, cacheable);
            prop_assert_eq!(canonical(&there, cacheable), there.clone());
            // White space right behind the brace goes with the member that was cut before it.
            let squeeze = |s: &str| s.replacen(&format!("{{{space}"), "{", 1);
            prop_assert_eq!(squeeze(&plain(&there)), squeeze(&text));
        }
    }
}
