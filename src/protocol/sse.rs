//! Event streams: an incremental reader and the few forms we write.
//!
//! The reader takes chunks of any size (WHATWG HTML, "server-sent events"): comments, `retry:`
//! alone, empty data, several data lines, CR, LF and CRLF also across chunks, a byte order mark.
//! An event that is not ended by a blank line when the stream ends is discarded, as the standard
//! says.

use bytes::{BufMut, Bytes, BytesMut};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Event {
    /// `event:`
    pub event: Option<String>,
    /// `id:`
    pub id: Option<String>,
    /// `retry:` in milliseconds.
    pub retry: Option<u64>,
    /// The data lines joined with line feeds; empty for priming events.
    pub data: Bytes,
}

/// An event is larger than the reader's bound.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is larger than {0} bytes")]
pub struct TooLarge(pub usize);

/// Reads events from chunks.
pub struct Reader {
    max: usize,
    line: BytesMut,
    started: bool,
    skip_lf: bool,
    event: Event,
    data: Vec<Bytes>,
    size: usize,
    any: bool,
}

impl Reader {
    /// A reader that refuses events of more than `max` bytes.
    pub fn new(max: usize) -> Reader {
        Reader {
            max,
            line: BytesMut::new(),
            started: false,
            skip_lf: false,
            event: Event::default(),
            data: Vec::new(),
            size: 0,
            any: false,
        }
    }

    /// Take one chunk and append the events it completes to `out`.
    pub fn feed(&mut self, mut chunk: Bytes, out: &mut Vec<Event>) -> Result<(), TooLarge> {
        while !chunk.is_empty() {
            if self.skip_lf {
                self.skip_lf = false;
                if chunk[0] == b'\n' {
                    let _ = chunk.split_to(1);
                    continue;
                }
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', &chunk) else {
                self.size += chunk.len();
                if self.size > self.max {
                    return Err(TooLarge(self.max));
                }
                self.line.extend_from_slice(&chunk);
                return Ok(());
            };
            let part = chunk.split_to(end);
            self.skip_lf = chunk[0] == b'\r';
            let _ = chunk.split_to(1);
            self.size += part.len();
            if self.size > self.max {
                return Err(TooLarge(self.max));
            }
            // A line within one chunk is shared, not copied.
            let mut line = if self.line.is_empty() {
                part
            } else {
                self.line.extend_from_slice(&part);
                self.line.split().freeze()
            };
            if !self.started {
                self.started = true;
                if line.starts_with(b"\xef\xbb\xbf") {
                    let _ = line.split_to(3);
                }
            }
            self.take(line, out);
        }
        Ok(())
    }

    fn take(&mut self, line: Bytes, out: &mut Vec<Event>) {
        if line.is_empty() {
            self.size = 0;
            if std::mem::take(&mut self.any) {
                let mut event = std::mem::take(&mut self.event);
                event.data = join(std::mem::take(&mut self.data));
                out.push(event);
            }
            return;
        }
        if line[0] == b':' {
            return;
        }
        let (name, value) = match memchr::memchr(b':', &line) {
            None => (line.clone(), Bytes::new()),
            Some(at) => {
                let space = usize::from(line.get(at + 1) == Some(&b' '));
                (line.slice(..at), line.slice(at + 1 + space..))
            }
        };
        let text = || String::from_utf8_lossy(&value).into_owned();
        match &name[..] {
            b"data" => self.data.push(value),
            b"event" => self.event.event = Some(text()),
            b"id" if !value.contains(&0) => self.event.id = Some(text()),
            b"retry" => match text().parse() {
                Ok(ms) if value.iter().all(u8::is_ascii_digit) => self.event.retry = Some(ms),
                _ => return,
            },
            _ => return,
        }
        self.any = true;
    }
}

fn join(mut lines: Vec<Bytes>) -> Bytes {
    match lines.len() {
        0 => Bytes::new(),
        1 => lines.remove(0),
        _ => {
            let mut out = BytesMut::new();
            for (i, line) in lines.iter().enumerate() {
                if i > 0 {
                    out.put_u8(b'\n');
                }
                out.put_slice(line);
            }
            out.freeze()
        }
    }
}

/// A message as one event. Raw line breaks inside it make several data lines, which the reader
/// joins again.
pub fn event(message: &Bytes) -> Bytes {
    event_with_id(message, None)
}

/// The same with an id.
pub fn event_with_id(message: &Bytes, id: Option<&str>) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 48);
    if let Some(id) = id {
        out.put_slice(b"id: ");
        out.put_slice(id.as_bytes());
        out.put_u8(b'\n');
    }
    out.put_slice(b"event: message\n");
    let mut rest: &[u8] = message;
    loop {
        out.put_slice(b"data: ");
        let Some(at) = memchr::memchr2(b'\n', b'\r', rest) else {
            out.put_slice(rest);
            break;
        };
        out.put_slice(&rest[..at]);
        out.put_u8(b'\n');
        let crlf = rest[at] == b'\r' && rest.get(at + 1) == Some(&b'\n');
        rest = &rest[at + 1 + usize::from(crlf)..];
    }
    out.put_slice(b"\n\n");
    out.freeze()
}

/// A comment: a sign of life that means nothing.
pub fn comment(text: &str) -> Bytes {
    debug_assert!(!text.contains(['\n', '\r']), "a comment is one line");
    Bytes::from(format!(": {text}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(chunks: &[&[u8]]) -> Vec<Event> {
        let mut reader = Reader::new(1 << 20);
        let mut out = Vec::new();
        for c in chunks {
            reader.feed(Bytes::copy_from_slice(c), &mut out).unwrap();
        }
        out
    }

    fn data(events: &[Event]) -> Vec<String> {
        events.iter().map(|e| String::from_utf8(e.data.to_vec()).unwrap()).collect()
    }

    #[test]
    fn all_line_ends_comments_and_odd_fields() {
        let text = b"\xef\xbb\xbf: hi\r\nid: 7\r\ndata: a\r\ndata:b\r\n\r\nretry: 300\n\nevent: x\rdata\r\rfoo: bar\n\ndata: lost";
        let events = read(&[text]);
        assert_eq!(data(&events), ["a\nb", "", ""]);
        assert_eq!(events[0].id.as_deref(), Some("7"));
        assert_eq!(events[1].retry, Some(300));
        assert_eq!(events[2].event.as_deref(), Some("x"));
    }

    #[test]
    fn an_event_has_a_bound() {
        let mut reader = Reader::new(100);
        let mut out = Vec::new();
        let chunk = Bytes::from(vec![b'x'; 60]);
        assert!(reader.feed(chunk.clone(), &mut out).is_ok());
        assert_eq!(reader.feed(chunk, &mut out), Err(TooLarge(100)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            messages in prop::collection::vec("[^\r]{0,80}", 0..6),
            cuts in prop::collection::vec(0usize..600, 0..12),
        ) {
            let mut stream = Vec::new();
            for m in &messages {
                stream.extend_from_slice(&comment("k"));
                stream.extend_from_slice(&event(&Bytes::from(m.clone())));
            }
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &stream[w[0]..w[1]]).collect();
            prop_assert_eq!(data(&read(&chunks)), messages);
        }
    }
}
