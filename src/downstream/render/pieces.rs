//! An answer in pieces is the same as rendered from the whole.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::render;
use crate::call::{Form, Terminal};
use crate::protocol::address::{UriHolder, uri_edits};
use crate::protocol::flow::{Flow, Odd, Rules};
use crate::protocol::message::{Frame, Kind};
use crate::protocol::method;
use crate::protocol::revision::{Era, Revision};

fn public(native: &str) -> Option<String> {
    (!native.is_empty()).then(|| format!("up+{native}"))
}

fn rules(name: &str, from: Era, to: Revision) -> Rules<'static> {
    let method = method::find(name, to).unwrap();
    Rules { asked: b"7", id: b"\"c\"", method, from, to, map: &public }
}

#[derive(Deserialize)]
struct Shallow<'a> {
    #[serde(borrow, default, rename = "resultType")]
    result_type: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "isError")]
    is_error: Option<&'a RawValue>,
}

/// What becomes of it when it is read as a whole.
fn whole(text: &[u8], rules: &Rules<'_>) -> Option<(Bytes, bool)> {
    let frame = Frame::scan(Bytes::copy_from_slice(text)).ok()?;
    if frame.kind() != Kind::Result || *frame.id()? != *rules.asked {
        return None;
    }
    let outcome = frame.outcome();
    let shallow: Shallow<'_> = serde_json::from_slice(&outcome).ok()?;
    if shallow.result_type.is_some_and(|t| t.get() != "\"complete\"") {
        return None;
    }
    let holder = UriHolder::of_result(rules.method.name).unwrap();
    let frame = frame.edit_outcome(uri_edits(holder, &outcome, &public)).unwrap();
    let form = if rules.from == Era::Modern { Form::Canonical } else { Form::Plain };
    let said = render(Terminal::Answer(frame, form), rules.id, rules.method, rules.to);
    Some((said.whole(), shallow.is_error.is_some_and(|e| e.get() == "true")))
}

/// What becomes of it in these pieces; what was sent, and how it ended. Nothing is sent before so
/// many pieces.
fn in_pieces(
    text: &[u8],
    cuts: &[usize],
    first: usize,
    rules: Rules<'_>,
) -> Option<(Vec<u8>, Result<bool, Odd>)> {
    let mut cuts: Vec<usize> = cuts.iter().map(|at| at % (text.len() + 1)).collect();
    cuts.extend([0, text.len()]);
    cuts.sort_unstable();
    let mut flow = Flow::new(rules);
    let mut sent = Vec::new();
    let mut begun = false;
    for (n, piece) in cuts.windows(2).enumerate() {
        if let Err(odd) = flow.push(&text[piece[0]..piece[1]]) {
            return begun.then_some((sent, Err(odd)));
        }
        begun |= n >= first && flow.begin();
        sent.extend_from_slice(&flow.take());
    }
    let end = flow.finish();
    sent.extend_from_slice(&flow.take());
    begun.then_some((sent, end))
}

const MODERN: Revision = Revision::LATEST;
const OLD: Revision = Revision::R2025_06_18;

/// In single bytes, from the first that can leave on.
fn passed(text: &str, name: &str, from: Era, to: Revision) -> String {
    let every: Vec<usize> = (0..text.len()).collect();
    let (sent, end) = in_pieces(text.as_bytes(), &every, 0, rules(name, from, to)).unwrap();
    end.unwrap();
    String::from_utf8(sent).unwrap()
}

#[test]
fn an_answer_in_pieces_is_what_it_is_as_a_whole() {
    for (name, text) in [
        (
            "tools/call",
            r#" {"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"\"é"}]}} "#,
        ),
        (
            "tools/call",
            r#"{"result":{"content":[{"uri":"a","type":"resource_link"},{"type":"resource","resource":{"blob":"","uri":"b"}}],"isError":true} ,"id":7,"jsonrpc":"2.0"}"#,
        ),
        (
            "tools/call",
            r#"{"jsonrpc":"2.0","id":7,"result":{"content":[1],"_meta":{"ui":{"resourceUri":"p"},"ui/resourceUri":"q"}, "resultType":"complete" }}"#,
        ),
        (
            "tools/call",
            r#"{"jsonrpc":"2.0","id":7,"result":{"a":0 , "content":[1] , "ttlMs":1 , "structuredContent":[{}] , "z":1.10 ,"cacheScope":"x"}}"#,
        ),
        (
            "resources/read",
            r#"{"jsonrpc":"2.0","id":7,"result":{"contents":[{"uri":"a","text":"x"},{"text":"","uri":"b"}]}}"#,
        ),
        (
            "prompts/get",
            r#"{"jsonrpc":"2.0","id":7,"result":{"messages":[{"content":{"resource":{"uri":"a"},"type":"resource"}},{"content":[{"uri":"u","type":"text"}]}]}}"#,
        ),
    ] {
        for from in [Era::Modern, Era::Legacy] {
            for to in [MODERN, OLD] {
                if text.contains("resultType") || text.contains("ttlMs") && from == Era::Legacy {
                    continue;
                }
                let want = whole(text.as_bytes(), &rules(name, from, to)).unwrap().0;
                assert_eq!(passed(text, name, from, to).as_bytes(), want, "{text} {from:?} {to:?}");
            }
        }
    }
}

#[test]
fn what_an_old_upstream_says_too_late_for_a_modern_caller_is_cut() {
    let text = r#"{"jsonrpc":"2.0","id":7,"result":{"contents":[{"uri":"a"}],"resultType":"complete", "ttlMs":5}}"#;
    assert_eq!(
        passed(text, "resources/read", Era::Legacy, MODERN),
        r#"{"jsonrpc":"2.0","id":"c","result":{"resultType":"complete","ttlMs":0,"cacheScope":"private","contents":[{"uri":"up+a"}]}}"#
    );
}

#[test]
fn what_is_no_answer_never_becomes_one() {
    let good =
        r#"{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"x"}],"x":1}}"#;
    for (from, to) in [
        (r#""id":7"#, r#""id":8"#),
        (r#""id":7"#, r#""id":"7""#),
        (r#""2.0""#, r#""2.1""#),
        (r#""x":1"#, r#""resultType":"task""#),
        (r#""x":1"#, r#""isError":true,"isError":true"#),
        (r#""x":1"#, r#""x":01"#),
        (r#""x":1"#, r#""x":"\x""#),
        (r#""x":1"#, r#""\ud800":1"#),
        (r#""x":1}"#, r#""x":1},"error":{}"#),
        (r#""x":1}"#, r#""x":1},"id":7"#),
        (r#""x":1}}"#, r#""x":1}"#),
        (r#""x":1}}"#, r#""x":1}}}"#),
        (r#""x":1}}"#, r#""x":1}}{}"#),
        (r#""x":1}}"#, r#""x":1]}"#),
        (r#""x":1}}"#, r#""x":1,}}"#),
    ] {
        let text = good.replace(from, to);
        // The envelope behind the result, so that much has left before it is looked at.
        let late = text
            .replace(r#""jsonrpc":"2.0","id":7,"#, "")
            .replace("}}", r#"},"jsonrpc":"2.0","id":7}"#);
        for text in [text.clone(), late] {
            let every: Vec<usize> = (0..text.len()).collect();
            let found =
                in_pieces(text.as_bytes(), &every, 0, rules("tools/call", Era::Modern, MODERN));
            if let Some((sent, end)) = found {
                assert!(end.is_err(), "{text}");
                assert!(serde_json::from_slice::<Value>(&sent).is_err(), "{text}");
            }
        }
    }
}

#[test]
fn nothing_is_held_but_what_is_not_decided() {
    let mut flow = Flow::new(rules("tools/call", Era::Modern, MODERN));
    flow.push(br#"{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":""#).unwrap();
    assert!(flow.begin());
    for _ in 0..100 {
        assert!(!flow.take().is_empty());
        assert_eq!(flow.undecided(), 0);
        flow.push(&[b'x'; 1000]).unwrap();
    }
}

#[test]
fn what_must_be_put_in_other_words_is_not_begun() {
    let begins = |name, from, to, text: &str| {
        let mut flow = Flow::new(rules(name, from, to));
        flow.push(text.as_bytes()).is_ok() && flow.begin()
    };
    let text = r#"{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"x"#;
    assert!(begins("tools/call", Era::Modern, OLD, text));
    for old in [Revision::R2024_11_05, Revision::R2025_03_26] {
        assert!(!begins("tools/call", Era::Modern, old, text));
    }
    for text in [
        r#"{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":"x"#,
        r#"{"jsonrpc":"2.0","id":7,"result":{"resultType":"input_required","inputRequests":{"a":""#,
        r#"{"jsonrpc":"2.0","id":7,"result":{"resultType":"task","content":[""#,
        r#"{"jsonrpc":"2.0","id":7,"result":{"x":""#,
        r#"{"jsonrpc":"2.0","id":8,"result":{"content":[""#,
        // The type of what is embedded is not known.
        r#"{"jsonrpc":"2.0","id":7,"result":{"content":[{"resource":{"uri":"u","blob":"xxx"#,
        "[",
    ] {
        assert!(!begins("tools/call", Era::Modern, MODERN, text), "{text}");
    }
    // Old clients insist on `content`.
    let structured = r#"{"jsonrpc":"2.0","id":7,"result":{"structuredContent":{"a":""#;
    assert!(begins("tools/call", Era::Modern, MODERN, structured));
    assert!(!begins("tools/call", Era::Modern, OLD, structured));
}

// Text of a JSON value with all that a reader-and-writer would lose.
fn odd() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("1.10".to_owned()),
        Just("-0e+7".to_owned()),
        Just("true".to_owned()),
        Just("null".to_owned()),
        "\\PC{0,4}".prop_map(|s| serde_json::to_string(&s).unwrap()),
        Just(r#""\u00e9\/\n \" uri\ud800""#.to_owned()),
    ];
    leaf.prop_recursive(3, 10, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3)
                .prop_map(|v| format!("[ {}]", v.join(" ,"))),
            proptest::collection::vec((key(), inner), 0..3).prop_map(|v| {
                let v: Vec<_> = v.iter().map(|(k, v)| format!("{k} :{v}")).collect();
                format!("{{{}\n}}", v.join(","))
            }),
        ]
    })
}

fn key() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "\"uri\"",
        "\"content\"",
        "\"\\u0075ri\"",
        "\"resource\"",
        "\"type\"",
        "\"resourceUri\"",
        "\"ui\"",
        "\"text\"",
    ])
}

fn shuffled(members: Vec<String>) -> impl Strategy<Value = Vec<String>> {
    Just(members).prop_shuffle()
}

fn block() -> impl Strategy<Value = String> {
    let uri = || "[a-z:/é\"]{0,8}".prop_map(|s| serde_json::to_string(&s).unwrap());
    let kind =
        proptest::sample::select(vec!["resource_link", "resource", "text", "\\u0072esource"]);
    (kind, uri(), uri(), odd(), 0..5usize)
        .prop_flat_map(|(kind, own, nested, odd, keep)| {
            let mut members = vec![
                format!("\"type\": \"{kind}\""),
                format!("\"uri\":{own}"),
                format!("\"resource\" :{{\"odd\":{odd},\"uri\":\t{nested}}}"),
                format!("\"odd\":{odd}"),
            ];
            members.rotate_left(keep % 4);
            members.truncate(keep.max(2));
            shuffled(members)
        })
        .prop_map(|members| format!("{{{}}}", members.join(" , ")))
}

// A result's members, and those of its envelope, in any order.
fn message() -> impl Strategy<Value = String> {
    let member = prop_oneof![
        6 => proptest::collection::vec(block(), 0..4).prop_map(|b| format!("\"content\":[{}]", b.join(","))),
        2 => proptest::collection::vec(block(), 0..3).prop_map(|b| format!("\"contents\" : [{}]", b.join(" ,"))),
        2 => proptest::collection::vec(block(), 0..3).prop_map(|b| {
            let b: Vec<_> = b.iter().map(|b| format!("{{\"content\":{b}}}")).collect();
            format!("\"messages\":[{}]", b.join(","))
        }),
        3 => odd().prop_map(|v| format!("\"structuredContent\": {v}")),
        2 => (key(), odd()).prop_map(|(k, v)| format!("\"_meta\":{{\"ui\":{{\"resourceUri\":\"p\",{k}:{v}}}}}")),
        2 => proptest::sample::select(vec!["true", "false", "1"]).prop_map(|v| format!("\"isError\":{v}")),
        3 => proptest::sample::select(vec![
            "\"resultType\": \"complete\"", "\"result\\u0054ype\":\"complete\"", "\"resultType\":\"task\"",
            "\"ttlMs\" :5", "\"cacheScope\":\"x\"", "\"task\":{}", "\"content\":null",
        ]).prop_map(str::to_owned),
        2 => (key(), odd()).prop_map(|(k, v)| format!("{k}:{v}")),
    ];
    let space = proptest::sample::select(vec!["", " ", "\n\t"]);
    (proptest::collection::vec(member, 0..5), odd(), space)
        .prop_flat_map(|(members, odd, space)| {
            let result = format!(
                "\"result\":{{{space}{}{space}}}",
                members.join(&format!("{space},{space}"))
            );
            shuffled(vec![
                result,
                "\"jsonrpc\":\"2.0\"".into(),
                "\"id\": 7".into(),
                format!("\"odd\" :{odd}"),
            ])
        })
        .prop_map(|members| format!("{{{}}}", members.join(",")))
}

fn ways() -> impl Strategy<Value = (&'static str, Era, Revision)> {
    (
        proptest::sample::select(vec!["tools/call", "resources/read", "prompts/get"]),
        proptest::sample::select(vec![Era::Modern, Era::Legacy]),
        proptest::sample::select(Revision::ALL.to_vec()),
    )
}

// Said late by an old upstream: the one thing in which the two ways differ.
fn says_late(text: &str, rules: &Rules<'_>) -> bool {
    let words = ["resultType", "result\\u0054ype", "ttlMs", "cacheScope"];
    rules.from == Era::Legacy
        && rules.to.era() == Era::Modern
        && words.iter().any(|w| text.contains(w))
}

fn without_hints(text: &[u8]) -> Value {
    let mut value: Value = serde_json::from_slice(text).unwrap();
    let result = value["result"].as_object_mut().unwrap();
    result.remove("ttlMs");
    result.remove("cacheScope");
    value
}

#[test]
fn what_is_made_up_passes_breaks_and_is_declined() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut passed, mut broken, mut declined) = (0, 0, 0);
    for _ in 0..500 {
        let text = message().new_tree(&mut runner).unwrap().current();
        let (name, from, to) = ways().new_tree(&mut runner).unwrap().current();
        let every: Vec<usize> = (0..text.len()).collect();
        match in_pieces(text.as_bytes(), &every, 0, rules(name, from, to)) {
            Some((_, Ok(_))) => passed += 1,
            Some((_, Err(_))) => broken += 1,
            None => declined += 1,
        }
    }
    assert!(passed > 100 && broken > 10 && declined > 100, "{passed}, {broken}, {declined}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn in_pieces_or_as_a_whole_is_the_same(
        text in message(),
        cuts in proptest::collection::vec(any::<usize>(), 0..40),
        first in 0..20usize,
        (name, from, to) in ways(),
        broken in proptest::option::weighted(0.3, (any::<usize>(), proptest::sample::select(b"{}[]\",:\\ 1e\x00\xc3u".to_vec()))),
    ) {
        let mut text = text.into_bytes();
        if let Some((at, with)) = broken {
            let at = at % text.len();
            text[at] = with;
        }
        let rules = rules(name, from, to);
        let want = whole(&text, &rules);
        let late = says_late(&String::from_utf8_lossy(&text), &rules);
        if let Some((sent, end)) = in_pieces(&text, &cuts, first, rules) {
            match (end, want) {
                (Ok(is_error), Some((want, is_error_too))) => {
                    prop_assert_eq!(is_error, is_error_too);
                    if !(late && sent != want) {
                        prop_assert_eq!(String::from_utf8_lossy(&sent), String::from_utf8_lossy(&want));
                    } else if serde_json::from_slice::<Value>(&want).is_ok() {
                        prop_assert_eq!(without_hints(&sent), without_hints(&want));
                    }
                }
                (Ok(_), None) => prop_assert!(false, "passed on, although it is no answer"),
                // What is broken off must not be complete.
                (Err(_), _) => prop_assert!(serde_json::from_slice::<Value>(&sent).is_err()),
            }
        }
    }
}
