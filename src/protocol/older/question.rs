//! What an upstream asks, for an older client.

mod choices;

use std::ops::Range;

use bytes::Bytes;

use super::{block, is_array, items_at, may_hold, members_at, note, text_block, value_of};
use crate::protocol::form::strip_members;
use crate::protocol::meta::ObjectWriter;
use crate::protocol::revision::Revision;
use crate::protocol::splice::Splice;
use crate::protocol::walk;

pub use choices::Back;

/// A question's params for a client of `revision`, and the way back for its answer. `None`: the
/// client has no way to answer it.
///
/// Forms: before 2025-11-25 there is no `mode`, a choice with titles is an `enum` with
/// `enumNames`, and a choice of several is asked as one boolean per option. Sampling: before
/// 2025-11-25 a message has one block of content, before 2025-03-26 no audio.
pub fn question(
    method: &str,
    params: Option<Bytes>,
    revision: Revision,
) -> Option<(Option<Bytes>, Back)> {
    let asked = match params {
        Some(params) if revision < Revision::R2025_11_25 => params,
        params => return Some((params, Back::default())),
    };
    match method {
        "elicitation/create" => {
            let (asked, back) = form(&asked)?;
            Some((Some(asked), back))
        }
        "sampling/createMessage" => Some((Some(sampling(&asked, revision)), Back::default())),
        _ => Some((Some(asked), Back::default())),
    }
}

fn form(params: &Bytes) -> Option<(Bytes, Back)> {
    let mut splice = Splice::new();
    for cut in strip_members(params, &["mode"]) {
        splice.replace(cut, b"".as_slice());
    }
    let members = members_at(params, &(0..params.len()));
    let back = match value_of(params, &members, "requestedSchema") {
        Some(schema) => choices::edit(params, &schema, &mut splice)?,
        None => Back::default(),
    };
    Some((splice.apply(params), back))
}

fn sampling(params: &Bytes, revision: Revision) -> Bytes {
    let raw = &params[..];
    let silent = revision < Revision::R2025_03_26;
    if !may_hold(raw, &["messages"]) {
        return params.clone();
    }
    let mut splice = Splice::new();
    let members = members_at(raw, &(0..raw.len()));
    let messages = value_of(raw, &members, "messages").unwrap_or_default();
    for message in items_at(raw, &messages) {
        let members = members_at(raw, &message);
        let Some(content) = value_of(raw, &members, "content") else { continue };
        if is_array(raw, &content) {
            splice.replace(message, split(raw, &members, &content, silent));
        } else if let Some(said) = silenced(raw, &content, silent) {
            splice.replace(content, said);
        }
    }
    splice.apply(params)
}

// The text that stands for a recording.
fn silenced(raw: &[u8], at: &Range<usize>, silent: bool) -> Option<Vec<u8>> {
    let (members, kind) = block(raw, at);
    (silent && kind == "audio").then(|| text_block(&note(&kind, raw, &members), raw, &members))
}

// One message for each block. What else the message says, it says once.
fn split(raw: &[u8], members: &[super::Member], content: &Range<usize>, silent: bool) -> Vec<u8> {
    let role = value_of(raw, members, "role");
    let mut blocks: Vec<Vec<u8>> = items_at(raw, content)
        .iter()
        .map(|at| silenced(raw, at, silent).unwrap_or_else(|| raw[at.clone()].to_vec()))
        .collect();
    if blocks.is_empty() {
        blocks.push(text_block("", raw, &[]));
    }
    let mut out = Vec::new();
    for (n, block) in blocks.iter().enumerate() {
        let mut message = ObjectWriter::new();
        if let Some(role) = &role {
            message.raw("role", &raw[role.clone()]);
        }
        message.raw("content", block);
        if n == 0 {
            for (key, value) in members {
                let Some(key) = walk::string(&raw[key.clone()]) else { continue };
                if key != "role" && key != "content" {
                    message.raw(&key, &raw[value.clone()]);
                }
            }
        } else {
            out.push(b',');
        }
        out.extend_from_slice(&message.finish());
    }
    out
}
