//! The body behind a head: as it is read in any pieces, beside a reader that is obviously right.

use bytes::BytesMut;

use crate::wire::{Left, Step};

/// What a body came to.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It has ended, and so many bytes behind it are not of it.
    Over(usize),
    /// There is more to come.
    Open,
    /// It is no body.
    Broken,
}

/// Panics if the body that `left` describes is read otherwise than the model reads it, from all of
/// `bytes` at once, one after the other, or in pieces of `piece`.
pub fn holds(left: Left, bytes: &[u8], piece: usize) {
    let wanted = model(left, bytes);
    for size in [bytes.len().max(1), piece.max(1), 1] {
        let read = read(left, bytes, size);
        assert_eq!(read.1, wanted.1, "in pieces of {size}");
        // What is broken may have been noticed before or behind the last good piece.
        let common = read.0.len().min(wanted.0.len());
        assert_eq!(read.0[..common], wanted.0[..common]);
        assert!(wanted.1 != End::Broken || read.0.len() <= wanted.0.len());
        assert!(matches!(wanted.1, End::Broken | End::Open) || read.0 == wanted.0);
    }
}

fn read(mut left: Left, bytes: &[u8], size: usize) -> (Vec<u8>, End) {
    let (mut unread, mut out) = (BytesMut::new(), Vec::new());
    let mut given = 0;
    loop {
        match left.step(&mut unread) {
            Err(_) => return (out, End::Broken),
            Ok(Step::End) => {
                assert!(left.is_over());
                return (out, End::Over(unread.len() + bytes.len() - given));
            }
            Ok(Step::Data(data)) => {
                assert!(!data.is_empty(), "a piece of nothing");
                out.extend_from_slice(&data);
            }
            Ok(Step::Read(room)) => {
                assert!(room > 0 && room <= 256 << 10, "room for {room}");
                if given == bytes.len() {
                    return (out, End::Open);
                }
                let end = (given + size).min(bytes.len());
                unread.extend_from_slice(&bytes[given..end]);
                given = end;
            }
        }
    }
}

// RFC 9112, 6 and 7.1, with the gateway's own bounds.
fn model(left: Left, bytes: &[u8]) -> (Vec<u8>, End) {
    match left {
        Left::Nothing => (vec![], End::Over(bytes.len())),
        Left::UntilClose => (bytes.to_vec(), End::Open),
        Left::Length(length) => match usize::try_from(length) {
            Ok(length) if length <= bytes.len() => {
                (bytes[..length].to_vec(), End::Over(bytes.len() - length))
            }
            _ => (bytes.to_vec(), End::Open),
        },
        _ => chunks(bytes),
    }
}

fn chunks(bytes: &[u8]) -> (Vec<u8>, End) {
    let (mut rest, mut out) = (bytes, Vec::new());
    loop {
        let head = match line(rest) {
            Ok((head, after)) => {
                rest = after;
                head
            }
            Err(end) => return (out, end),
        };
        let text: String = head.iter().map(|b| *b as char).collect();
        let digits =
            text.split(';').next().unwrap_or("").trim_end_matches([' ', '\t', '\n', '\r', '\x0c']);
        let is_hex = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_hexdigit());
        let Some(size) = is_hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten() else {
            return (out, End::Broken);
        };
        if size == 0 {
            break;
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > rest.len() {
            out.extend_from_slice(rest);
            return (out, End::Open);
        }
        out.extend_from_slice(&rest[..size]);
        rest = &rest[size..];
        match rest {
            [b'\r', b'\n', after @ ..] => rest = after,
            [] | [b'\r'] => return (out, End::Open),
            _ => return (out, End::Broken),
        }
    }
    // Inputs are smaller than what trailers may take.
    loop {
        match line(rest) {
            Ok(([], after)) => return (out, End::Over(after.len())),
            Ok((_, after)) => rest = after,
            Err(end) => return (out, end),
        }
    }
}

fn line(bytes: &[u8]) -> Result<(&[u8], &[u8]), End> {
    match bytes.iter().position(|b| *b == b'\n') {
        None if bytes.len() > 4096 => Err(End::Broken),
        None => Err(End::Open),
        Some(end) if end > 4096 || end == 0 || bytes[end - 1] != b'\r' => Err(End::Broken),
        Some(end) => Ok((&bytes[..end - 1], &bytes[end + 1..])),
    }
}
