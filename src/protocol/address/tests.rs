#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::protocol::method;
use crate::protocol::revision::Revision;

fn read(name: &str, params: &str) -> Result<Parsed, AddressError> {
    let revision =
        if name == "resources/subscribe" { Revision::LATEST_LEGACY } else { Revision::LATEST };
    Parsed::read(method::find(name, revision).unwrap(), Some(params.as_bytes()))
}

#[test]
fn each_method_is_addressed_in_its_own_place() {
    for (name, params, kind, value) in [
        ("tools/call", r#"{"arguments":{"name":"x"}, "name" : "a\u0062"}"#, ListKind::Tools, "ab"),
        ("prompts/get", r#"{"name":"p"}"#, ListKind::Prompts, "p"),
        ("resources/read", r#"{"uri":"file:///ü"}"#, ListKind::Resources, "file:///ü"),
        ("resources/subscribe", r#"{"uri":""}"#, ListKind::Resources, ""),
        (
            "completion/complete",
            r#"{"ref":{"type":"ref/prompt","name":"p"},"argument":{}}"#,
            ListKind::Prompts,
            "p",
        ),
        (
            "completion/complete",
            r#"{"ref":{"uri":"x:{y}","type":"ref/resource"}}"#,
            ListKind::Templates,
            "x:{y}",
        ),
    ] {
        let address = read(name, params).unwrap().address.unwrap();
        assert_eq!((address.kind, address.value.as_str()), (kind, value), "{params}");
        let (range, with) = address.edit("n\"é");
        let out = [&params.as_bytes()[..range.start], &with, &params.as_bytes()[range.end..]];
        let again = read(name, std::str::from_utf8(&out.concat()).unwrap()).unwrap();
        assert_eq!(again.address.unwrap().value, "n\"é");
    }
    assert_eq!(read("tools/list", "{}").unwrap(), Parsed::default());
}

#[test]
fn the_place_of_meta_is_told() {
    let params = r#"{"name":"a", "_meta" : {"k":1} }"#;
    let parsed = read("tools/call", params).unwrap();
    assert_eq!(&params[parsed.meta.unwrap()], r#"{"k":1}"#);
    assert_eq!(read("tools/call", r#"{"name":"a"}"#).unwrap().meta, None);
}

#[test]
fn params_that_two_readers_could_read_differently_are_refused() {
    for (name, params, says) in [
        ("tools/call", r#"{"name":"a","n\u0061me":"b"}"#, "duplicate key"),
        ("tools/list", r#"{"x":1,"x":1}"#, "duplicate key"),
        ("tools/call", r#"{"name":"a","_meta":{"k":1,"k":2}}"#, "params._meta"),
        ("tools/call", r#"{"name":"a","_meta":null}"#, "params._meta"),
        ("tools/call", r#"{"name":7}"#, "params.name must be a string"),
        ("tools/call", "[]", "params must be an object"),
        ("resources/read", "{}", "params.uri must be a string"),
        ("completion/complete", r#"{"ref":{"type":"ref/x"}}"#, "params.ref.type"),
        ("completion/complete", r#"{"ref":{"type":"ref/prompt"}}"#, "params.ref.name"),
        (
            "completion/complete",
            r#"{"ref":{"type":"ref/prompt","name":"a","name":"b"}}"#,
            "duplicate key",
        ),
        ("completion/complete", "{}", "params.ref must be an object"),
    ] {
        let error = read(name, params).unwrap_err().to_string();
        assert!(error.contains(says), "{params}: {error}");
    }
    let call = method::find("tools/call", Revision::LATEST).unwrap();
    assert_eq!(Parsed::read(call, None), Err(AddressError::NoString("params.name")));
}

fn mapped(uri: &str) -> Option<String> {
    (!uri.starts_with("keep")).then(|| format!("up+{uri}"))
}

fn map(holder: UriHolder, text: &str) -> String {
    let out = map_uris(holder, &Bytes::copy_from_slice(text.as_bytes()), &mapped);
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn uris_are_exchanged_in_their_places_only() {
    for (holder, text, want) in [
        (
            UriHolder::ToolResult,
            r#"{"content":[{"uri":"a:1","type":"resource_link"},{"type":"text","text":"uri","uri":"a:2"},{"type":"resource","uri":"no","resource":{"\u0075ri":"a\u003a3","text":"a:4"}}],"structuredContent":{"uri":"a:5"},"uri":"a:6"}"#,
            r#"{"content":[{"uri":"up+a:1","type":"resource_link"},{"type":"text","text":"uri","uri":"a:2"},{"type":"resource","uri":"no","resource":{"\u0075ri":"up+a:3","text":"a:4"}}],"structuredContent":{"uri":"a:5"},"uri":"a:6"}"#,
        ),
        (
            UriHolder::PromptResult,
            r#"{"messages":[{"content":{"type":"resource_link","uri":"a"}},{"content":[{"type":"resource_link","uri":"b"}]},{"content":"uri"},7]}"#,
            r#"{"messages":[{"content":{"type":"resource_link","uri":"up+a"}},{"content":[{"type":"resource_link","uri":"up+b"}]},{"content":"uri"},7]}"#,
        ),
        (
            UriHolder::ReadResult,
            r#"{"contents":[{"uri":"a","text":""},{"uri":"keep"},{"uri":7}]}"#,
            r#"{"contents":[{"uri":"up+a","text":""},{"uri":"keep"},{"uri":7}]}"#,
        ),
        (UriHolder::Updated, r#"{"uri" : "a"}"#, r#"{"uri" : "up+a"}"#),
        (
            UriHolder::Tool,
            r#"{"_meta":{"ui":{"resourceUri":"ui://a"},"ui/resourceUri":"ui://b","uri":"c"}}"#,
            r#"{"_meta":{"ui":{"resourceUri":"up+ui://a"},"ui/resourceUri":"up+ui://b","uri":"c"}}"#,
        ),
    ] {
        assert_eq!(map(holder, text), want);
    }
}

#[test]
fn what_holds_no_uri_is_shared() {
    let raw = Bytes::from_static(br#"{"content":[{"type":"text","text":"hello"}]}"#);
    assert_eq!(map_uris(UriHolder::ToolResult, &raw, &mapped).as_ptr(), raw.as_ptr());
}

// Text of a JSON value with all that a reader-and-writer would lose.
fn odd() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("1.10".to_owned()),
        Just("-0".to_owned()),
        Just("123456789012345678901234567890".to_owned()),
        Just("null".to_owned()),
        "[ -~]{0,6}".prop_map(|s| serde_json::to_string(&s).unwrap()),
        "\\PC{0,3}".prop_map(|s| serde_json::to_string(&s).unwrap()),
        Just(r#""\u00e9\/\n \" uri""#.to_owned()),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3)
                .prop_map(|v| format!("[ {}]", v.join(" ,"))),
            proptest::collection::vec((key(), inner), 0..3).prop_map(|v| {
                let v: Vec<_> =
                    v.iter().enumerate().map(|(n, (k, v))| format!("{k}{n}\" :{v}")).collect();
                format!("{{{}\n}}", v.join(","))
            }),
        ]
    })
}

// The beginning of a key, quote included; a number is put behind it to keep keys apart.
fn key() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec!["\"uri", "\"content", "\"x\\u0075", "\"resource", "\"_meta"])
}

// A block with its members in any order; the marks stand for where its URIs are.
fn block() -> impl Strategy<Value = String> {
    let uri = "[a-z:/é\"]{0,8}".prop_map(|s| serde_json::to_string(&s).unwrap());
    (
        proptest::sample::select(vec!["resource_link", "resource", "text", "\\u0072esource"]),
        uri.clone(),
        uri,
        odd(),
        Just(()).prop_perturb(|(), mut rng| rng.random::<u8>()),
    )
        .prop_map(|(kind, own, nested, odd, turn)| {
            let mut members = [
                format!("\"type\": \"{kind}\""),
                format!("\"uri\":{own}"),
                format!("\"resource\" :{{\"odd\":{odd},\"uri\":\t{nested}}}"),
                format!("\"odd\":{odd}"),
            ];
            members.rotate_left(usize::from(turn) % 4);
            format!("{{{}}}", members.join(" , "))
        })
}

// The same exchange on a decoded tree: the model.
fn model(value: &mut Value) {
    let map = |v: &mut Value| {
        if let Some(new) = v.as_str().and_then(mapped) {
            *v = new.into();
        }
    };
    for block in value["content"].as_array_mut().unwrap() {
        match block["type"].as_str().unwrap() {
            "resource_link" => map(&mut block["uri"]),
            "resource" => map(&mut block["resource"]["uri"]),
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn only_the_addressed_bytes_differ(
        blocks in proptest::collection::vec(block(), 0..4),
        before in odd(),
        after in odd(),
    ) {
        let text =
            format!("{{\"a\":{before},\"content\":[{}], \"structuredContent\" : {after}}}", blocks.join(","));
        let edits = uri_edits(UriHolder::ToolResult, text.as_bytes(), &mapped);
        let out = map(UriHolder::ToolResult, &text);
        // It says what the model says …
        let mut want: Value = serde_json::from_str(&text).unwrap();
        model(&mut want);
        prop_assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), want);
        // … each edit covers exactly one string, and all between the edits is the same bytes.
        let mut edits = edits;
        edits.sort_by_key(|(r, _)| r.start);
        let (mut old, mut new) = (0, 0);
        for (range, with) in &edits {
            prop_assert!(serde_json::from_slice::<String>(&text.as_bytes()[range.clone()]).is_ok());
            let gap = range.start - old;
            prop_assert_eq!(&text.as_bytes()[old..range.start], &out.as_bytes()[new..new + gap]);
            old = range.end;
            new += gap + with.len();
        }
        prop_assert_eq!(&text.as_bytes()[old..], &out.as_bytes()[new..]);
    }

    #[test]
    fn any_bytes_are_survived(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
        let raw = [b"{\"content\":[{\"uri\":".as_slice(), &raw].concat();
        uri_edits(UriHolder::ToolResult, &raw, &mapped);
    }
}
