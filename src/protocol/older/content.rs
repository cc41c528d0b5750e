//! Content blocks and structured content.

use std::ops::Range;

use bytes::Bytes;

use super::{
    Member, block, is_array, items_at, may_hold, members_at, text_block, text_of, value_of,
};
use crate::protocol::form::{RESULT_TYPE, insert_members, strip_members};
use crate::protocol::message::Frame;
use crate::protocol::meta::ObjectWriter;
use crate::protocol::revision::{Era, Revision};
use crate::protocol::splice::Splice;
use crate::protocol::walk::{Walk, says};

/// The result of `method` for a reader of `revision`.
///
/// Content blocks: `audio` is new in 2025-03-26, `resource_link` in 2025-06-18. Structured
/// content came with 2025-06-18 and was an object before 2026-07-28; where it goes, a text copy
/// of it is ensured. Old readers insist on `content`. Blocks of other types stay: nobody knows
/// what they say.
pub fn result(method: &str, result: &Bytes, revision: Revision) -> Bytes {
    if revision.era() == Era::Modern {
        return result.clone();
    }
    match method {
        "tools/call" => of_tool(result, revision),
        "prompts/get" => of_prompt(result, revision),
        _ => result.clone(),
    }
}

/// Whether [`result`] has nothing to do, seen without a walk.
pub fn keeps(method: &str, frame: &Frame, revision: Revision) -> bool {
    let plain = strangers(revision).is_empty();
    match method {
        "tools/call" => {
            plain
                && frame.part("structuredContent").is_none()
                && frame.part_text("content").is_some_and(|content| content.starts_with(b"["))
        }
        "prompts/get" => plain,
        _ => true,
    }
}

// The words for blocks that a revision does not know.
fn strangers(revision: Revision) -> &'static [&'static str] {
    match revision {
        Revision::R2024_11_05 => &["\"audio\"", "\"resource_link\""],
        Revision::R2025_03_26 => &["\"resource_link\""],
        _ => &[],
    }
}

fn of_tool(result: &Bytes, revision: Revision) -> Bytes {
    let raw = &result[..];
    let blocks = !strangers(revision).is_empty() && may_hold(raw, strangers(revision));
    if !blocks && !may_hold(raw, &["structuredContent"]) && begins_with_content(raw) {
        return result.clone();
    }
    let members = members_at(raw, &(0..raw.len()));
    let whole = value_of(raw, &members, RESULT_TYPE).is_none_or(|v| says(&raw[v], "complete"));
    // What is no object is not ours to mend; a task that was begun has no content yet
    // (2025-11-25 basic/utilities/tasks).
    if Walk::new(raw).peek() != Some(b'{') || !whole || value_of(raw, &members, "task").is_some() {
        return result.clone();
    }
    let structured = value_of(raw, &members, "structuredContent");
    // An object stays, also for who has no word for it: an SDK that speaks an older revision than
    // it knows misses it where the tool has an `outputSchema`.
    let drops = structured.clone().filter(|at| raw.get(at.start) != Some(&b'{'));
    let told = structured.filter(|_| revision < Revision::R2025_06_18).or_else(|| drops.clone());
    let content = value_of(raw, &members, "content");
    let mut splice = Splice::new();
    if drops.is_some() {
        for cut in strip_members(raw, &["structuredContent"]) {
            splice.replace(cut, b"".as_slice());
        }
    }
    let copy = told.map(|at| {
        let text = String::from_utf8_lossy(&raw[at]);
        [b"[", &text_block(&text, raw, &[])[..], b"]"].concat()
    });
    let there = content.as_ref().is_some_and(|at| &raw[at.clone()] != b"null");
    match &content {
        Some(at) if there => {
            if blocks {
                edit_blocks(raw, at, revision, &mut splice);
            }
            if let Some(copy) = &copy
                && is_array(raw, at)
                && items_at(raw, at).is_empty()
            {
                splice.replace(at.clone(), copy.clone());
            }
        }
        Some(at) => splice.replace(at.clone(), copy.clone().unwrap_or_else(|| b"[]".to_vec())),
        None => {}
    }
    let result = splice.apply(result);
    if content.is_some() {
        return result;
    }
    let content = copy.unwrap_or_else(|| b"[]".to_vec());
    let mut splice = Splice::new();
    if let Some((at, with)) = insert_members(&result, &[("content", &content)]) {
        splice.replace(at, with);
    }
    splice.apply(&result)
}

// Whether the first member is a `content` that is an array: most results.
fn begins_with_content(raw: &[u8]) -> bool {
    let mut walk = Walk::new(raw);
    walk.enter(b'{')
        && walk.key().is_some_and(|key| &raw[key] == b"\"content\"")
        && walk.peek() == Some(b'[')
}

fn of_prompt(result: &Bytes, revision: Revision) -> Bytes {
    let raw = &result[..];
    if strangers(revision).is_empty() || !may_hold(raw, strangers(revision)) {
        return result.clone();
    }
    let mut splice = Splice::new();
    let members = members_at(raw, &(0..raw.len()));
    let messages = value_of(raw, &members, "messages").unwrap_or_default();
    for message in items_at(raw, &messages) {
        let Some(content) = value_of(raw, &members_at(raw, &message), "content") else { continue };
        // One block; with some servers a list of them.
        if is_array(raw, &content) {
            edit_blocks(raw, &content, revision, &mut splice);
        } else {
            edit_block(raw, &content, revision, &mut splice);
        }
    }
    splice.apply(result)
}

fn edit_blocks<'a>(
    raw: &'a [u8],
    content: &Range<usize>,
    revision: Revision,
    splice: &mut Splice<'a>,
) {
    for at in items_at(raw, content) {
        edit_block(raw, &at, revision, splice);
    }
}

fn edit_block<'a>(raw: &'a [u8], at: &Range<usize>, revision: Revision, splice: &mut Splice<'a>) {
    let (members, kind) = block(raw, at);
    match &*kind {
        "audio" if revision < Revision::R2025_03_26 => as_resource(raw, at, &members, splice),
        "resource_link" if revision < Revision::R2025_06_18 => {
            splice.replace(at.clone(), as_text(raw, &members));
        }
        _ => {}
    }
}

/// Where an embedded recording claims to stand, with a number behind: the old revision wants an
/// address for everything that is embedded. It names nothing that could be read.
const NOWHERE: &str = "audio:embedded/";

// An embedded resource keeps the bytes and their type, which a note would lose. The recording
// itself is not copied aside: the words around it change.
fn as_resource<'a>(raw: &'a [u8], at: &Range<usize>, members: &[Member], splice: &mut Splice<'a>) {
    let of = |key: &str| members.iter().filter(|(k, _)| says(&raw[k.clone()], key)).count();
    let (Some(kind), Some(data)) = (value_of(raw, members, "type"), value_of(raw, members, "data"))
    else {
        return;
    };
    // What says one thing twice is no recording that anybody could play.
    if of("type") != 1 || of("data") != 1 || of("resource") != 0 {
        return;
    }
    let Some((key, _)) = members.iter().find(|(_, v)| *v == data) else { return };
    splice.replace(kind, b"\"resource\"".as_slice());
    let mut resource = ObjectWriter::new();
    // Its place in the result: no two recordings have the same.
    resource.value("uri", &format!("{NOWHERE}{}", at.start));
    if let Some(mime) = value_of(raw, members, "mimeType") {
        resource.raw("mimeType", &raw[mime]);
    }
    let mut resource = resource.finish();
    resource.pop();
    splice.replace(key.clone(), [b"\"resource\":", &resource[..], b",\"blob\""].concat());
    splice.replace(data.end..data.end, b"}".as_slice());
    for cut in strip_members(&raw[at.clone()], &["mimeType"]) {
        splice.replace(cut.start + at.start..cut.end + at.start, b"".as_slice());
    }
}

// Its name and where it is; the address is public already.
fn as_text(raw: &[u8], members: &[Member]) -> Vec<u8> {
    let said = |key| text_of(raw, members, key).filter(|text| !text.is_empty());
    let uri = said("uri").unwrap_or_default();
    let mut text = match said("title").or_else(|| said("name")) {
        Some(name) => format!("{name}: {uri}"),
        None => uri,
    };
    if let Some(more) = said("description") {
        text = format!("{text}\n{more}");
    }
    text_block(&text, raw, members)
}
