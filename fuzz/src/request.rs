//! What a client sends over HTTP/1.1: the head, and where its body ends.

use bytes::Bytes;

use crate::downstream::h1::again::Again;
use crate::downstream::h1::head::{HEAD_MAX, HEADERS_MAX, Parsed, parse};
use crate::framing;
use crate::wire::Left;

/// Panics if something does not hold for `data`.
pub fn holds(data: &[u8]) {
    said_again(data);
    let bytes = Bytes::copy_from_slice(data);
    match parse(&bytes) {
        Ok(None) => assert!(data.len() <= HEAD_MAX),
        Err(wrong) => {
            assert!([400, 431, 501, 505].contains(&wrong.status), "{wrong:?}");
            assert!(!wrong.text.is_empty());
        }
        Ok(Some((parsed, length))) => {
            assert!(length <= data.len() && length <= HEAD_MAX);
            assert!(parsed.head.headers.all().count() <= HEADERS_MAX);
            // With less than all of it there is no head, and with more it is the same.
            for end in [length / 3, length / 2, length - 1] {
                assert!(!matches!(parse(&bytes.slice(..end)), Ok(Some(_))), "half a head");
            }
            let (alone, again) =
                parse(&bytes.slice(..length)).expect("it was one").expect("a whole head");
            assert_eq!((again, facts(&alone)), (length, facts(&parsed)));
            one_framing(&parsed);
            written_again(&parsed);
            framing::holds(parsed.left, &data[length..], data.len() % 13);
        }
    }
}

// Two heads on one connection, a zero between them: the one that was kept makes no difference.
fn said_again(data: &[u8]) {
    let Some(at) = memchr::memchr(0, data) else { return };
    let (one, other) =
        (Bytes::copy_from_slice(&data[..at]), Bytes::copy_from_slice(&data[at + 1..]));
    let mut again = Again::default();
    for bytes in [&one, &one, &other, &other, &one] {
        let read = |found: Result<Option<(Parsed, usize)>, _>| {
            found.map(|found| found.map(|(parsed, length)| (facts(&parsed), length)))
        };
        assert_eq!(read(again.parse(bytes)), read(parse(bytes)));
    }
}

type Facts = (Left, bool, bool, bool, usize);

fn facts(parsed: &Parsed) -> Facts {
    let Parsed { head, left, keep, expects, upgrades } = parsed;
    (*left, *keep, *expects, *upgrades, head.headers.all().count())
}

// Whoever stands before or behind us can read the end of the body in one way only.
fn one_framing(parsed: &Parsed) {
    let all = |name: &str| -> Vec<String> {
        let all = parsed.head.headers.all().filter(|(said, _)| said == name);
        all.map(|(_, v)| String::from_utf8_lossy(v).trim().to_ascii_lowercase()).collect()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    assert!(lengths.is_empty() || codings.is_empty(), "two framings");
    if !codings.is_empty() {
        assert_eq!((&codings[..], parsed.left), (&["chunked".to_owned()][..], Left::Size));
        return;
    }
    let said: Vec<u64> = lengths
        .iter()
        .flat_map(|value| value.split(','))
        .map(|one| one.trim_matches([' ', '\t']).parse().expect("a length"))
        .collect();
    match said.first() {
        None | Some(0) => assert_eq!(parsed.left, Left::Nothing),
        Some(length) => assert_eq!(parsed.left, Left::Length(*length)),
    }
    assert!(said.iter().all(|length| *length == said[0]), "two lengths");
    assert!(!parsed.expects || !parsed.left.is_over());
}

// What we understood, said in the plainest way, is understood in the same way.
fn written_again(parsed: &Parsed) {
    let mut text = format!("{} /mcp {:?}\r\n", parsed.head.method, parsed.head.version);
    let mut out = std::mem::take(&mut text).into_bytes();
    for (name, value) in parsed.head.headers.all() {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if out.len() > HEAD_MAX {
        return;
    }
    let (again, length) = parse(&out.clone().into()).expect("it was one").expect("a head");
    assert_eq!(length, out.len());
    assert_eq!(facts(&again), facts(parsed));
    assert!(again.head.headers.all().eq(parsed.head.headers.all()), "other headers");
    assert_eq!(again.head.method, parsed.head.method);
}
