#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::protocol::splice::Splice;

fn schema(schema: &Value) -> Result<Vec<Param>, Invalid> {
    read(schema.to_string().as_bytes())
}

fn annotated(kind: &Value, token: &Value) -> Value {
    json!({"type": "object", "properties": {"p": {"type": kind, "x-mcp-header": token}}})
}

fn shown(params: &[Param]) -> String {
    let line = |p: &Param| format!("{} {} {:?}", p.header, p.path.join("."), p.kind);
    params.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn parameters_are_found_along_properties() {
    let found = schema(&json!({
        "type": "object",
        "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "deep": {"properties": {"x-mcp-header": {"type": "integer", "x-mcp-header": "N!"}}},
            "x-mcp-header": {"type": "boolean", "default": {"x-mcp-header": ""}},
            "text": {"description": "x-mcp-header", "enum": [{"x-mcp-header": 1}]},
        },
    }))
    .unwrap();
    insta::assert_snapshot!(shown(&found), @r"
    mcp-param-region region String
    mcp-param-n! deep.x-mcp-header Integer
    ");
    let escaped = br#"{"properties":{"\u0061":{"type":"boolean","\u0078-mcp-header":"A"}}}"#;
    insta::assert_snapshot!(shown(&read(escaped).unwrap()), @"mcp-param-a a Boolean");
    assert_eq!(read(b"{}"), Ok(vec![]));
}

#[test]
fn what_breaks_a_rule_is_named() {
    for token in [json!(""), json!("My Region"), json!("a:b"), json!("Région"), json!("a\tb")] {
        assert_eq!(schema(&annotated(&json!("string"), &token)), Err(Invalid::Token), "{token}");
    }
    for token in [json!(null), json!(7), json!({}), json!(["A"]), json!("a".repeat(129))] {
        assert_eq!(schema(&annotated(&json!("string"), &token)), Err(Invalid::Token), "{token}");
    }
    for kind in ["number", "object", "array", "null", "String"].map(|k| json!(k)) {
        assert_eq!(schema(&annotated(&kind, &json!("A"))), Err(Invalid::Type), "{kind}");
    }
    for kind in [json!(["string", "null"]), json!(null)] {
        assert_eq!(schema(&annotated(&kind, &json!("A"))), Err(Invalid::Type), "{kind}");
    }
    let good = json!({"type": "string", "x-mcp-header": "A"});
    for place in [
        good.clone(),
        json!({"$defs": {"d": good}}),
        json!({"definitions": {"d": {"properties": {"p": good}}}}),
        json!({"properties": {"p": {"items": good}}}),
        json!({"properties": {"p": {"items": [good]}}}),
        json!({"properties": {"p": {"anyOf": [{"type": "null"}, good]}}}),
        json!({"if": {"properties": {"p": good}}}),
        json!({"additionalProperties": good}),
        json!({"patternProperties": {"^p": good}}),
    ] {
        assert_eq!(schema(&place), Err(Invalid::Place), "{place}");
    }
    let other = json!({"type": "integer", "x-mcp-header": "a"});
    let two = json!({"properties": {"p": good, "q": {"properties": {"r": other}}}});
    assert_eq!(schema(&two), Err(Invalid::Taken));
    for double in [
        r#"{"properties":{"p":{"type":"string","x-mcp-header":"A","x-mcp-header":"B"}}}"#,
        r#"{"properties":{"p":{"type":"string","type":"integer","x-mcp-header":"A"}}}"#,
        r#"{"properties":{"p":{"type":"string","x-mcp-header":"A"},"\u0070":{}}}"#,
        r#"{"properties":{},"properties":{"p":{"type":"string","x-mcp-header":"A"}}}"#,
    ] {
        assert_eq!(read(double.as_bytes()), Err(Invalid::Double), "{double}");
    }
}

#[test]
fn schemas_are_looked_into_within_bounds() {
    let many = |n: usize| {
        let one = |n| (format!("p{n}"), json!({"type": "string", "x-mcp-header": format!("P{n}")}));
        json!({"properties": Value::Object((0..n).map(one).collect())})
    };
    assert_eq!(schema(&many(PARAMS_MAX)).unwrap().len(), PARAMS_MAX);
    assert_eq!(schema(&many(PARAMS_MAX + 1)), Err(Invalid::TooMany));
    let deep = |n: usize| {
        let leaf = json!({"type": "string", "x-mcp-header": "A"});
        (0..n).fold(leaf, |inner, _| json!({"properties": {"p": inner}}))
    };
    assert_eq!(schema(&deep(DEPTH_MAX)).unwrap()[0].path.len(), DEPTH_MAX);
    assert_eq!(schema(&deep(DEPTH_MAX + 1)), Err(Invalid::TooDeep));
    let mut large = deep(1);
    large["description"] = json!("x".repeat(SCHEMA_MAX));
    assert_eq!(schema(&large), Err(Invalid::TooLarge));
    // What is not annotated may be as it likes.
    assert_eq!(schema(&json!({"description": "x".repeat(SCHEMA_MAX)})), Ok(vec![]));
}

#[test]
fn annotations_are_cut_and_nothing_else() {
    let stripped = |text: &str| {
        let mut splice = Splice::new();
        for cut in strip(text.as_bytes()) {
            splice.replace(cut, b"".as_slice());
        }
        let out = splice.apply(&Bytes::copy_from_slice(text.as_bytes()));
        String::from_utf8(out.to_vec()).unwrap()
    };
    for (text, wanted) in [
        (
            r#"{ "properties":{"a":{"type":"string", "x-mcp-header":"A"},"x-mcp-header":{"default":{"x-mcp-header":1.10}}}}"#,
            r#"{ "properties":{"a":{"type":"string"},"x-mcp-header":{"default":{"x-mcp-header":1.10}}}}"#,
        ),
        (
            r#"{"x-mcp-header":"", "items":[{"x-mcp-header":{"items":{"x-mcp-header":1}} }, {"\u0078-mcp-header":1 ,"a":1}]}"#,
            r#"{"items":[{ }, {"a":1}]}"#,
        ),
        (r#"{"description":"x-mcp-header"}"#, r#"{"description":"x-mcp-header"}"#),
    ] {
        assert_eq!(stripped(text), wanted);
        assert_eq!(stripped(wanted), wanted);
    }
}

fn params(kinds: &[(&str, &str)]) -> Vec<Param> {
    let mut root = json!({});
    for (n, (path, kind)) in kinds.iter().enumerate() {
        let mut at = &mut root;
        for key in path.split('.') {
            at = &mut at["properties"][key];
        }
        at["type"] = json!(kind);
        at["x-mcp-header"] = json!(format!("P{n}"));
    }
    schema(&root).unwrap()
}

fn mirrored(params: &[Param], call: &str) -> Result<String, Unfit> {
    let line = |(k, v): (HeaderName, HeaderValue)| format!("{k}: {}", v.to_str().unwrap());
    let all = headers(params, call.as_bytes())?;
    Ok(all.into_iter().map(line).collect::<Vec<_>>().join("\n"))
}

#[test]
fn arguments_become_headers() {
    let all = params(&[
        ("s", "string"),
        ("i", "integer"),
        ("o.b", "boolean"),
        ("o.i", "integer"),
        ("o.p.s", "string"),
        ("n", "string"),
    ]);
    let call = r#"{"name":"t","arguments":{"s":"gr\u00fcn","i":42.0,"x":[1],
        "o":{"b":false,"i":-7,"p":{"s":" a"}},"n":null}}"#;
    insta::assert_snapshot!(mirrored(&all, call).unwrap(), @r"
    mcp-param-p0: =?base64?Z3LDvG4=?=
    mcp-param-p1: 42
    mcp-param-p2: false
    mcp-param-p3: -7
    mcp-param-p4: =?base64?IGE=?=
    ");
    // What the tool will not take is not for us to say.
    for nothing in [
        r"{}",
        r#"{"arguments":null}"#,
        r#"{"arguments":[]}"#,
        r#"{"arguments":{"s":{},"i":[],"o":7}}"#,
    ] {
        assert_eq!(mirrored(&all, nothing).unwrap(), "", "{nothing}");
    }
    let odd = r#"{"arguments":{"s":1e400,"i":"42","o":{"i":4.5}}}"#;
    insta::assert_snapshot!(mirrored(&all, odd).unwrap(), @r"
    mcp-param-p0: 1e400
    mcp-param-p1: 42
    mcp-param-p3: 4.5
    ");
}

#[test]
fn what_two_could_read_differently_is_not_mirrored() {
    let all = params(&[("s", "string"), ("o.i", "integer")]);
    let why = |arguments: &str| {
        let call = format!(r#"{{"arguments":{arguments}}}"#);
        mirrored(&all, &call).unwrap_err()
    };
    assert!(matches!(why(r#"{"s":"a","s":"b"}"#), Unfit::Object(_)));
    assert!(matches!(why(r#"{"o":{"i":1,"\u0069":2}}"#), Unfit::Object(_)));
    assert_eq!(why(r#"{"o":{"i":9007199254740992}}"#), Unfit::Range("o.i".into()));
    assert_eq!(why(r#"{"s":"\ud800"}"#), Unfit::NoText("s".into()));
    assert_eq!(why(&json!({"s": "x".repeat(VALUES_MAX + 1)}).to_string()), Unfit::TooLong);
    insta::assert_snapshot!(
        Unfit::Range("o.i".into()),
        @"params.arguments: o.i must lie within ±9007199254740991"
    );
}

#[test]
fn integers_are_compared_by_value_and_text_by_text() {
    let all = params(&[("s", "string"), ("i", "integer")]);
    let call = br#"{"arguments":{"s":"42","i":4.2e1}}"#;
    let said: Vec<Said> = values(&all, call).unwrap().into_iter().flatten().collect();
    for (header, text, integer) in [
        ("42", true, true),
        ("42.0", false, true),
        ("42.5", false, false),
        ("4.2e1", false, false),
        ("+42", false, false),
        (" 42", false, false),
        ("43", false, false),
        ("", false, false),
    ] {
        assert_eq!((said[0].agrees(header), said[1].agrees(header)), (text, integer), "{header}");
    }
}

proptest! {
    #[test]
    fn what_is_mirrored_agrees_with_the_body(
        text: String,
        integer in -INTEGER_MAX..=INTEGER_MAX,
        zeros in 0usize..3,
        truth: bool,
    ) {
        let all = params(&[("a.s", "string"), ("a.b", "boolean"), ("i", "integer")]);
        let number = if zeros == 0 { integer.to_string() } else { format!("{integer}.{}", "0".repeat(zeros)) };
        let call = format!(
            r#"{{"arguments":{{"i":{number},"a":{{"s":{},"b":{truth}}}}}}}"#,
            serde_json::to_string(&text).unwrap(),
        );
        let said = values(&all, call.as_bytes()).unwrap();
        let sent = headers(&all, call.as_bytes()).unwrap();
        prop_assert_eq!(sent.len(), 3);
        for (said, (_, value)) in said.iter().flatten().zip(&sent) {
            let decoded = header::decode(value.to_str().unwrap()).unwrap();
            prop_assert!(said.agrees(&decoded));
            let longer = format!("{decoded}x");
            prop_assert!(!said.agrees(&longer));
        }
        prop_assert!(said[2].as_ref().unwrap().agrees(&number));
        prop_assert!(!said[2].as_ref().unwrap().agrees(&(integer ^ 1).to_string()));
    }

    #[test]
    fn any_schema_is_survived(raw in proptest::collection::vec(
        proptest::sample::select(vec!["{", "}", "[", "]", "\"x-mcp-header\"", "\"properties\"",
            "\"items\"", "\"type\"", ":", ",", "\"string\"", "1", "\\u00", "\""]), 0..40)
        .prop_map(|parts| parts.concat()))
    {
        let _ = read(raw.as_bytes());
        let mut last = 0;
        let mut cuts = strip(raw.as_bytes());
        cuts.sort_by_key(|cut| cut.start);
        if serde_json::from_str::<Value>(&raw).is_ok() {
            for cut in cuts {
                prop_assert!(last <= cut.start && cut.end <= raw.len());
                last = cut.end;
            }
        }
    }
}
