//! The forms of event streams, read in every cut, and written.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn parse(chunks: &[&[u8]]) -> Vec<Event> {
    let mut parser = Parser::new(1 << 20);
    let mut out = Vec::new();
    for chunk in chunks {
        parser.feed(Bytes::copy_from_slice(chunk));
        while let Some(event) = parser.next().unwrap() {
            out.push(event);
        }
    }
    out
}

fn data(text: &str) -> Event {
    Event { data: Bytes::copy_from_slice(text.as_bytes()), ..Event::default() }
}

#[test]
fn every_line_end_reads_the_same() {
    let wanted = vec![data("a\nb"), data("c")];
    for end in ["\n", "\r", "\r\n"] {
        let text = "data: a|data:b||data: c||".replace('|', end);
        assert_eq!(parse(&[text.as_bytes()]), wanted, "{end:?} in one chunk");
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(parse(&bytes), wanted, "{end:?} byte by byte");
    }
    // CR, then LF in the next chunk: one line end, not a line end and a blank line.
    assert_eq!(parse(&[b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n"]), vec![data("a\nb")]);
}

#[test]
fn a_byte_order_mark_is_skipped_once_even_in_pieces() {
    assert_eq!(parse(&[b"\xef", b"\xbb", b"\xbfdata: a\n\n"]), vec![data("a")]);
    assert_eq!(parse(&[b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n"]), vec![data("a")]);
}

#[test]
fn comments_and_unknown_fields_are_no_events() {
    assert_eq!(parse(&[b": ping\n\n:\n\nfoo: bar\n\nfoo\n\ndatax: 1\n\n"]), vec![]);
    assert_eq!(parse(&[b": ping\ndata: a\n: pong\ndata: b\n\n"]), vec![data("a\nb")]);
}

#[test]
fn events_without_a_message_are_told_apart_from_messages() {
    let events = parse(&[b"id: s/0\nretry: 3000\ndata:\n\nretry: 5\n\nid: s/1\n\nevent: x\n\n"]);
    assert!(events.iter().all(|e| e.data.is_empty()));
    assert_eq!(events[0].id.as_deref(), Some("s/0"));
    assert_eq!(events[0].retry, Some(Duration::from_secs(3)));
    assert_eq!(events[1].retry, Some(Duration::from_millis(5)));
    assert_eq!(events[2].id.as_deref(), Some("s/1"));
    assert!(events[2].is_message() && !events[3].is_message());
}

#[test]
fn odd_fields_are_read_as_the_standard_says() {
    // One space is dropped, not all; no colon means an empty value; the last one counts.
    assert_eq!(parse(&[b"data:  a \ndata\nevent: y\nevent: message\n\n"]), {
        vec![Event { event: Some("message".into()), ..data(" a \n") }]
    });
    // A pause with anything but digits and an id with NUL are ignored, an empty id is not.
    assert_eq!(parse(&[b"retry: +5\nid: a\0b\n\nretry: 99999999999999999999999\n\n"]), vec![]);
    assert_eq!(parse(&[b"id\ndata: 1\n\n"])[0].id.as_deref(), Some(""));
    // Bytes that are no UTF-8 stay as they are in data: who reads the message says what is wrong.
    assert_eq!(&parse(&[b"data: \xff\n\n"])[0].data[..], b"\xff");
}

#[test]
fn half_an_event_is_none() {
    assert_eq!(parse(&[b"data: a\n\ndata: b\n"]), vec![data("a")]);
    assert_eq!(parse(&[b"data: a\n\ndata: b"]), vec![data("a")]);
}

#[test]
fn a_line_within_one_chunk_is_shared_and_not_copied() {
    let chunk = Bytes::from_static(b"id: 1\ndata: {\"a\":1}\n\n");
    let mut parser = Parser::new(100);
    parser.feed(chunk.clone());
    let event = parser.next().unwrap().unwrap();
    assert_eq!(event.data.as_ptr(), chunk[12..].as_ptr());
}

#[test]
fn an_event_is_bounded_however_it_comes() {
    let long = [&b"data: "[..], &[b'x'; 101], b"\n\n"].concat();
    let lines = b"data: 0123456789\n".repeat(12);
    let id = [&b"id: "[..], &[b'x'; 120], b"\n\n"].concat();
    for (text, size) in
        [(&long, 1), (&long, 7), (&long, 1000), (&lines, 5), (&lines, 500), (&id, 9)]
    {
        let mut parser = Parser::new(100);
        let mut failed = false;
        for chunk in text.chunks(size) {
            parser.feed(Bytes::copy_from_slice(chunk));
            failed |= parser.next() == Err(EventTooLarge(100));
        }
        assert!(failed, "cut every {size}");
        parser.feed(Bytes::from_static(b"\n\ndata: 1\n\n"));
        assert_eq!(parser.next(), Err(EventTooLarge(100)), "it stays failed");
    }
    let just = [&b"data: "[..], &[b'x'; 100], b"\n\n"].concat();
    for size in [1, 7, 1000] {
        let mut parser = Parser::new(100);
        let mut seen = 0;
        for chunk in just.chunks(size) {
            parser.feed(Bytes::copy_from_slice(chunk));
            seen += usize::from(parser.next().unwrap().is_some());
        }
        assert_eq!(seen, 1);
    }
}

#[test]
fn a_name_that_grows_when_it_becomes_text_is_bounded_as_text() {
    for field in ["id", "event"] {
        let text = |n: usize| [field.as_bytes(), b": ", &vec![0xff; n], b"\n\n"].concat();
        let mut parser = Parser::new(30);
        parser.feed(text(10).into());
        assert!(parser.next().unwrap().is_some());
        parser.feed(text(11).into());
        assert_eq!(parser.next(), Err(EventTooLarge(30)), "{field}");
    }
}

#[test]
fn the_line_feed_behind_an_empty_line_counts() {
    let mut parser = Parser::new(10);
    parser.feed(Bytes::from_static(b"id: 12345\ndata:\ndata: 1234\n\n"));
    assert_eq!(parser.next().unwrap().unwrap().data.len(), 5);
    parser.feed(Bytes::from_static(b"id: 123456\ndata:\ndata: 1234\n\n"));
    assert_eq!(parser.next(), Err(EventTooLarge(10)));
}

#[test]
fn comments_never_add_up_to_an_event() {
    let mut parser = Parser::new(100);
    for _ in 0..1000 {
        parser.feed(Bytes::from_static(b": still there\n"));
        assert_eq!(parser.next(), Ok(None));
    }
    parser.feed(Bytes::from_static(b"data: 1\n\n"));
    assert_eq!(parser.next(), Ok(Some(data("1"))));
}

#[test]
fn chunks_that_were_not_used_up_are_not_lost() {
    let mut parser = Parser::new(100);
    for chunk in ["data: a\n\nda", "ta: b\n", "\n"] {
        parser.feed(Bytes::from(chunk));
    }
    assert_eq!(parser.next(), Ok(Some(data("a"))));
    assert_eq!(parser.next(), Ok(Some(data("b"))));
    assert_eq!(parser.next(), Ok(None));
}

#[test]
fn what_is_written() {
    let message = Bytes::from_static(b"{\"a\":1,\r\n\"b\":2}");
    insta::assert_snapshot!(text(&event(&message)), @r#"
    event: message
    data: {"a":1,
    data: "b":2}
    "#);
    insta::assert_snapshot!(text(&event_with(&message, Some("s/1\ndata: x"), None)), @r#"
    id: s/1data: x
    data: {"a":1,
    data: "b":2}
    "#);
    insta::assert_snapshot!(text(&priming("s/0", Some(Duration::from_secs(3)))), @r"
    id: s/0
    retry: 3000
    data:
    ");
    assert_eq!(&comment("keep\nalive")[..], b": keepalive\n\n");
    assert_eq!(&retry(Duration::from_millis(1500))[..], b"retry: 1500\n\n");
}

// Without the blanks at line ends, which editors drop.
fn text(bytes: &Bytes) -> String {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text.ends_with("\n\n"));
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let name = || prop::option::of("[ -~ä]{0,8}");
    let one = (name(), name(), "[^\r]{0,60}").prop_map(|(event, id, data)| Event {
        event: event.map(Into::into),
        id,
        retry: None,
        data: Bytes::from(data),
    });
    let pause = (0u64..100_000)
        .prop_map(|ms| Event { retry: Some(Duration::from_millis(ms)), ..Event::default() });
    prop::collection::vec(prop_oneof![4 => one, 1 => pause], 0..6)
}

proptest! {
    #[test]
    fn what_is_written_is_read_however_it_is_cut(
        events in events(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        windows in any::<bool>(),
    ) {
        let mut stream = Vec::new();
        for event in &events {
            stream.extend_from_slice(&comment("alive"));
            stream.extend_from_slice(&match event.retry {
                Some(pause) => retry(pause),
                None => event_with(&event.data, event.id.as_deref(), event.event.as_deref()),
            });
        }
        if windows {
            let text = String::from_utf8(stream).unwrap();
            stream = text.replace('\n', "\r\n").into_bytes();
        }
        let mut at: Vec<usize> = cuts.iter().map(|i| i.index(stream.len() + 1)).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        let chunks: Vec<&[u8]> = at.windows(2).map(|w| &stream[w[0]..w[1]]).collect();
        prop_assert_eq!(parse(&chunks), events);
    }

    #[test]
    fn no_bytes_make_it_panic_and_cuts_change_nothing(
        bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b':'), Just(b'd'),
            Just(b'a'), Just(b't'), Just(b' '), any::<u8>()], 0..200),
        size in 1usize..9,
    ) {
        let whole = parse(&[&bytes]);
        let cut: Vec<&[u8]> = bytes.chunks(size).collect();
        prop_assert_eq!(parse(&cut), whole);
    }
}
