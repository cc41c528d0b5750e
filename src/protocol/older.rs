//! What a newer peer says, in the words of an older revision.
//!
//! Results, tools and questions travel as they came; only what the reader's revision has no word
//! for is said in another way or left out. Everything here is an edit of a few places, found by
//! one walk, and most messages are settled by a search that finds nothing.
//!
//! What an old reader does not know but passes over (titles, icons, `_meta`, the `message` of a
//! progress notice) stays: the old schemas leave all their objects open, and so do the readers
//! made from them.

mod answer;
mod content;
mod question;
mod tool;

use std::ops::Range;

pub use answer::sampled;
pub use content::{keeps, result};
pub use question::{Back, question};
pub use tool::tool;

use super::meta::ObjectWriter;
use super::walk::{self, Walk};

type Member = (Range<usize>, Range<usize>);

// Whether one of these keys or words can stand in `text`, plain or escaped.
fn may_hold(text: &[u8], words: &[&str]) -> bool {
    words.iter().any(|word| walk::may_hold(text, word))
}

// The members of the object that stands at `at` in `raw`.
fn members_at(raw: &[u8], at: &Range<usize>) -> Vec<Member> {
    let shift = |r: Range<usize>| r.start + at.start..r.end + at.start;
    walk::members(&raw[at.clone()]).into_iter().map(|(k, v)| (shift(k), shift(v))).collect()
}

// Where the value of `key` stands: the last one counts, as in most readers.
fn value_of(raw: &[u8], members: &[Member], key: &str) -> Option<Range<usize>> {
    members.iter().rev().find(|(k, _)| walk::says(&raw[k.clone()], key)).map(|(_, v)| v.clone())
}

// The items of the array that stands at `at` in `raw`; none if it is no array.
fn items_at(raw: &[u8], at: &Range<usize>) -> Vec<Range<usize>> {
    let mut walk = Walk::new(&raw[at.clone()]);
    let mut out = Vec::new();
    if walk.enter(b'[') {
        while walk.item() {
            let item = walk.skip();
            out.push(item.start + at.start..item.end + at.start);
        }
    }
    out
}

fn is_array(raw: &[u8], at: &Range<usize>) -> bool {
    raw[at.clone()].first() == Some(&b'[')
}

// The type of the content block at `at`, with its members.
fn block<'a>(raw: &'a [u8], at: &Range<usize>) -> (Vec<Member>, std::borrow::Cow<'a, str>) {
    let members = members_at(raw, at);
    let kind = value_of(raw, &members, "type").and_then(|v| walk::string(&raw[v]));
    (members, kind.unwrap_or_default())
}

fn text_of(raw: &[u8], members: &[Member], key: &str) -> Option<String> {
    value_of(raw, members, key).and_then(|v| walk::string(&raw[v]).map(Into::into))
}

// A text block, with what else old readers know of a block.
fn text_block(text: &str, raw: &[u8], members: &[Member]) -> Vec<u8> {
    let mut out = ObjectWriter::new();
    out.value("type", &"text").value("text", &text);
    for key in ["annotations", "_meta"] {
        if let Some(at) = value_of(raw, members, key) {
            out.raw(key, &raw[at]);
        }
    }
    out.finish()
}

// What stands for a block that the reader has no word for.
fn note(kind: &str, raw: &[u8], members: &[Member]) -> String {
    match text_of(raw, members, "mimeType") {
        Some(mime) => format!("[{kind}: {mime}, left out]"),
        None => format!("[{kind}, left out]"),
    }
}

#[cfg(test)]
mod tests;
