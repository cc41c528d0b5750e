//! A caller's answers, for the older server that asked.

use bytes::Bytes;

use super::{block, is_array, items_at, may_hold, members_at, note, text_block, value_of};
use crate::protocol::revision::Revision;
use crate::protocol::splice::Splice;

/// The result of `sampling/createMessage` for a server of `revision`.
///
/// Before 2025-11-25 the content is one block: several become one text, each that is no text a
/// note in it. Before 2025-03-26 there is no audio: it becomes a note.
pub fn sampled(result: &Bytes, revision: Revision) -> Bytes {
    if revision >= Revision::R2025_11_25 || !may_hold(result, &["content"]) {
        return result.clone();
    }
    let raw = &result[..];
    let members = members_at(raw, &(0..raw.len()));
    let Some(content) = value_of(raw, &members, "content") else { return result.clone() };
    let blocks =
        if is_array(raw, &content) { items_at(raw, &content) } else { vec![content.clone()] };
    let silent = |kind: &str| kind == "audio" && revision < Revision::R2025_03_26;
    let mut splice = Splice::new();
    if let [one] = &blocks[..] {
        let (members, kind) = block(raw, one);
        if silent(&kind) {
            let said = note(&kind, raw, &members);
            splice.replace(content, text_block(&said, raw, &members));
        } else if *one != content {
            splice.replace(content, &raw[one.clone()]);
        }
    } else {
        let texts = blocks.iter().map(|at| {
            let (members, kind) = block(raw, at);
            let text = (kind == "text").then(|| super::text_of(raw, &members, "text")).flatten();
            text.unwrap_or_else(|| note(&kind, raw, &members))
        });
        let said = texts.collect::<Vec<_>>().join("\n");
        splice.replace(content, text_block(&said, raw, &[]));
    }
    splice.apply(result)
}
