//! What an upstream answers over HTTP/1.1: the head, and where its body ends.

use crate::framing;
use crate::upstream::transport::http::h1::again::Again;
use crate::upstream::transport::http::h1::head::{Framing, Media, Parsed, parse};
use crate::wire::Left;

/// Panics if something does not hold for `data`.
pub fn holds(data: &[u8]) {
    said_again(data);
    let Ok(Some((parsed, length))) = parse(data) else { return };
    assert!(length <= data.len());
    for end in [length / 3, length / 2, length - 1] {
        assert!(!matches!(parse(&data[..end]), Ok(Some(_))), "half a head");
    }
    let (alone, again) = parse(&data[..length]).expect("it was one").expect("a whole head");
    assert_eq!((again, facts(&alone)), (length, facts(&parsed)));
    // Nothing is sent on a connection whose last answer might not be over.
    assert!(!parsed.reusable || parsed.framing != Framing::UntilClose);
    let head = String::from_utf8_lossy(&data[..length]).to_ascii_lowercase();
    let names =
        |name: &str| head.lines().any(|l| l.strip_prefix(name).is_some_and(|l| l.starts_with(':')));
    if names("content-length") && names("transfer-encoding") {
        assert!(!parsed.reusable, "two framings");
    }
    let status = parsed.head.status;
    assert!(status.as_u16() != 101);
    if status.is_informational() || [204, 304].contains(&status.as_u16()) {
        assert_eq!(parsed.framing, Framing::Length(0));
    }
    let left = match parsed.framing {
        Framing::Length(0) => Left::Nothing,
        Framing::Length(length) => Left::Length(length),
        Framing::Chunked => Left::Size,
        Framing::UntilClose => Left::UntilClose,
    };
    framing::holds(left, &data[length..], data.len() % 13);
}

// Two heads on one connection, a zero between them: the one that was kept makes no difference.
fn said_again(data: &[u8]) {
    let Some(at) = memchr::memchr(0, data) else { return };
    let (one, other) = (&data[..at], &data[at + 1..]);
    let mut again = Again::default();
    for bytes in [one, one, other, other, one] {
        let read = |found: std::io::Result<Option<(Parsed, usize)>>| {
            found.map(|found| found.map(|(parsed, length)| (facts(&parsed), length))).map_err(drop)
        };
        assert_eq!(read(again.parse(bytes)), read(parse(bytes)));
    }
}

fn facts(parsed: &Parsed) -> (u16, Framing, bool, Media, [bool; 3]) {
    let Parsed { head, framing, reusable } = parsed;
    let said = [&head.location, &head.session, &head.retry_after].map(Option::is_some);
    (head.status.as_u16(), *framing, *reusable, head.media, said)
}
