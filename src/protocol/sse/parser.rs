//! The incremental parser of event streams.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Event, MESSAGE};

/// An event holds more than the parser may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is larger than {0} bytes")]
pub struct EventTooLarge(pub usize);

/// Room for a field's name and colon beside the data, in a line that is not complete yet.
const FIELD_NAME_MAX: usize = 16;

/// Reads events out of chunks.
///
/// [`Parser::feed`] it a chunk, take events with [`Parser::next`] until there is none, feed the
/// next. Each byte is looked at once and copied at most twice (into the line that a chunk border
/// cuts, and into the data of several lines); a `data:` line that lies in one chunk is shared, not
/// copied. An event that no blank line has ended when the stream ends is discarded with the
/// parser, as the standard demands: half a message is none.
pub struct Parser {
    max: usize,
    chunk: Bytes,
    /// The beginning of a line whose end has not come.
    line: BytesMut,
    /// The last line ended with CR, so a LF that comes first belongs to it.
    after_cr: bool,
    /// No line has been read: it may begin with a byte order mark.
    first: bool,
    /// A field of the event was understood.
    begun: bool,
    event: Event,
    data: Data,
    failed: bool,
}

enum Data {
    None,
    One(Bytes),
    Many(BytesMut),
}

impl Data {
    fn len(&self) -> usize {
        match self {
            Data::None => 0,
            Data::One(line) => line.len(),
            Data::Many(lines) => lines.len(),
        }
    }

    fn push(&mut self, line: Bytes) {
        *self = match std::mem::replace(self, Data::None) {
            Data::None => Data::One(line),
            Data::One(first) => {
                let mut lines = BytesMut::with_capacity(first.len() + line.len() + 1);
                lines.put_slice(&first);
                lines.put_u8(b'\n');
                lines.put_slice(&line);
                Data::Many(lines)
            }
            Data::Many(mut lines) => {
                lines.put_u8(b'\n');
                lines.put_slice(&line);
                Data::Many(lines)
            }
        }
    }

    fn take(&mut self) -> Bytes {
        match std::mem::replace(self, Data::None) {
            Data::None => Bytes::new(),
            Data::One(line) => line,
            Data::Many(lines) => lines.freeze(),
        }
    }
}

impl Parser {
    /// A parser that gives up on an event with more than `max` bytes of data.
    pub fn new(max: usize) -> Parser {
        Parser {
            max,
            chunk: Bytes::new(),
            line: BytesMut::new(),
            after_cr: false,
            first: true,
            begun: false,
            event: Event::default(),
            data: Data::None,
            failed: false,
        }
    }

    /// Hand over the next chunk. Best after [`Parser::next`] has said that there is no further
    /// event in the last one; what is left of that is kept otherwise, at the price of a copy.
    pub fn feed(&mut self, chunk: Bytes) {
        if self.chunk.is_empty() {
            self.chunk = chunk;
        } else {
            self.chunk = [&self.chunk[..], &chunk[..]].concat().into();
        }
    }

    /// The next event of the chunks handed over, or `None` if they hold no further complete one.
    ///
    /// # Errors
    /// When the event is larger than the bound. Where the next would begin is not known then, so
    /// every later call gives the same error.
    #[allow(clippy::should_implement_trait)] // An iterator's `None` is final, this one's is not.
    pub fn next(&mut self) -> Result<Option<Event>, EventTooLarge> {
        if self.failed {
            return Err(EventTooLarge(self.max));
        }
        let next = self.advance();
        if next.is_err() {
            self.failed = true;
            (self.chunk, self.line, self.data) = (Bytes::new(), BytesMut::new(), Data::None);
        }
        next
    }

    fn advance(&mut self) -> Result<Option<Event>, EventTooLarge> {
        while let Some(line) = self.take_line()? {
            if !line.is_empty() {
                self.take_field(&line)?;
            } else if std::mem::take(&mut self.begun) {
                let event = std::mem::take(&mut self.event);
                return Ok(Some(Event { data: self.data.take(), ..event }));
            }
        }
        Ok(None)
    }

    // The next complete line without its end, or `None` when the chunk is used up.
    fn take_line(&mut self) -> Result<Option<Bytes>, EventTooLarge> {
        if self.after_cr && !self.chunk.is_empty() {
            self.after_cr = false;
            if self.chunk[0] == b'\n' {
                let _ = self.chunk.split_to(1);
            }
        }
        let Some(end) = memchr::memchr2(b'\n', b'\r', &self.chunk) else {
            self.keep(self.chunk.len())?;
            self.chunk = Bytes::new();
            return Ok(None);
        };
        let mut line = if self.line.is_empty() {
            self.chunk.split_to(end)
        } else {
            self.keep(end)?;
            let _ = self.chunk.split_to(end);
            std::mem::take(&mut self.line).freeze()
        };
        self.after_cr = self.chunk[0] == b'\r';
        let _ = self.chunk.split_to(1);
        if std::mem::take(&mut self.first) && line.starts_with(b"\xef\xbb\xbf") {
            let _ = line.split_to(3);
        }
        Ok(Some(line))
    }

    fn keep(&mut self, n: usize) -> Result<(), EventTooLarge> {
        self.check(self.line.len() + n, self.max.saturating_add(FIELD_NAME_MAX))?;
        self.line.extend_from_slice(&self.chunk[..n]);
        Ok(())
    }

    // Only what is kept counts: comments that keep a silent stream alive for a week must not add
    // up to an event that is too large.
    fn check(&self, more: usize, max: usize) -> Result<(), EventTooLarge> {
        let names = self.event.id.as_ref().map_or(0, String::len)
            + self.event.event.as_ref().map_or(0, |name| name.len());
        if names + self.data.len() + more > max {
            return Err(EventTooLarge(self.max));
        }
        Ok(())
    }

    fn take_field(&mut self, line: &Bytes) -> Result<(), EventTooLarge> {
        let (name, value) = match memchr::memchr(b':', line) {
            None => (&line[..], Bytes::new()),
            Some(0) => return Ok(()),
            Some(at) => {
                let space = usize::from(line.get(at + 1) == Some(&b' '));
                (&line[..at], line.slice(at + 1 + space..))
            }
        };
        match name {
            b"data" => {
                // A second line brings its line feed, also behind an empty first one.
                let feed = usize::from(!matches!(self.data, Data::None));
                self.check(value.len() + feed, self.max)?;
                self.data.push(value);
            }
            b"event" => {
                self.event.event = None;
                self.event.event = Some(match self.text(&value)? {
                    Cow::Borrowed(MESSAGE) => Cow::Borrowed(MESSAGE),
                    name => name.into_owned().into(),
                });
            }
            b"id" if !value.contains(&0) => {
                self.event.id = None;
                self.event.id = Some(self.text(&value)?.into_owned());
            }
            b"retry" => match pause(&value) {
                Some(pause) => self.event.retry = Some(pause),
                None => return Ok(()),
            },
            _ => return Ok(()),
        }
        self.begun = true;
        Ok(())
    }

    // Bytes that are no UTF-8 grow to three each: what counts is what is kept.
    fn text<'a>(&self, value: &'a [u8]) -> Result<Cow<'a, str>, EventTooLarge> {
        let text = String::from_utf8_lossy(value);
        self.check(text.len(), self.max)?;
        Ok(text)
    }
}

// Digits only: the number parser would take a sign as well.
fn pause(value: &[u8]) -> Option<Duration> {
    if !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok().map(Duration::from_millis)
}
