//! An answer that is too large to be kept, rewritten while it passes.
//!
//! ```text
//!  push ─► UTF-8 ─► tokens ─► levels: envelope ─ result ─ the places of its URIs
//!                                │
//!                                ▼
//!            out: what may leave │ what is held until it is decided
//! ```
//!
//! What comes out is, byte for byte, what the whole answer would have become (a property test of
//! `downstream::render`): checked as [`super::message::Frame::scan`] checks, with the caller's id,
//! with public URIs, with the members that the caller's revision has. What comes is looked at once
//! and nothing is kept of it but what is not decided yet: a key, a URI, a member's comma, and,
//! where a content block says its `type` behind its URI, the block up to there.
//!
//! Nothing leaves before [`Flow::begin`]. Until then every oddity means only that the answer has
//! to be read as a whole, by those who can say what is wrong with it; after it, that the answer
//! must be broken off. What an answer can say so late that too much has left already:
//!
//! - another id, another `resultType` than `complete`, a second envelope member: broken off.
//! - an old upstream's `resultType` or cache hints behind its content, for a modern caller: ours
//!   went ahead, theirs are cut.

mod result;
mod scalar;

use bytes::Bytes;

use super::address::Place;
use super::message::MAX_DEPTH;
use super::method::Method;
use super::revision::{Era, Revision};
use result::{Block, Known, Scalar};
use scalar::{Number, Utf8, has_no_control};

/// Longest key that can be one of ours: the longest has 17 letters, each of which may be escaped
/// with six bytes.
const KEY_MAX: usize = 1024;
/// Longest of the short values that are read: ids have 20 digits, types some dozen letters.
const SCALAR_MAX: usize = 1024;

/// What an answer is to become.
pub struct Rules<'a> {
    /// The raw id that we gave the request.
    pub asked: &'a [u8],
    /// The raw id that its caller gave it.
    pub id: &'a [u8],
    /// What was asked for.
    pub method: &'static Method,
    /// The era of who answers.
    pub from: Era,
    /// The revision of the caller.
    pub to: Revision,
    /// What stands for a URI of the upstream; `None` to leave it.
    pub map: &'a (dyn Fn(&str) -> Option<String> + Sync),
}

/// What cannot be passed on in pieces, in words for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Odd(pub &'static str);

/// An answer on its way.
pub struct Flow<'a> {
    rules: Rules<'a>,
    utf8: Utf8,
    at: At,
    levels: Vec<Level>,
    coming: Coming,
    begun: bool,
    out: Out,
    known: Known,
    block: Option<Block>,
}

// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    // Before the message; so many bytes of a byte order mark have come.
    Start(u8),
    // A value comes, or the end of an array that has just begun.
    Value { or_end: bool },
    Key { or_end: bool },
    Colon,
    // Behind a value.
    Behind,
    Text { key: bool, escape: Escape },
    Number(Number),
    // `true`, `false` or `null`: what is still to come of it.
    Word(&'static [u8]),
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    // So many hexadecimal digits are to come.
    Hex(u8),
}

// An array or an object that is open.
#[derive(Clone, Copy)]
struct Level {
    is_object: bool,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    // Nothing in it is ours.
    Other,
    Envelope,
    Result,
    Members(&'static [(&'static str, Place)]),
    Items(&'static Place),
    Block,
}

// What the next value is.
#[derive(Clone, Copy)]
enum Coming {
    Other,
    Result,
    Scalar(Scalar),
    At(&'static Place),
}

// What has been made of the input and has not been taken. Positions count from its beginning.
#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    // A key or value that is being read begins here.
    capture: Option<usize>,
    // A short value is read besides, also where it is cut.
    noted: Option<Vec<u8>>,
    // Nothing is copied: it belongs to a member that is cut.
    mute: bool,
    // From here on the members of the result are not decided.
    edge: Option<usize>,
    // The end of the last member of the result that stays.
    kept: Option<usize>,
    // Where the first of the members began that have been cut since.
    cut: Option<usize>,
    // The last brace, which makes a message of all before it.
    brace: Option<usize>,
}

impl Out {
    fn copy(&mut self, bytes: &[u8]) {
        if let Some(noted) = &mut self.noted
            && noted.len() <= SCALAR_MAX
        {
            noted.extend_from_slice(&bytes[..bytes.len().min(SCALAR_MAX + 1 - noted.len())]);
        }
        if !self.mute {
            self.bytes.extend_from_slice(bytes);
        }
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn replace(&mut self, range: std::ops::Range<usize>, with: &[u8]) {
        self.bytes.splice(range, with.iter().copied());
    }
}

impl<'a> Flow<'a> {
    /// A message that has not begun.
    pub fn new(rules: Rules<'a>) -> Flow<'a> {
        Flow {
            rules,
            utf8: Utf8::default(),
            at: At::Start(0),
            levels: Vec::with_capacity(8),
            coming: Coming::Other,
            begun: false,
            out: Out::default(),
            known: Known::default(),
            block: None,
        }
    }

    /// What came next.
    ///
    /// # Errors
    /// When the message is none, or none that can be passed on in pieces. Nothing may be pushed
    /// any more.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Odd> {
        if !self.utf8.push(bytes) {
            return Err(Odd("it is not UTF-8"));
        }
        let mut reader = Reader { bytes, done: 0 };
        let mut i = 0;
        while let Some(&b) = bytes.get(i) {
            i = match self.at {
                At::Text { key, escape: Escape::None } => {
                    let rest = &bytes[i..];
                    let n = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
                    if !has_no_control(&rest[..n]) {
                        return Err(Odd("a string holds a control character"));
                    }
                    if key && self.out.capture.is_some_and(|at| self.out.len() + n > at + KEY_MAX) {
                        self.long_key()?;
                    }
                    match rest.get(n) {
                        Some(b'"') => self.text_end(key, &mut reader, i + n + 1)?,
                        Some(_) => self.at = At::Text { key, escape: Escape::Begun },
                        None => {}
                    }
                    i + n + 1
                }
                At::Text { key, escape } => {
                    self.at = At::Text { key, escape: escape.then(b)? };
                    i + 1
                }
                At::Number(number) => match number.then(b) {
                    Some(number) => {
                        self.at = At::Number(number);
                        i + 1
                    }
                    None if number.is_whole() => {
                        self.value_end(&mut reader, i)?;
                        i
                    }
                    None => return Err(Odd("a number is none")),
                },
                At::Word(rest) => {
                    if rest[0] != b {
                        return Err(Odd("a value is none"));
                    }
                    self.at = At::Word(&rest[1..]);
                    if rest.len() == 1 {
                        self.value_end(&mut reader, i + 1)?;
                    }
                    i + 1
                }
                _ => {
                    self.structure(b, &mut reader, i)?;
                    i + 1
                }
            };
        }
        reader.copy_to(&mut self.out, bytes.len());
        Ok(())
    }

    /// Whether what was pushed may leave from now on; decides what goes ahead of what is not known
    /// yet. If not, the answer has to be read as a whole.
    pub fn begin(&mut self) -> bool {
        let begins = !self.begun && self.can_begin();
        if begins {
            self.begun = true;
            self.go_ahead();
        }
        begins
    }

    /// Whether it may.
    pub fn can_begin(&self) -> bool {
        let is_in_result = matches!(self.levels.get(1), Some(Level { what: What::Result, .. }));
        is_in_result && self.held().is_none() && self.is_answer()
    }

    /// What may leave now.
    pub fn take(&mut self) -> Bytes {
        if !self.begun {
            return Bytes::new();
        }
        let held = self.held().unwrap_or(self.out.len());
        let rest = self.out.bytes.split_off(held);
        let less = |at: &mut usize| *at = at.saturating_sub(held);
        let out = &mut self.out;
        for at in [&mut out.capture, &mut out.edge, &mut out.kept, &mut out.cut, &mut out.brace] {
            at.iter_mut().for_each(less);
        }
        if let Some(block) = &mut self.block {
            block.moved(held);
        }
        std::mem::replace(&mut self.out.bytes, rest).into()
    }

    /// How much is held because it is not decided, in bytes.
    pub fn undecided(&self) -> usize {
        self.out.len()
    }

    /// That was all; what was held may be taken now. Says whether it is a tool's result that says
    /// it is an error.
    ///
    /// # Errors
    /// When it was not all of a message that answers our request.
    pub fn finish(&mut self) -> Result<bool, Odd> {
        if self.at != At::End || !self.utf8.is_whole() {
            return Err(Odd("it ends early"));
        }
        self.is_ours()?;
        self.out.brace = None;
        Ok(self.known.is_error)
    }

    // From where on nothing may leave.
    fn held(&self) -> Option<usize> {
        let out = &self.out;
        let pending = self.block.as_ref().and_then(Block::pending);
        [out.capture, out.edge, out.brace, pending].into_iter().flatten().min()
    }

    fn structure(&mut self, b: u8, reader: &mut Reader<'_>, i: usize) -> Result<(), Odd> {
        let is_space = matches!(b, b' ' | b'\t' | b'\n' | b'\r');
        match self.at {
            At::Start(mark @ 0..3) if b == b"\xef\xbb\xbf"[usize::from(mark)] => {
                self.at = At::Start(mark + 1);
                reader.done = i + 1;
            }
            // What is around a message is not of it.
            At::Start(0 | 3..) | At::End if b.is_ascii_whitespace() => {
                reader.done = i + 1;
                if self.at != At::End {
                    self.at = At::Start(4);
                }
            }
            At::Start(0 | 3..) if b == b'{' => self.open(b, What::Envelope)?,
            At::Start(_) => return Err(Odd("it is no object")),
            At::End => return Err(Odd("there is more behind it")),
            At::Value { .. } | At::Key { .. } | At::Colon | At::Behind if is_space => {}
            At::Value { or_end: true } if b == b']' => self.close(b, reader, i)?,
            At::Value { .. } => self.value(b, reader, i)?,
            At::Key { or_end: true } if b == b'}' => self.close(b, reader, i)?,
            At::Key { .. } if b == b'"' => {
                if !matches!(self.top(), What::Other) {
                    reader.copy_to(&mut self.out, i);
                    self.key_begins();
                }
                self.at = At::Text { key: true, escape: Escape::None };
            }
            At::Colon if b == b':' => self.at = At::Value { or_end: false },
            At::Behind if b == b',' => {
                self.at = match self.levels.last() {
                    Some(Level { is_object: true, .. }) => At::Key { or_end: false },
                    _ => At::Value { or_end: false },
                };
            }
            At::Behind if b == b'}' || b == b']' => self.close(b, reader, i)?,
            _ => return Err(Odd("it is not JSON")),
        }
        Ok(())
    }

    fn top(&self) -> What {
        self.levels.last().map_or(What::Other, |level| level.what)
    }

    fn value(&mut self, b: u8, reader: &mut Reader<'_>, i: usize) -> Result<(), Odd> {
        if let What::Items(place) = self.top() {
            self.coming = Coming::At(place);
            self.item_begins();
        }
        let coming = std::mem::replace(&mut self.coming, Coming::Other);
        if !matches!(coming, Coming::Other) || self.out.edge.is_some() {
            reader.copy_to(&mut self.out, i);
            self.value_begins(b, coming)?;
        }
        match b {
            b'{' | b'[' => {
                let what = match coming {
                    Coming::At(place) => inside(place, b),
                    Coming::Result => What::Result,
                    Coming::Other | Coming::Scalar(_) => What::Other,
                };
                self.open(b, what)?;
                if matches!(what, What::Result) {
                    reader.copy_to(&mut self.out, i + 1);
                    self.result_begins();
                } else if matches!(what, What::Block) {
                    self.block = Some(Block::default());
                }
            }
            b'"' => self.at = At::Text { key: false, escape: Escape::None },
            b't' => self.at = At::Word(b"rue"),
            b'f' => self.at = At::Word(b"alse"),
            b'n' => self.at = At::Word(b"ull"),
            _ => {
                self.at = At::Number(Number::begin(b).ok_or(Odd("a value is none"))?);
            }
        }
        Ok(())
    }

    fn open(&mut self, b: u8, what: What) -> Result<(), Odd> {
        if self.levels.len() >= MAX_DEPTH {
            return Err(Odd("it is nested too deep"));
        }
        let is_object = b == b'{';
        self.levels.push(Level { is_object, what });
        self.at = if is_object { At::Key { or_end: true } } else { At::Value { or_end: true } };
        Ok(())
    }

    fn close(&mut self, b: u8, reader: &mut Reader<'_>, i: usize) -> Result<(), Odd> {
        let level = self.levels.pop().filter(|level| level.is_object == (b == b'}'));
        let level = level.ok_or(Odd("it is not JSON"))?;
        match level.what {
            What::Result => {
                reader.copy_to(&mut self.out, i);
                self.result_ends()?;
            }
            What::Block => self.block = None,
            What::Envelope => {
                reader.copy_to(&mut self.out, i);
                self.out.brace = Some(self.out.len());
                reader.copy_to(&mut self.out, i + 1);
                self.at = At::End;
                return Ok(());
            }
            What::Items(_) => self.items_end(),
            What::Members(_) | What::Other => {}
        }
        self.value_end(reader, i + 1)
    }

    // A string ends before `end`.
    fn text_end(&mut self, key: bool, reader: &mut Reader<'_>, end: usize) -> Result<(), Odd> {
        if !key {
            return self.value_end(reader, end);
        }
        self.at = At::Colon;
        if self.out.capture.is_some() {
            reader.copy_to(&mut self.out, end);
            self.key_ends()?;
        }
        Ok(())
    }

    // A value ends before `end`.
    fn value_end(&mut self, reader: &mut Reader<'_>, end: usize) -> Result<(), Odd> {
        self.at = At::Behind;
        if self.out.capture.is_some() || self.out.noted.is_some() {
            reader.copy_to(&mut self.out, end);
            self.captured()?;
        }
        if matches!(self.top(), What::Result) {
            reader.copy_to(&mut self.out, end);
            self.member_ends();
        }
        Ok(())
    }
}

// What is inside of what stands at a place and begins with `b`.
fn inside(place: &'static Place, b: u8) -> What {
    match (place, b) {
        (Place::Object(members), b'{') => What::Members(members),
        (Place::Each(item) | Place::OneOrEach(item), b'[') => What::Items(item),
        (Place::OneOrEach(one), _) => inside(one, b),
        (Place::Block, b'{') => What::Block,
        _ => What::Other,
    }
}

impl Escape {
    fn then(self, b: u8) -> Result<Escape, Odd> {
        match (self, b) {
            (Escape::Begun, b'u') => Ok(Escape::Hex(4)),
            (Escape::Begun, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                Ok(Escape::None)
            }
            (Escape::Hex(1), b) if b.is_ascii_hexdigit() => Ok(Escape::None),
            (Escape::Hex(n), b) if b.is_ascii_hexdigit() => Ok(Escape::Hex(n - 1)),
            _ => Err(Odd("an escape in a string is none")),
        }
    }
}

// A piece of input, copied as far as `done`.
struct Reader<'a> {
    bytes: &'a [u8],
    done: usize,
}

impl Reader<'_> {
    fn copy_to(&mut self, out: &mut Out, end: usize) {
        if self.done < end {
            out.copy(&self.bytes[self.done..end]);
            self.done = end;
        }
    }
}
