#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::protocol::revision::Revision::{
    self, R2024_11_05 as R24, R2025_03_26 as R03, R2025_06_18 as R06, R2025_11_25 as R11,
    R2026_07_28 as R26,
};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    // Whatever was done to it, it is JSON.
    serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    text
}

fn call(raw: &str, revision: Revision) -> String {
    text(&result("tools/call", &bytes(raw), revision))
}

fn asked(method: &str, params: &str, revision: Revision) -> (String, Back) {
    let (params, back) = question(method, Some(bytes(params)), revision).unwrap();
    (text(&params.unwrap()), back)
}

#[test]
fn a_recording_is_embedded_for_who_knows_no_audio() {
    let raw = r#"{ "content":[{"type":"text","text":"a"}, {"data":"QUJD","mimeType":"audio/wav", "type":"audio","annotations":{"priority":1.0},"x":1}] ,"n":1e400}"#;
    insta::assert_snapshot!(call(&raw.replace("1e400", "1"), R24), @r#"{ "content":[{"type":"text","text":"a"}, {"resource":{"uri":"audio:embedded/41","mimeType":"audio/wav","blob":"QUJD"},"type":"resource","annotations":{"priority":1.0},"x":1}] ,"n":1}"#);
    for revision in [R03, R06, R11, R26] {
        assert_eq!(result("tools/call", &bytes(raw), revision), raw);
    }
    insta::assert_snapshot!(call(r#"{"content":[{"type":"audio","data":"QQ==" , "mimeType":"audio/ogg" }]}"#, R24), @r#"{"content":[{"type":"resource","resource":{"uri":"audio:embedded/12","mimeType":"audio/ogg","blob":"QQ=="} }]}"#);
    // Nothing that could be played.
    for broken in [
        r#"{"content":[{"type":"audio"}]}"#,
        r#"{"content":[{"type":"audio","data":"","data":"x"}]}"#,
        r#"{"content":[{"type":"hologram","data":"audio"},7,null,"audio"]}"#,
    ] {
        assert_eq!(call(broken, R24), broken);
    }
}

#[test]
fn a_link_is_named_for_who_knows_no_links() {
    let raw = r#"{"content":[{"type":"resource_link","uri":"crm+file:///a","name":"a.txt","title":"A \"b\"","description":"d","size":3,"annotations":{"audience":["user"]}},{"type":"resource_\u006cink","uri":"crm+file:///b","name":"b"}]}"#;
    let old = call(raw, R03);
    assert_eq!(old, call(raw, R24));
    insta::assert_snapshot!(old, @r#"{"content":[{"type":"text","text":"A \"b\": crm+file:///a\nd","annotations":{"audience":["user"]}},{"type":"text","text":"b: crm+file:///b"}]}"#);
    assert_eq!(call(raw, R06), raw);
}

#[test]
fn prompts_too() {
    let raw = r#"{"description":"d","messages":[{"role":"user","content":{"type":"resource_link","uri":"u","name":"n"}}, {"role":"assistant","content":[{"type":"audio","data":"","mimeType":"m"},{"type":"text","text":""}]}]}"#;
    let old = |revision| text(&result("prompts/get", &bytes(raw), revision));
    insta::assert_snapshot!(old(R24), @r#"{"description":"d","messages":[{"role":"user","content":{"type":"text","text":"n: u"}}, {"role":"assistant","content":[{"type":"resource","resource":{"uri":"audio:embedded/135","mimeType":"m","blob":""}},{"type":"text","text":""}]}]}"#);
    insta::assert_snapshot!(old(R03), @r#"{"description":"d","messages":[{"role":"user","content":{"type":"text","text":"n: u"}}, {"role":"assistant","content":[{"type":"audio","data":"","mimeType":"m"},{"type":"text","text":""}]}]}"#);
    assert_eq!(old(R06), raw);
}

#[test]
fn structured_content_is_an_object_or_a_text() {
    let object = r#"{"structuredContent":{"a":1.10}, "content":[]}"#;
    assert_eq!(call(object, R06), object);
    assert_eq!(call(object, R26), object);
    for revision in [R24, R03] {
        assert_eq!(
            call(object, revision),
            r#"{"structuredContent":{"a":1.10}, "content":[{"type":"text","text":"{\"a\":1.10}"}]}"#
        );
    }
    for revision in [R24, R03, R06, R11] {
        for value in ["[1.0, 2]", "null", "1.50", "\"s\""] {
            let copy = format!(r#"[{{"type":"text","text":{}}}]"#, serde_json::json!(value));
            for content in [r#","content":[ ]"#, r#","content":null"#, ""] {
                let said = call(&format!(r#"{{"structuredContent":{value}{content}}}"#), revision);
                assert_eq!(said, format!(r#"{{"content":{copy}}}"#));
            }
            let told = r#"{"content":[{"type":"text","text":"t"}] ,"structuredContent":X}"#;
            let want = r#"{"content":[{"type":"text","text":"t"}]}"#;
            assert_eq!(call(&told.replace('X', value), revision), want);
        }
    }
}

#[test]
fn content_is_there_for_who_insists_on_it() {
    for revision in [R24, R03, R06, R11] {
        assert_eq!(call("{}", revision), r#"{"content":[]}"#);
        assert_eq!(
            call(r#"{"toolResult":{"content":1}}"#, revision),
            r#"{"content":[],"toolResult":{"content":1}}"#
        );
        assert_eq!(call(r#"{ "content" : null }"#, revision), r#"{ "content" : [] }"#);
        let later = r#"{"isError":false,"content":[{"type":"text","text":"\u00e9"}]}"#;
        assert_eq!(call(later, revision), later);
        for other in [r#"{"task":{"taskId":"t"}}"#, r#"{"resultType":"input_required"}"#, "[]"] {
            assert_eq!(call(other, revision), other);
        }
    }
    assert_eq!(call("{}", R26), "{}");
}

#[test]
fn an_output_schema_is_an_object_s_or_none() {
    let said = |raw: &str| text(&tool(&bytes(raw)));
    for stays in [
        r#"{"name":"a","outputSchema":{"type":"object","x":1.0}}"#,
        r#"{"name":"a","inputSchema":{"properties":{"outputSchema":{"type":"array"}}}}"#,
        r#"{"name":"a","title":"T","icons":[],"annotations":{}}"#,
    ] {
        assert_eq!(said(stays), stays);
    }
    for schema in
        [r#"{"type":"array"}"#, "true", "{}", r#"{"type":["object","null"]}"#, r#"{"anyOf":[]}"#]
    {
        let raw = format!(r#"{{"name":"a", "outputSchema":{schema}, "title":"T"}}"#);
        assert_eq!(said(&raw), r#"{"name":"a", "title":"T"}"#);
    }
}

#[test]
fn a_choice_of_one_has_the_old_words() {
    let raw = r#"{"mode":"form","message":"m", "requestedSchema":{"type":"object","properties":{
"s":{"type":"string","oneOf":[{"const":"a","title":"A"},{"const":"\"b\""}],"default":"a"},
"t":{"title":"T","anyOf":[{"const":"c","title":"C"}]},
"n":{"type":"string","oneOf":[{"const":1}]},"e":{"type":"string","enum":["x"],"pattern":"^x"}},"required":["s"]}}"#;
    let (said, back) = asked("elicitation/create", raw, R06);
    insta::assert_snapshot!(said, @r#"
    {"message":"m", "requestedSchema":{"type":"object","properties":{
    "s":{"type":"string","enum":["a","\"b\""],"enumNames":["A","\"b\""],"default":"a"},
    "t":{"title":"T","enum":["c"],"enumNames":["C"]},
    "n":{"type":"string","oneOf":[{"const":1}]},"e":{"type":"string","enum":["x"],"pattern":"^x"}},"required":["s"]}}
    "#);
    let answer = bytes(r#"{"action":"accept","content":{"s": "a"}}"#);
    assert_eq!(back.answer(answer.clone()), answer);
    assert_eq!(asked("elicitation/create", raw, R11).0, raw);
}

const SEVERAL: &str = r#"{"message":"m","requestedSchema":{"type":"object","properties":{"c":{"type":"array","title":"Colours","description":"Which?","minItems":1,"maxItems":2,"items":{"anyOf":[{"const":"r","title":"Red"},{"const":"g","title":"Green"}]},"default":["g"]},"c_1":{"type":"string"},"d":{"type":"array","items":{"type":"string","enum":["x","y"]}}},"required":["c_1","c"]}}"#;

#[test]
fn a_choice_of_several_is_asked_one_by_one_and_put_together_again() {
    let (said, back) = asked("elicitation/create", SEVERAL, R06);
    insta::assert_snapshot!(said, @r#"{"message":"m","requestedSchema":{"type":"object","properties":{"c_1_":{"type":"boolean","title":"Colours: Red","description":"Which? Choose 1 to 2."},"c_2":{"type":"boolean","title":"Colours: Green","default":true},"c_1":{"type":"string"},"d_1":{"type":"boolean","title":"d: x"},"d_2":{"type":"boolean","title":"d: y"}},"required":["c_1"]}}"#);
    let put = |content: &str| {
        text(&back.answer(bytes(&format!(r#"{{"action":"accept", "content":{content}}}"#))))
    };
    insta::assert_snapshot!(put(r#"{"c_1_":true,"c_2":true,"c_1":"t","d_1":false,"d_2":true}"#), @r#"{"action":"accept", "content":{"c_1":"t","c":["r","g"],"d":["y"]}}"#);
    // What was left out stays so, unless it must be there; nothing chosen is an answer.
    insta::assert_snapshot!(put(r#"{"c_1":"t"}"#), @r#"{"action":"accept", "content":{"c_1":"t","c":[]}}"#);
    insta::assert_snapshot!(put(r#"{"d_1":false,"d_2":false,"c_2":true}"#), @r#"{"action":"accept", "content":{"c":["g"],"d":[]}}"#);
    for other in [r#"{"action":"decline"}"#, r#"{"action":"accept","content":null}"#] {
        assert_eq!(back.answer(bytes(other)), other);
    }
    // More than anyone would fill in.
    let many: Vec<String> = (0..65).map(|n| format!("\"{n}\"")).collect();
    let raw = SEVERAL.replace(r#""x","y""#, &many.join(","));
    assert!(question("elicitation/create", Some(bytes(&raw)), R06).is_none());
    assert!(question("elicitation/create", Some(bytes(&raw)), R11).is_some());
}

#[test]
fn a_message_has_one_block() {
    let raw = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"}, {"type":"audio","data":"","mimeType":"m"}],"_meta":{"k":1}}, {"role":"assistant","content":{"type":"audio","data":"","mimeType":"m"}},{"role":"user","content":[]}],"maxTokens":1.0}"#;
    let said = |revision| asked("sampling/createMessage", raw, revision).0;
    insta::assert_snapshot!(said(R24), @r#"{"messages":[{"role":"user","content":{"type":"text","text":"a"},"_meta":{"k":1}},{"role":"user","content":{"type":"text","text":"[audio: m, left out]"}}, {"role":"assistant","content":{"type":"text","text":"[audio: m, left out]"}},{"role":"user","content":{"type":"text","text":""}}],"maxTokens":1.0}"#);
    insta::assert_snapshot!(said(R06), @r#"{"messages":[{"role":"user","content":{"type":"text","text":"a"},"_meta":{"k":1}},{"role":"user","content":{"type":"audio","data":"","mimeType":"m"}}, {"role":"assistant","content":{"type":"audio","data":"","mimeType":"m"}},{"role":"user","content":{"type":"text","text":""}}],"maxTokens":1.0}"#);
    assert_eq!(said(R11), raw);
    assert_eq!(asked("roots/list", "{}", R24).0, "{}");
    assert!(question("roots/list", None, R24).unwrap().0.is_none());
}

#[test]
fn a_model_s_answer_is_one_block_for_an_older_server() {
    let said = |content: &str, revision| {
        let raw = format!(r#"{{"role":"assistant", "content":{content},"model":"m"}}"#);
        let out = text(&sampled(&bytes(&raw), revision));
        out.strip_prefix(r#"{"role":"assistant", "content":"#)
            .and_then(|o| o.strip_suffix(r#","model":"m"}"#))
            .unwrap()
            .to_owned()
    };
    let one = r#"{"type":"text","text":"a","x":1.0}"#;
    assert_eq!(said(one, R24), one);
    assert_eq!(said(&format!("[ {one} ]"), R06), one);
    let two = format!(r#"[{one},{{"type":"image","data":"","mimeType":"image/png"}}]"#);
    insta::assert_snapshot!(said(&two, R03), @r#"{"type":"text","text":"a\n[image: image/png, left out]"}"#);
    assert_eq!(said(&two, R11), two);
    let audio = r#"{"type":"audio","data":"","mimeType":"m"}"#;
    assert_eq!(said(audio, R03), audio);
    insta::assert_snapshot!(said(audio, R24), @r#"{"type":"text","text":"[audio: m, left out]"}"#);
    assert_eq!(said("[]", R06), r#"{"type":"text","text":""}"#);
}

// A piece of a result and what an old reader gets in its place.
type Piece = (&'static str, &'static str);

fn blocks() -> Vec<Piece> {
    vec![
        (r#"{"type":"text","text":"\ud83d \"audio\" resource_link"}"#, ""),
        (r#"{ "n":1e400 , "type":"new","uri":"u"}"#, ""),
        (r#"{"type":"image","data":"audio","annotations":{"type":"audio"}}"#, ""),
        ("null", ""),
        (r#"{"type":"resource_link","uri":"u","name":"n"}"#, r#"{"type":"text","text":"n: u"}"#),
        (r#"{"uri":"","type":"resource_link"}"#, r#"{"type":"text","text":""}"#),
    ]
}

proptest! {
    #[test]
    fn only_what_must_change_does(
        content in proptest::collection::vec(proptest::sample::select(blocks()), 1..5),
        before in proptest::collection::vec(("[a-c]", "[ \n]?", proptest::sample::select(vec!["1.10", "{\"structuredContent\":1}", "\"\\u0061\""])), 0..3),
        after in proptest::collection::vec(("[d-f]", "[ \n]?", proptest::sample::select(vec!["-0.0", "[{\"type\":\"audio\"}]", "null"])), 0..3),
        space in "[ \n\t]{0,2}",
        structured: bool,
    ) {
        let write = |pick: fn(&Piece) -> &'static str, structured: bool| {
            let items: Vec<_> = content.iter().map(pick).collect();
            let mut members: Vec<String> = Vec::new();
            members.extend(before.iter().map(|(k, s, v)| format!("\"{k}\"{s}:{v}")));
            members.push(format!("\"content\":[{space}{}{space}]", items.join(&format!("{space},"))));
            if structured {
                members.push("\"structuredContent\":[7]".into());
            }
            members.extend(after.iter().map(|(k, s, v)| format!("\"{k}\":{s}{v}")));
            format!("{space}{{{}}}{space}", members.join(","))
        };
        let raw = write(|p| p.0, structured);
        let old = result("tools/call", &bytes(&raw), R03);
        let want = write(|p| if p.1.is_empty() { p.0 } else { p.1 }, false);
        prop_assert_eq!(std::str::from_utf8(&old).unwrap(), want);
        // Saying it again changes nothing more.
        prop_assert_eq!(result("tools/call", &old, R03), old);
        let new = result("tools/call", &bytes(&raw), R06);
        prop_assert_eq!(std::str::from_utf8(&new).unwrap(), write(|p| p.0, false));
    }

    #[test]
    fn any_bytes_are_survived(raw in proptest::collection::vec(prop_oneof![
        3 => proptest::sample::select(vec!["{", "}", "[", "]", ",", ":", "\"content\"", "\"type\"", "\"audio\"", "\"data\"", "\"mimeType\"", "\"structuredContent\"", "\"resource_link\"", "\"messages\"", "\"requestedSchema\"", "\"properties\"", "\"items\"", "\"enum\"", "\"oneOf\"", "\"array\"", "\"\\u"]),
        1 => Just(" "),
    ], 0..40)) {
        let raw = Bytes::from(raw.concat());
        for revision in Revision::ALL {
            for method in ["tools/call", "prompts/get"] {
                let _ = result(method, &raw, revision);
            }
            for method in ["elicitation/create", "sampling/createMessage"] {
                if let Some((_, back)) = question(method, Some(raw.clone()), revision) {
                    let _ = back.answer(raw.clone());
                }
            }
            let _ = (sampled(&raw, revision), tool(&raw));
        }
    }
}
