//! HTTP/1.1 as both sides of the gateway speak it: where a body ends (RFC 9112, 6 and 7).

use std::{fmt, io};

use bytes::{Buf as _, Bytes, BytesMut};

/// A body of known length up to this is given in one piece: that saves its reader a copy.
const WHOLE_MAX: u64 = 256 << 10;
/// Room for what is read at a time of a longer one: as much as a socket mostly holds, and little
/// beside what may be kept of a large answer.
const ROOM: usize = 64 << 10;
/// Room for what is read at a time where nothing is announced.
pub const READ_SIZE: usize = 8 << 10;
/// Longest line that says how long a chunk is, or is a trailer; and most bytes of trailers.
const LINE_MAX: usize = 4 << 10;
const TRAILERS_MAX: usize = 16 << 10;

/// What is left of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// So many bytes.
    Length(u64),
    /// All that comes before the connection ends.
    UntilClose,
    /// Chunks, the size of the next one first (RFC 9112, 7.1). What it says beside the size means
    /// nothing here.
    Size,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The end of a chunk's line.
    ChunkEnd,
    /// Trailers, of which so many bytes were read. They mean nothing here.
    Trailers(usize),
    /// Nothing.
    Nothing,
}

/// What can be done with what has been read of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// These bytes are of it.
    Data(Bytes),
    /// More is needed; there should be room for so much.
    Read(usize),
    /// It has ended.
    End,
}

impl Left {
    /// Whether the end was seen.
    pub fn is_over(self) -> bool {
        self == Left::Nothing
    }

    /// Take from the front of `unread` what is of the body.
    ///
    /// # Errors
    /// What is no chunk.
    pub fn step(&mut self, unread: &mut BytesMut) -> io::Result<Step> {
        loop {
            match *self {
                Left::Nothing => return Ok(Step::End),
                Left::Length(0) => *self = Left::Nothing,
                Left::Length(left) => {
                    if left <= WHOLE_MAX && (unread.len() as u64) < left {
                        return Ok(Step::Read(left as usize - unread.len()));
                    }
                    if unread.is_empty() {
                        return Ok(Step::Read(ROOM));
                    }
                    let data = take(unread, left);
                    let left = left - data.len() as u64;
                    *self = if left == 0 { Left::Nothing } else { Left::Length(left) };
                    return Ok(Step::Data(data));
                }
                Left::UntilClose | Left::Chunk(_) if unread.is_empty() => {
                    return Ok(Step::Read(READ_SIZE));
                }
                Left::UntilClose => return Ok(Step::Data(unread.split().freeze())),
                Left::Size => {
                    let Some(line) = line(unread)? else { return Ok(Step::Read(READ_SIZE)) };
                    *self = match size(&line)? {
                        0 => Left::Trailers(0),
                        size => Left::Chunk(size),
                    };
                }
                Left::Chunk(left) => {
                    let data = take(unread, left);
                    let left = left - data.len() as u64;
                    *self = if left == 0 { Left::ChunkEnd } else { Left::Chunk(left) };
                    return Ok(Step::Data(data));
                }
                Left::ChunkEnd => match &unread[..] {
                    [b'\r', b'\n', ..] => {
                        unread.advance(2);
                        *self = Left::Size;
                    }
                    [] | [b'\r'] => return Ok(Step::Read(READ_SIZE)),
                    _ => return Err(broken("a chunk that does not end where it should")),
                },
                Left::Trailers(seen) => {
                    let Some(line) = line(unread)? else { return Ok(Step::Read(READ_SIZE)) };
                    if line.is_empty() {
                        *self = Left::Nothing;
                        continue;
                    }
                    let seen = seen + line.len() + "\r\n".len();
                    if seen > TRAILERS_MAX {
                        return Err(broken("trailers without end"));
                    }
                    *self = Left::Trailers(seen);
                }
            }
        }
    }
}

fn take(unread: &mut BytesMut, most: u64) -> Bytes {
    let n = usize::try_from(most).map_or(unread.len(), |most| most.min(unread.len()));
    unread.split_to(n).freeze()
}

// The next line without its end; `None` while it is not all there.
fn line(unread: &mut BytesMut) -> io::Result<Option<BytesMut>> {
    let Some(end) = memchr::memchr(b'\n', unread) else {
        return if unread.len() > LINE_MAX { Err(broken("a line without end")) } else { Ok(None) };
    };
    if end > LINE_MAX || end == 0 || unread[end - 1] != b'\r' {
        return Err(broken("a line that does not end as it should"));
    }
    let mut line = unread.split_to(end + 1);
    line.truncate(end - 1);
    Ok(Some(line))
}

// Without extensions, which mean nothing here.
fn size(line: &[u8]) -> io::Result<u64> {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
    let wrong = || broken("a chunk without a size");
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(wrong());
    }
    let text = std::str::from_utf8(digits).map_err(|_| wrong())?;
    u64::from_str_radix(text, 16).map_err(|_| wrong())
}

/// A head that was read, to be known again where only the length of the body differs.
pub struct Said {
    text: Bytes,
    // Where in the text the digits of that length are.
    digits: (usize, usize),
}

impl fmt::Debug for Said {
    // There may be a key in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Said").finish_non_exhaustive()
    }
}

impl Said {
    /// This one, if it says the length of a body once, and as everybody writes it.
    pub fn of(text: &[u8]) -> Option<Said> {
        let name = b"content-length:";
        let (mut at, mut found) = (0, None);
        for line in text.split_inclusive(|b| *b == b'\n') {
            if line.get(..name.len()).is_some_and(|said| said.eq_ignore_ascii_case(name)) {
                let value = line[name.len()..].strip_suffix(b"\r\n")?.trim_ascii_start();
                plain(value)?;
                let to = at + line.len() - "\r\n".len();
                if found.replace((to - value.len(), to)).is_some() {
                    return None;
                }
            }
            at += line.len();
        }
        Some(Said { text: Bytes::copy_from_slice(text), digits: found? })
    }

    /// Its text.
    pub fn text(&self) -> &Bytes {
        &self.text
    }

    /// If `bytes` begin with the same head: how long the body is now, and how long the head. All of
    /// it is compared, whatever differs: there may be a key in it.
    pub fn find(&self, bytes: &[u8]) -> Option<(u64, usize)> {
        let (before, behind) = (&self.text[..self.digits.0], &self.text[self.digits.1..]);
        let (said, rest) = bytes.split_at_checked(before.len())?;
        let digits = rest.iter().take(PLAIN_MAX + 1).position(|b| !b.is_ascii_digit())?;
        let (digits, rest) = rest.split_at(digits);
        let other = differences(before, said) | differences(behind, rest.get(..behind.len())?);
        if std::hint::black_box(other) != 0 {
            return None;
        }
        Some((plain(digits)?, before.len() + digits.len() + behind.len()))
    }
}

// Of two that are equally long, without a look at where they are.
fn differences(known: &[u8], said: &[u8]) -> u8 {
    known.iter().zip(said).fold(0, |other, (known, said)| other | (known ^ said))
}

/// Most digits of a length that is known again; so many fit into its number.
const PLAIN_MAX: usize = 15;

// The length of a body that is there, as everybody writes it.
fn plain(digits: &[u8]) -> Option<u64> {
    if digits.len() > PLAIN_MAX || matches!(digits, [] | [b'0', ..]) {
        return None;
    }
    number(digits)
}

/// What the headers of a message say about its framing and its connection.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// `Content-Length`.
    pub length: Option<u64>,
    alive: bool,
    closes: bool,
}

impl Seen {
    /// Nothing seen yet, in a message of HTTP/1.1 or 1.0: whose connections go on by themselves,
    /// and do not.
    pub fn of(is_new: bool) -> Seen {
        Seen { length: None, alive: is_new, closes: false }
    }

    /// Whether the connection goes on afterwards. Whoever says `close` anywhere means it (RFC
    /// 9112, 9.3).
    pub fn alive(&self) -> bool {
        self.alive && !self.closes
    }

    /// Read one `Content-Length`. Several that agree are one (RFC 9112, 6.3).
    ///
    /// # Errors
    /// What is no length, or another one than before.
    pub fn length(&mut self, value: &[u8]) -> io::Result<()> {
        for part in value.split(|b| *b == b',') {
            let length =
                number(part.trim_ascii()).ok_or_else(|| broken("a Content-Length that is none"))?;
            if self.length.is_some_and(|other| other != length) {
                return Err(broken("two different values of Content-Length"));
            }
            self.length = Some(length);
        }
        Ok(())
    }

    /// Read one `Connection`.
    pub fn connection(&mut self, value: &[u8]) {
        for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.closes = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.alive = true;
            }
        }
    }
}

/// Read a number of nothing but digits.
pub fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, b| {
        let digit = b.is_ascii_digit().then(|| b - b'0')?;
        n.checked_mul(10)?.checked_add(digit.into())
    })
}

/// Write a number.
pub fn decimal(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// What is no HTTP.
pub fn broken(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_nothing_but_digits() {
        for n in [0, 7, 10, 123_456, u64::MAX - 1, u64::MAX] {
            let mut text = Vec::new();
            decimal(&mut text, n);
            assert_eq!((&*text, number(&text)), (n.to_string().as_bytes(), Some(n)));
        }
        assert_eq!(number(b"007"), Some(7));
        for text in ["", "+1", "-1", " 1", "1 ", "1.0", "1e3", "\"1\"", "18446744073709551616"] {
            assert_eq!(number(text.as_bytes()), None, "{text}");
        }
    }
}
