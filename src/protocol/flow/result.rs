//! What the members of an answer mean for the bytes around them.

use std::ops::Range;

use super::super::address::{Place, UriHolder, json_string};
use super::super::form::{CACHE_SCOPE, RESULT_TYPE, TTL_MS};
use super::super::revision::{Era, Revision};
use super::super::walk;
use super::{Coming, Flow, KEY_MAX, Odd, Rules, What};

/// A short value that decides something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    Jsonrpc,
    Id,
    ResultType,
    IsError,
    // Of a content block.
    Type,
}

// The members of which there may be one only.
const JSONRPC: u16 = 1;
const ID: u16 = 1 << 1;
const RESULT: u16 = 1 << 2;
const TYPE_OF_RESULT: u16 = 1 << 3;
const IS_ERROR: u16 = 1 << 4;
const CONTENT: u16 = 1 << 5;
const STRUCTURED: u16 = 1 << 6;

/// What is known of the answer so far.
#[derive(Default)]
pub struct Known {
    seen: u16,
    /// A tool's result that says it is an error.
    pub is_error: bool,
    // It has begun to say what makes results large, so it is a whole one.
    has_content: bool,
    // The array `content` of a tool's result that older readers insist on.
    content: Content,
    // Its structured content is cut, because it is no object.
    structured_cut: bool,
    has_task: bool,
    // Members of the newest revision: whether they came, and whether ours went ahead.
    era_seen: [bool; 3],
    era_added: [bool; 3],
    // Where the result's members begin, until something leaves.
    open: usize,
    // What the value is that is being read.
    scalar: Option<Scalar>,
    value_of: Option<Member>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Content {
    #[default]
    Unseen,
    // It may still get items.
    Open,
    Empty,
    Full,
}

// A member of the result whose value decides about it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Member {
    Content,
    Structured,
}

const ERA: [(&str, &str); 3] =
    [(RESULT_TYPE, "\"complete\""), (TTL_MS, "0"), (CACHE_SCOPE, "\"private\"")];

/// A content block whose URIs count, or not, by its type.
#[derive(Default)]
pub struct Block {
    typed: bool,
    link: bool,
    embedded: bool,
    // URIs that wait for the type: its own, and that of its resource.
    own: Vec<Range<usize>>,
    nested: Vec<Range<usize>>,
    // Such that were passed on as they came.
    passed: (bool, bool),
}

static EMBEDDED: Place = Place::Object(&[("uri", Place::Uri)]);

impl Block {
    /// From where on it is not decided.
    pub fn pending(&self) -> Option<usize> {
        self.own.iter().chain(&self.nested).map(|uri| uri.start).min()
    }

    /// So many bytes before it were taken.
    pub fn moved(&mut self, by: usize) {
        for uri in self.own.iter_mut().chain(&mut self.nested) {
            *uri = uri.start - by..uri.end - by;
        }
    }
}

impl Rules<'_> {
    /// Whether answers can be passed on in pieces at all: those that grow large, and whose content
    /// the caller's revision has words for.
    pub fn can_flow(&self) -> bool {
        match self.method.name {
            "resources/read" => true,
            // See `older::result`: blocks are put in other words.
            "tools/call" | "prompts/get" => self.to >= Revision::R2025_06_18,
            _ => false,
        }
    }

    // Old readers insist on some members (see `older::result`).
    fn is_mended(&self) -> bool {
        self.to.era() == Era::Legacy && self.method.name == "tools/call"
    }

    fn era_goes(&self) -> bool {
        self.from == Era::Modern && self.to.era() == Era::Legacy
    }

    fn era_comes(&self) -> bool {
        self.from == Era::Legacy && self.to.era() == Era::Modern
    }
}

impl Flow<'_> {
    /// Whether it is a result of which more may come than can be kept, and nothing can be found
    /// out any more that would put other bytes before those that are there.
    pub(super) fn is_answer(&self) -> bool {
        let known = &self.known;
        let is_mended = match known.content {
            Content::Full => true,
            Content::Empty => known.seen & STRUCTURED != 0 && !known.structured_cut,
            Content::Unseen | Content::Open => false,
        };
        known.has_content && (is_mended || !self.rules.is_mended()) && self.rules.can_flow()
    }

    /// The members that a modern caller needs and an old upstream has not said so far.
    pub(super) fn go_ahead(&mut self) {
        if !self.rules.era_comes() {
            return;
        }
        let mut text = Vec::new();
        let wanted = if self.rules.method.cacheable { 3 } else { 1 };
        for (n, (key, value)) in ERA.iter().enumerate().take(wanted) {
            if !self.known.era_seen[n] {
                self.known.era_added[n] = true;
                text.push(format!("\"{key}\":{value},"));
            }
        }
        let open = self.known.open;
        self.out.replace(open..open, text.concat().as_bytes());
    }

    /// # Errors
    /// When the envelope is not that of an answer to our request.
    pub(super) fn is_ours(&self) -> Result<(), Odd> {
        let all = JSONRPC | ID | RESULT;
        let known = &self.known;
        if known.seen & all != all {
            return Err(Odd("it lacks a member of the envelope"));
        }
        Ok(())
    }

    fn once(&mut self, member: u16) -> Result<(), Odd> {
        let before = self.known.seen;
        self.known.seen |= member;
        if before & member != 0 { Err(Odd("a member stands twice")) } else { Ok(()) }
    }

    pub(super) fn key_begins(&mut self) {
        if let (What::Result, Some(cut)) = (self.top(), self.out.cut) {
            // What stood between a member that is cut and the next goes too.
            self.out.bytes.truncate(cut);
        }
        self.out.capture = Some(self.out.len());
    }

    /// A key is longer than any of ours.
    pub(super) fn long_key(&mut self) -> Result<(), Odd> {
        self.out.capture = None;
        match self.top() {
            What::Envelope | What::Result => Err(Odd("a key is too long")),
            _ => Ok(()),
        }
    }

    pub(super) fn key_ends(&mut self) -> Result<(), Odd> {
        let start = self.out.capture.take().unwrap_or(self.out.len());
        if self.out.len() - start > KEY_MAX {
            return self.long_key();
        }
        let raw = self.out.bytes[start..].to_vec();
        match self.top() {
            What::Envelope => self.of_envelope(&raw)?,
            What::Result => self.of_result(&raw, start)?,
            What::Members(members) => {
                if let Some((_, place)) = members.iter().find(|(name, _)| walk::says(&raw, name)) {
                    self.coming = Coming::At(place);
                }
            }
            What::Block => {
                if walk::says(&raw, "uri") {
                    self.coming = Coming::At(&Place::Uri);
                } else if walk::says(&raw, "resource") {
                    self.coming = Coming::At(&EMBEDDED);
                } else if walk::says(&raw, "type") {
                    self.coming = Coming::Scalar(Scalar::Type);
                }
            }
            What::Items(_) | What::Other => {}
        }
        Ok(())
    }

    fn of_envelope(&mut self, raw: &[u8]) -> Result<(), Odd> {
        let key = walk::string(raw).ok_or(Odd("a key says no text"))?;
        match &*key {
            "jsonrpc" => {
                self.once(JSONRPC)?;
                self.coming = Coming::Scalar(Scalar::Jsonrpc);
            }
            "id" => {
                self.once(ID)?;
                self.coming = Coming::Scalar(Scalar::Id);
            }
            "result" => {
                self.once(RESULT)?;
                self.coming = Coming::Result;
            }
            "error" | "method" | "params" => return Err(Odd("it is no result")),
            _ => {}
        }
        Ok(())
    }

    fn of_result(&mut self, raw: &[u8], start: usize) -> Result<(), Odd> {
        let key = walk::string(raw).ok_or(Odd("a key says no text"))?;
        let is_mended = self.rules.is_mended();
        if matches!(&*key, "content" | "contents" | "messages" | "structuredContent") {
            self.known.has_content = true;
        }
        if let Some(n) = ERA.iter().position(|(name, _)| *name == key) {
            if n == 0 {
                self.once(TYPE_OF_RESULT)?;
                self.coming = Coming::Scalar(Scalar::ResultType);
            }
            self.known.era_seen[n] = true;
            if self.rules.era_goes() || self.known.era_added[n] {
                self.cut(start);
                return Ok(());
            }
        } else if key == "isError" {
            self.once(IS_ERROR)?;
            self.coming = Coming::Scalar(Scalar::IsError);
        } else if is_mended && key == "structuredContent" {
            self.once(STRUCTURED)?;
            // Its value decides.
            self.known.value_of = Some(Member::Structured);
            return Ok(());
        } else if is_mended && key == "task" {
            self.known.has_task = true;
        } else if let Some(place) = place_in_result(self.rules.method.name, &key) {
            if is_mended && key == "content" {
                self.once(CONTENT)?;
                self.known.value_of = Some(Member::Content);
            }
            self.coming = Coming::At(place);
        }
        self.stays();
        self.mendable()
    }

    // A task has no content that would have to be mended (see `older::result`); which of the two
    // it is may not be found out too late.
    fn mendable(&self) -> Result<(), Odd> {
        let Known { structured_cut, has_task, content, .. } = self.known;
        if structured_cut && (has_task || content == Content::Empty) {
            return Err(Odd("its content has to be put in other words"));
        }
        Ok(())
    }

    // The member whose key begins there goes.
    fn cut(&mut self, start: usize) {
        let from = *self.out.cut.get_or_insert(start);
        self.out.bytes.truncate(from);
        self.out.mute = true;
    }

    fn stays(&mut self) {
        self.out.cut = None;
        self.out.edge = None;
    }

    pub(super) fn value_begins(&mut self, b: u8, coming: Coming) -> Result<(), Odd> {
        match self.known.value_of.take() {
            Some(Member::Structured) if b == b'{' => self.stays(),
            Some(Member::Structured) => {
                self.known.structured_cut = true;
                self.mendable()?;
                // Its key is the last that was copied, and was held.
                let from = self.out.cut.or(self.known_key()).unwrap_or(self.out.len());
                self.cut(from);
            }
            Some(Member::Content) if b == b'[' => self.known.content = Content::Open,
            Some(Member::Content) => return Err(Odd("its content is no list")),
            None => {}
        }
        match coming {
            Coming::Result if b != b'{' => return Err(Odd("its result is no object")),
            Coming::Scalar(scalar) => match (scalar, b) {
                (Scalar::Type, b'{' | b'[') => self.typed(b"")?,
                (Scalar::IsError, b'{' | b'[') => {}
                (_, b'{' | b'[') => return Err(Odd("a value of the envelope is none")),
                _ => {
                    self.known.scalar = Some(scalar);
                    self.out.noted = Some(Vec::new());
                    if scalar == Scalar::Id {
                        self.out.capture = Some(self.out.len());
                    }
                }
            },
            Coming::At(Place::Uri) if b == b'"' => self.out.capture = Some(self.out.len()),
            Coming::At(_) | Coming::Result | Coming::Other => {}
        }
        Ok(())
    }

    // Where the key begins that was read last, if its member is not decided.
    fn known_key(&self) -> Option<usize> {
        let from = self.out.kept.or(self.out.edge)?;
        let quote = memchr::memchr(b'"', &self.out.bytes[from..])?;
        Some(from + quote)
    }

    pub(super) fn captured(&mut self) -> Result<(), Odd> {
        let at = self.out.capture.take();
        if let Some(noted) = self.out.noted.take() {
            return match self.known.scalar.take() {
                Some(Scalar::Jsonrpc) if noted != b"\"2.0\"" => Err(Odd("it is no JSON-RPC 2.0")),
                Some(Scalar::Id) if noted != self.rules.asked => Err(Odd("its id is another")),
                Some(Scalar::Id) => {
                    let at = at.unwrap_or(self.out.len());
                    self.out.replace(at..self.out.bytes.len(), self.rules.id);
                    Ok(())
                }
                Some(Scalar::ResultType) if noted != b"\"complete\"" => {
                    Err(Odd("its result is no complete one"))
                }
                Some(Scalar::IsError) => {
                    self.known.is_error = noted == b"true";
                    Ok(())
                }
                Some(Scalar::Type) => self.typed(&noted),
                Some(Scalar::Jsonrpc | Scalar::ResultType) | None => Ok(()),
            };
        }
        let Some(start) = at else { return Ok(()) };
        let uri = start..self.out.len();
        let is_own = matches!(self.top(), What::Block);
        let counts = match &mut self.block {
            None => true,
            Some(block) if !block.typed => {
                let pending = if is_own { &mut block.own } else { &mut block.nested };
                pending.push(uri);
                return Ok(());
            }
            Some(block) => {
                let (counts, passed) = if is_own {
                    (block.link, &mut block.passed.0)
                } else {
                    (block.embedded, &mut block.passed.1)
                };
                *passed |= !counts;
                counts
            }
        };
        if counts {
            self.exchange(uri);
        }
        Ok(())
    }

    // The type of the block that is open.
    fn typed(&mut self, raw: &[u8]) -> Result<(), Odd> {
        let Some(block) = &mut self.block else { return Ok(()) };
        block.typed = true;
        block.link |= walk::says(raw, "resource_link");
        block.embedded |= walk::says(raw, "resource");
        if block.link && block.passed.0 || block.embedded && block.passed.1 {
            return Err(Odd("a content block has two types"));
        }
        let (own, nested) = (std::mem::take(&mut block.own), std::mem::take(&mut block.nested));
        block.passed.0 |= !block.link && !own.is_empty();
        block.passed.1 |= !block.embedded && !nested.is_empty();
        let mut uris = Vec::new();
        for (counts, pending) in [(block.link, own), (block.embedded, nested)] {
            if counts {
                uris.extend(pending);
            }
        }
        // From the last to the first, so that each place still holds.
        uris.sort_by_key(|uri| std::cmp::Reverse(uri.start));
        for uri in uris {
            self.exchange(uri);
        }
        Ok(())
    }

    fn exchange(&mut self, uri: Range<usize>) {
        let public =
            walk::string(&self.out.bytes[uri.clone()]).and_then(|uri| (self.rules.map)(&uri));
        if let Some(public) = public {
            self.out.replace(uri, &json_string(&public));
        }
    }

    pub(super) fn result_begins(&mut self) {
        let open = self.out.len();
        self.known.open = open;
        self.out.edge = Some(open);
    }

    pub(super) fn item_begins(&mut self) {
        if self.known.content == Content::Open {
            self.known.content = Content::Full;
        }
    }

    pub(super) fn items_end(&mut self) {
        if self.known.content == Content::Open {
            self.known.content = Content::Empty;
        }
    }

    pub(super) fn member_ends(&mut self) {
        let out = &mut self.out;
        if std::mem::take(&mut out.mute) {
            return;
        }
        let end = out.len();
        (out.kept, out.edge) = (Some(end), Some(end));
    }

    pub(super) fn result_ends(&mut self) -> Result<(), Odd> {
        let out = &mut self.out;
        if let (Some(cut), Some(kept)) = (out.cut.take(), out.kept) {
            // The last ones go with the comma before them.
            out.bytes.drain(kept..cut);
        }
        (out.edge, out.kept) = (None, None);
        self.mendable()
    }
}

// What is to be found in a member of the result.
fn place_in_result(method: &str, key: &str) -> Option<&'static Place> {
    match UriHolder::of_result(method)?.places() {
        Place::Object(members) => members.iter().find(|(name, _)| *name == key).map(|(_, p)| p),
        _ => None,
    }
}
