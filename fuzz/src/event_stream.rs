//! The event stream parser beside a reader that is slow and obviously right.

use std::time::Duration;

use bytes::Bytes;

use crate::protocol::sse::{Event, Parser, event_with};

/// An input: how large an event may be, where the stream is cut, the stream.
///
/// The first byte is a letter that chooses the bound, the second a digit that says how many digits
/// follow. Those are lengths of chunks, used in turn until the stream ends; without any it is one
/// chunk. The rest is the stream. Other bytes than letters and digits count on from there.
struct Input<'a> {
    max: usize,
    cuts: &'a [u8],
    stream: &'a [u8],
}

fn input(data: &[u8]) -> Option<Input<'_>> {
    let [bound, cuts, rest @ ..] = data else { return None };
    let max = [1 << 20, 1000, 100, 30, 10, 1, 0][usize::from(bound.wrapping_sub(b'a') % 7)];
    let cuts = usize::from(cuts.wrapping_sub(b'0') % 16).min(rest.len());
    Some(Input { max, cuts: &rest[..cuts], stream: &rest[cuts..] })
}

/// What was read, and whether the reader gave up after it.
#[derive(Debug, PartialEq)]
struct Read {
    events: Vec<Event>,
    failed: bool,
}

fn read(chunks: &[&[u8]], max: usize, eager: bool) -> Read {
    let mut parser = Parser::new(max);
    let mut out = Read { events: Vec::new(), failed: false };
    let mut drain = |parser: &mut Parser| {
        loop {
            match parser.next() {
                Ok(Some(event)) => {
                    assert!(!out.failed, "an event after the end");
                    out.events.push(event);
                }
                Ok(None) => {
                    assert!(!out.failed, "what has failed stays failed");
                    return;
                }
                Err(_) => {
                    out.failed = true;
                    return;
                }
            }
        }
    };
    for chunk in chunks {
        parser.feed(Bytes::copy_from_slice(chunk));
        if eager {
            drain(&mut parser);
        }
    }
    drain(&mut parser);
    drain(&mut parser);
    out
}

/// Panics if something does not hold for `data`.
pub fn holds(data: &[u8]) {
    let Some(Input { max, cuts, stream }) = input(data) else { return };
    let model = model(stream);
    let whole = read(&[stream], max, true);
    let pieces = read(&chunks(stream, cuts), max, true);
    // Fed ahead of the reader, which costs a copy of what is not read at each chunk.
    let late = chunks(stream, cuts);
    let late = if late.len() <= 64 { read(&late, max, false) } else { read(&[stream], max, false) };
    let single = read(&stream.chunks(1).collect::<Vec<_>>(), max, true);
    for read in [&whole, &pieces, &late, &single] {
        // What is read is what the model reads, up to where the bound ends it.
        let events = &read.events[..];
        assert!(events.len() <= model.events.len(), "more events than there are");
        for (event, (wanted, _)) in events.iter().zip(&model.events) {
            assert_eq!(event, wanted);
            assert!(size(event) <= max, "{} bytes where {max} are allowed", size(event));
        }
        if read.failed {
            let next = model.events.get(events.len()).map_or(model.rest, |(_, length)| *length);
            assert!(next > max, "gave up on an event of {next} bytes where {max} are allowed");
        } else {
            assert_eq!(events.len(), model.events.len(), "lost one");
        }
    }
    for event in &whole.events {
        writes_back(event);
    }
}

// What is held of an event.
fn size(event: &Event) -> usize {
    event.data.len()
        + event.id.as_ref().map_or(0, String::len)
        + event.event.as_ref().map_or(0, |name| name.len())
}

fn chunks<'a>(stream: &'a [u8], cuts: &[u8]) -> Vec<&'a [u8]> {
    let mut out = Vec::new();
    let mut rest = stream;
    for cut in cuts.iter().cycle().take(stream.len()) {
        let (chunk, after) = rest.split_at(usize::from(cut.wrapping_sub(b'0')).min(rest.len()));
        out.push(chunk);
        rest = after;
    }
    out.push(rest);
    out
}

// An event that is written reads as itself.
fn writes_back(event: &Event) {
    let text = event_with(&event.data, event.id.as_deref(), event.event.as_deref());
    let again = read(&[&text], usize::MAX, true).events;
    // A type's NUL is left out: in an id it would cost the whole id.
    let name = event.event.as_ref().map(|name| name.replace('\0', "").into());
    let wanted = Event { event: name, retry: None, ..event.clone() };
    assert_eq!(again, [wanted]);
}

// The lines of a stream (WHATWG HTML 9.2.5): ended by CR LF, by LF or by CR. The last one is
// what no line end has ended.
fn lines(stream: &[u8]) -> Vec<&[u8]> {
    let mut rest = stream;
    let mut out = Vec::new();
    loop {
        let Some(end) = rest.iter().position(|b| *b == b'\n' || *b == b'\r') else {
            out.push(rest);
            return out;
        };
        out.push(&rest[..end]);
        let pair = rest[end..].starts_with(b"\r\n");
        rest = &rest[end + if pair { 2 } else { 1 }..];
    }
}

/// What a stream says.
struct Model {
    /// Each event with the length of all lines since the one before.
    events: Vec<(Event, usize)>,
    /// The length of all lines behind the last one.
    rest: usize,
}

// The events of a stream (WHATWG HTML 9.2.6). Two things differ from the standard, on purpose: an
// event without data is one too if a field was understood, and data stays bytes.
fn model(stream: &[u8]) -> Model {
    let mut events = Vec::new();
    let mut event = Event::default();
    let mut data: Option<Vec<u8>> = None;
    let (mut understood, mut bytes) = (false, 0);
    let mut lines = lines(stream);
    let unended = lines.pop().map_or(0, length);
    for (n, mut line) in lines.into_iter().enumerate() {
        bytes += length(line);
        if n == 0 {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            if understood {
                event.data = data.take().unwrap_or_default().into();
                events.push((std::mem::take(&mut event), bytes));
                (understood, bytes) = (false, 0);
            }
            continue;
        }
        let mut parts = line.splitn(2, |b| *b == b':');
        let name = parts.next().expect("there is always a first part");
        let value = parts.next().unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let text = String::from_utf8_lossy(value).into_owned();
        understood |= match name {
            b"data" => {
                data = Some(match data {
                    None => value.to_vec(),
                    Some(before) => [&before, b"\n".as_slice(), value].concat(),
                });
                true
            }
            b"event" => {
                event.event = Some(text.into());
                true
            }
            b"id" if !text.contains('\0') => {
                event.id = Some(text);
                true
            }
            b"retry" if text.chars().all(|c| c.is_ascii_digit()) => match text.parse() {
                Ok(pause) => {
                    event.retry = Some(Duration::from_millis(pause));
                    true
                }
                Err(_) => false,
            },
            _ => false,
        };
    }
    Model { events, rest: bytes + unended }
}

// As text, in which a byte that is no UTF-8 takes three.
fn length(line: &[u8]) -> usize {
    String::from_utf8_lossy(line).len()
}
