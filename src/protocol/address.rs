//! Where a message names what it is about, and how that is exchanged without touching the rest.
//!
//! *Requests* are read strictly: the address decides who gets the call, so a key that stands twice
//! is refused; the upstream could take the other one. *Results* are read leniently: a call that
//! had an effect must not lose its answer over an oddity in it.

use std::ops::Range;

use bytes::Bytes;
use memchr::memmem;

use super::json;
use super::message::Frame;
use super::meta::Members;
use super::method::{AddressField, ListKind, Method};
use super::splice::{Edit, edited, range_of};
use super::walk::{Walk, says, string};

/// What the params of a request say that routes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// What is addressed; `None` for methods that address nothing.
    pub address: Option<Address>,
    /// Where the `_meta` object stands in the params.
    pub meta: Option<Range<usize>>,
}

/// The thing that a request is about.
#[derive(Debug, PartialEq, Eq)]
pub struct Address {
    /// What it is. The `ref/resource` of a completion is a [`ListKind::Templates`].
    pub kind: ListKind,
    /// Its public name or URI, decoded.
    pub value: String,
    /// Where the value stands in the params, quotes included.
    pub span: Range<usize>,
}

/// Why params cannot be routed; the sentence is for the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not an object, or a key stands twice in it.
    #[error("{0} must be an object without repeated keys: {1}")]
    Object(&'static str, String),
    /// The member that addresses is missing or no string.
    #[error("{0} must be a string")]
    NoString(&'static str),
    /// A completion of something that is neither a prompt nor a resource.
    #[error("params.ref.type must be \"ref/prompt\" or \"ref/resource\"")]
    UnknownRef,
}

impl Parsed {
    /// Read a request for `method`.
    pub fn of(method: &Method, frame: &Frame) -> Result<Parsed, AddressError> {
        match Parsed::quick(method, frame) {
            Some(parsed) => Ok(parsed),
            None => Parsed::read(method, frame.params().as_deref()),
        }
    }

    // From the frame's index. `None`: it has none, or something is wrong.
    fn quick(method: &Method, frame: &Frame) -> Option<Parsed> {
        let (index, params, text) = (frame.index()?, frame.params_span()?, frame.bytes());
        let here = |at: Range<usize>| at.start - params.start..at.end - params.start;
        let meta = index.find(text, "_meta");
        if meta.is_some() {
            frame.meta_index()?;
        }
        let (kind, key) = match method.address {
            AddressField::ToolName => (ListKind::Tools, "name"),
            AddressField::PromptName => (ListKind::Prompts, "name"),
            AddressField::Uri => (ListKind::Resources, "uri"),
            AddressField::None | AddressField::Task => {
                return Some(Parsed { address: None, meta: meta.map(here) });
            }
            AddressField::Ref => return None,
        };
        let at = index.find(text, key)?;
        let value = string(&text[at.clone()])?.into_owned();
        let address = Some(Address { kind, value, span: here(at) });
        Some(Parsed { address, meta: meta.map(here) })
    }

    /// Read the params of a request for `method`.
    pub fn read(method: &Method, params: Option<&[u8]>) -> Result<Parsed, AddressError> {
        let Some(raw) = params else {
            return Parsed::read(method, Some(b"{}"));
        };
        let params = object("params", raw)?;
        let mut parsed = Parsed::default();
        if let Some(meta) = params.get("_meta") {
            object("params._meta", meta.get().as_bytes())?;
            parsed.meta = Some(range_of(raw, meta.get().as_bytes()));
        }
        let take = |of: &Members<'_>, kind, key: &str, place| {
            let value = of.get_str(key).ok_or(AddressError::NoString(place))?.into_owned();
            let text = of.get(key).map_or("", |v| v.get());
            Ok(Some(Address { kind, value, span: range_of(raw, text.as_bytes()) }))
        };
        parsed.address = match method.address {
            // A task is sealed: the edge reads it.
            AddressField::None | AddressField::Task => None,
            AddressField::ToolName => take(&params, ListKind::Tools, "name", "params.name")?,
            AddressField::PromptName => take(&params, ListKind::Prompts, "name", "params.name")?,
            AddressField::Uri => take(&params, ListKind::Resources, "uri", "params.uri")?,
            AddressField::Ref => {
                let of = params.get("ref").map_or("null", |v| v.get());
                let of = object("params.ref", of.as_bytes())?;
                match of.get_str("type").as_deref() {
                    Some("ref/prompt") => take(&of, ListKind::Prompts, "name", "params.ref.name")?,
                    Some("ref/resource") => {
                        take(&of, ListKind::Templates, "uri", "params.ref.uri")?
                    }
                    _ => return Err(AddressError::UnknownRef),
                }
            }
        };
        Ok(parsed)
    }
}

impl Address {
    /// The edit on the params that addresses `value` instead.
    pub fn edit(&self, value: &str) -> Edit {
        (self.span.clone(), json_string(value))
    }
}

fn object<'a>(place: &'static str, raw: &'a [u8]) -> Result<Members<'a>, AddressError> {
    Members::read(raw).map_err(|e| AddressError::Object(place, e.to_string()))
}

pub(super) fn json_string(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    json::write_string(&mut out, text);
    out
}

/// Messages that name resources by URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UriHolder {
    /// The result of `tools/call`.
    ToolResult,
    /// The result of `prompts/get`.
    PromptResult,
    /// The result of `resources/read`.
    ReadResult,
    /// The result of `tasks/get` of the newest revision's extension.
    TaskResult,
    /// The params of `notifications/resources/updated`.
    Updated,
    /// One tool of `tools/list` (its app's page).
    Tool,
    /// One skill of `skills/list`: its files. Its own URI is the item's key.
    SkillFiles,
    /// The result of `skills/get`.
    Skill,
    /// The result of `resources/directory/read`.
    Directory,
}

// The page of a tool's app (MCP Apps 2026-01-26, "resource discovery").
const PAGE: Place = Place::Object(&[
    ("ui", Place::Object(&[("resourceUri", Place::Uri)])),
    ("ui/resourceUri", Place::Uri),
]);
// A skill's files, or the resources in a directory.
const FILES: Place = Place::Each(&Place::Object(&[("uri", Place::Uri)]));

impl UriHolder {
    /// What the result of this method is; `None` if it names no resource.
    pub fn of_result(method: &str) -> Option<UriHolder> {
        match method {
            "tools/call" | "tasks/result" => Some(UriHolder::ToolResult),
            "tasks/get" => Some(UriHolder::TaskResult),
            "prompts/get" => Some(UriHolder::PromptResult),
            "resources/read" => Some(UriHolder::ReadResult),
            "skills/get" => Some(UriHolder::Skill),
            "resources/directory/read" => Some(UriHolder::Directory),
            _ => None,
        }
    }

    pub(super) fn places(self) -> &'static Place {
        match self {
            UriHolder::ToolResult => {
                &Place::Object(&[("content", Place::Each(&Place::Block)), ("_meta", PAGE)])
            }
            UriHolder::TaskResult => &Place::Object(&[(
                "result",
                Place::Object(&[("content", Place::Each(&Place::Block)), ("_meta", PAGE)]),
            )]),
            UriHolder::PromptResult => &Place::Object(&[(
                "messages",
                Place::Each(&Place::Object(&[("content", Place::OneOrEach(&Place::Block))])),
            )]),
            UriHolder::ReadResult => {
                &Place::Object(&[("contents", Place::Each(&Place::Object(&[("uri", Place::Uri)])))])
            }
            UriHolder::Updated => &Place::Object(&[("uri", Place::Uri)]),
            UriHolder::Tool => &Place::Object(&[("_meta", PAGE)]),
            UriHolder::SkillFiles | UriHolder::Directory => &Place::Object(&[("resources", FILES)]),
            UriHolder::Skill => &Place::Object(&[(
                "skill",
                Place::Object(&[("uri", Place::Uri), ("resources", FILES)]),
            )]),
        }
    }

    // The keys that its places end in: text without them has no such place.
    fn needles(self) -> &'static [&'static str] {
        match self {
            UriHolder::Tool => &["resourceUri"],
            UriHolder::ToolResult => &["uri", "resourceUri"],
            _ => &["uri"],
        }
    }
}

// Where URIs stand. URIs in text, HTML or structured content are not ours to find.
pub(super) enum Place {
    // Here, if it is a string.
    Uri,
    // A content block: `uri` of a `resource_link`, `resource.uri` of a `resource`.
    Block,
    Object(&'static [(&'static str, Place)]),
    Each(&'static Place),
    // A prompt message's content is one block, in some servers a list of them.
    OneOrEach(&'static Place),
}

impl Place {
    fn find(&self, text: &[u8], walk: &mut Walk<'_>, out: &mut Vec<Range<usize>>) {
        match self {
            Place::Uri => {
                let value = walk.skip();
                if text[value.clone()].starts_with(b"\"") {
                    out.push(value);
                }
            }
            Place::Object(inner) if walk.enter(b'{') => {
                while let Some(key) = walk.key() {
                    match inner.iter().find(|(name, _)| says(&text[key.clone()], name)) {
                        Some((_, place)) => place.find(text, walk, out),
                        None => drop(walk.skip()),
                    }
                }
            }
            Place::Each(inner) if walk.enter(b'[') => {
                while walk.item() {
                    inner.find(text, walk, out);
                }
            }
            Place::OneOrEach(inner) if walk.peek() == Some(b'[') => {
                Place::Each(inner).find(text, walk, out);
            }
            Place::OneOrEach(inner) => inner.find(text, walk, out),
            Place::Block if walk.enter(b'{') => {
                // The type may stand behind what it decides on.
                let (mut link, mut embedded) = (false, false);
                let (mut own, mut nested) = (Vec::new(), Vec::new());
                while let Some(key) = walk.key() {
                    let key = &text[key];
                    if says(key, "uri") {
                        Place::Uri.find(text, walk, &mut own);
                    } else if says(key, "resource") {
                        Place::Object(&[("uri", Place::Uri)]).find(text, walk, &mut nested);
                    } else {
                        let value = walk.skip();
                        if says(key, "type") {
                            link |= says(&text[value.clone()], "resource_link");
                            embedded |= says(&text[value], "resource");
                        }
                    }
                }
                if link {
                    out.append(&mut own);
                }
                if embedded {
                    out.append(&mut nested);
                }
            }
            _ => drop(walk.skip()),
        }
    }
}

/// The edits that exchange the URIs in `raw`, in their addressed places only. `map` says what
/// stands there instead, `None` to leave it.
pub fn uri_edits(holder: UriHolder, raw: &[u8], map: &dyn Fn(&str) -> Option<String>) -> Vec<Edit> {
    // Without the key, plain or escaped, there is nothing to walk for: most tool results.
    let holds = |word: &str| memmem::find(raw, word.as_bytes()).is_some();
    if !holder.needles().iter().any(|key| holds(key)) && !holds("\\u") {
        return Vec::new();
    }
    let mut found = Vec::new();
    holder.places().find(raw, &mut Walk::new(raw), &mut found);
    found
        .into_iter()
        .filter_map(|at| Some((at.clone(), json_string(&map(&string(&raw[at])?)?))))
        .collect()
}

/// `raw` with its URIs exchanged; shared when there are none.
pub fn map_uris(holder: UriHolder, raw: &Bytes, map: &dyn Fn(&str) -> Option<String>) -> Bytes {
    edited(raw, uri_edits(holder, raw, map))
}

#[cfg(test)]
mod tests;
