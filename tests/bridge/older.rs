//! Content, forms and samplings for peers of revisions that have no word for them.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::harness::modern;
use crate::harness::scripted::{Arrival, Reply, Scripted};
use crate::{Old, asking_of, everything, modern_call, text, weir};

const HANDSHAKES: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];

/// An upstream of the newest revision; `call` answers `tools/call`.
async fn newest(call: impl Fn(&Arrival) -> Value + Send + Sync + 'static) -> Scripted {
    Scripted::start(&[], move |a| {
        let mut result = match a.method() {
            "server/discover" => json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}),
            "tools/list" => json!({"tools": [
                {"name": "say", "inputSchema": {"type": "object"}, "outputSchema": {"type": "array"}, "title": "Say"},
                {"name": "ask", "inputSchema": {"type": "object"}, "outputSchema": {"type": "object"}},
            ]}),
            "tools/call" => call(a),
            _ => return None,
        };
        if result.get("resultType").is_none() {
            result["resultType"] = json!("complete");
        }
        result["ttlMs"] = json!(0);
        result["cacheScope"] = json!("private");
        Some(Reply::Json(a.result(&result)))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_old_caller_reads_what_a_new_upstream_says() {
    let up = newest(|a| {
        let what = &a.message["params"]["arguments"]["what"];
        match what.as_str() {
            Some("audio") => {
                json!({"content": [{"type": "audio", "data": "QUJD", "mimeType": "audio/wav"}]})
            }
            Some("link") => {
                json!({"content": [{"type": "resource_link", "uri": "file:///a", "name": "a.txt"}]})
            }
            Some("array") => json!({"content": [], "structuredContent": [1, {"a": null}]}),
            _ => json!({"structuredContent": {"n": 1}}),
        }
    })
    .await;
    let weir = weir(&up, "").await;
    let new = |what: &str| {
        let params = json!({"arguments": {"what": what}});
        let url = weir.url.clone();
        async move { modern_call(&url, None, &json!({}), "up__say", params).await["result"].clone() }
    };
    let audio = json!([{"type": "audio", "data": "QUJD", "mimeType": "audio/wav"}]);
    let link = json!([{"type": "resource_link", "uri": "up+file:///a", "name": "a.txt"}]);
    let array = json!([1, {"a": null}]);
    assert_eq!(new("audio").await["content"], audio);
    assert_eq!(new("link").await["content"], link);
    assert_eq!(new("array").await["structuredContent"], array);
    for revision in HANDSHAKES {
        let old = Old::open(&weir.url, None, revision, &json!({})).await;
        let said = async |what: &str| {
            let seen = old.call("up__say", json!({"what": what}), |_| None).await;
            seen.last().unwrap()["result"].clone()
        };
        let heard = said("audio").await["content"].clone();
        if revision == "2024-11-05" {
            let resource = &heard[0]["resource"];
            assert_eq!(
                (&heard[0]["type"], &resource["blob"]),
                (&json!("resource"), &json!("QUJD"))
            );
            assert_eq!(resource["mimeType"], "audio/wav", "{heard}");
        } else {
            assert_eq!(heard, audio, "{revision}");
        }
        let linked = said("link").await["content"].clone();
        if revision < "2025-06-18" {
            assert_eq!(linked, json!([{"type": "text", "text": "a.txt: up+file:///a"}]));
        } else {
            assert_eq!(linked, link, "{revision}");
        }
        let listed = said("array").await;
        assert_eq!(listed, json!({"content": [{"type": "text", "text": array.to_string()}]}));
        let bare = said("").await;
        if revision < "2025-06-18" {
            assert_eq!(
                bare,
                json!({"content": [{"type": "text", "text": "{\"n\":1}"}], "structuredContent": {"n": 1}})
            );
        } else {
            assert_eq!(bare, json!({"content": [], "structuredContent": {"n": 1}}));
        }
        let list = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"});
        let tools = old.post(&list).await.answer()["result"]["tools"].clone();
        let of =
            |n: &str| tools.as_array().unwrap().iter().find(|t| t["name"] == n).unwrap().clone();
        assert_eq!(
            (&of("up__say")["outputSchema"], &of("up__say")["title"]),
            (&Value::Null, &json!("Say"))
        );
        assert_eq!(of("up__ask")["outputSchema"], json!({"type": "object"}));
    }
    let tools = modern(&weir.url, None, "tools/list", json!({})).await.answer();
    assert!(tools.to_string().contains(r#""outputSchema":{"type":"array"}"#), "{tools}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_is_asked_in_old_words_and_answered_in_new_ones() {
    let rounds = AtomicUsize::new(0);
    let up = newest(move |a| {
        let params = &a.message["params"];
        if rounds.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            let schema = json!({"type": "object", "required": ["one", "more"], "properties": {
                "one": {"type": "string", "oneOf": [{"const": "eu", "title": "Europe"}, {"const": "us", "title": "America"}]},
                "more": {"type": "array", "minItems": 1, "items": {"anyOf": [{"const": "a", "title": "A"}, {"const": "b", "title": "B"}, {"const": "c", "title": "C"}]}},
            }});
            let form = json!({"method": "elicitation/create", "params": {"mode": "form", "message": "m", "requestedSchema": schema}});
            return json!({"resultType": "input_required", "inputRequests": {"f": form}});
        }
        json!({"content": [{"type": "text", "text": params["inputResponses"]["f"].to_string()}]})
    })
    .await;
    let weir = weir(&up, "").await;
    let old = Old::open(&weir.url, None, "2025-06-18", &json!({"elicitation": {}})).await;
    let answer = |request: &Value| {
        let params = &request["params"];
        assert_eq!(params.get("mode"), None, "{request}");
        let schema = &params["requestedSchema"];
        assert_eq!(schema["required"], json!(["one"]));
        let one = &schema["properties"]["one"];
        assert_eq!(
            *one,
            json!({"type": "string", "enum": ["eu", "us"], "enumNames": ["Europe", "America"]})
        );
        let mut content = json!({"one": "us"});
        for (name, property) in schema["properties"].as_object().unwrap() {
            // As a client would that knows strings and booleans only.
            if name != "one" {
                assert_eq!(property["type"], "boolean", "{schema}");
                content[name] = json!(property["title"] != "more: B");
            }
        }
        assert_eq!(content.as_object().unwrap().len(), 4, "{schema}");
        Some(json!({"result": {"action": "accept", "content": content}}))
    };
    let seen = old.call("up__ask", json!({}), answer).await;
    let heard = text(seen.last().unwrap());
    assert_eq!(
        heard,
        json!({"action": "accept", "content": {"one": "us", "more": ["a", "c"]}}),
        "{seen:?}"
    );
    // One who knows the new words is asked in them.
    let newer = Old::open(&weir.url, None, "2025-11-25", &everything()).await;
    let answer = |request: &Value| {
        let more = &request["params"]["requestedSchema"]["properties"]["more"];
        assert_eq!(more["type"], "array", "{request}");
        Some(json!({"result": {"action": "accept", "content": {"one": "eu", "more": ["b"]}}}))
    };
    let seen = newer.call("up__ask", json!({}), answer).await;
    let heard = text(seen.last().unwrap());
    assert_eq!(heard["content"], json!({"one": "eu", "more": ["b"]}), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn samplings_have_one_block_where_the_revision_has_one() {
    let blocks = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let sampling = json!({"method": "sampling/createMessage", "params": {"maxTokens": 1,
        "messages": [{"role": "user", "content": blocks}]}});
    // The caller is older than who asks.
    let up = asking_of("2025-11-25").await;
    let gateway = weir(&up, "").await;
    let old = Old::open(&gateway.url, None, "2025-06-18", &json!({"sampling": {}})).await;
    let reply =
        json!({"role": "assistant", "model": "m", "content": {"type": "text", "text": "x"}});
    let answer = |request: &Value| {
        let messages = &request["params"]["messages"];
        assert_eq!(
            *messages,
            json!([{"role": "user", "content": blocks[0]}, {"role": "user", "content": blocks[1]}])
        );
        Some(json!({"result": reply}))
    };
    let seen = old.call("up__ask", json!({"q": [sampling]}), answer).await;
    assert_eq!(text(seen.last().unwrap()), json!([reply]), "{seen:?}");
    // Who asks is older than the caller.
    let up = asking_of("2025-06-18").await;
    let gateway = weir(&up, "").await;
    let new = Old::open(&gateway.url, None, "2025-11-25", &json!({"sampling": {}})).await;
    let reply = json!({"role": "assistant", "model": "m", "content": blocks});
    let answer = |_: &Value| Some(json!({"result": reply}));
    let seen = new.call("up__ask", json!({"q": [crate::sampling()]}), answer).await;
    let heard = text(seen.last().unwrap());
    assert_eq!(heard[0]["content"], json!({"type": "text", "text": "a\nb"}), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_context_of_a_completion_is_for_who_knows_it() {
    for revision in ["2025-03-26", "2025-06-18"] {
        let up = Scripted::start(&[], move |a| {
            let result = match a.method() {
                "initialize" => json!({"protocolVersion": revision, "capabilities": {"prompts": {}, "completions": {}},
                    "serverInfo": {"name": "s", "version": "1"}}),
                "prompts/list" => json!({"prompts": [{"name": "p"}]}),
                "completion/complete" => json!({"completion": {"values": ["v"]}}),
                _ => return None,
            };
            Some(Reply::Json(a.result(&result)))
        })
        .await;
        let weir = weir(&up, "").await;
        let params = json!({"context": {"arguments": {"a": "1"}}, "ref": {"type": "ref/prompt", "name": "up__p"},
            "argument": {"name": "b", "value": "v"}, "x": 1});
        let done = modern(&weir.url, None, "completion/complete", params).await.answer();
        assert_eq!(done["result"]["completion"]["values"], json!(["v"]), "{done}");
        let arrivals = up.arrivals();
        let asked = &arrivals.iter().find(|a| a.method() == "completion/complete").unwrap().message;
        assert_eq!(asked["params"].get("context").is_some(), revision == "2025-06-18", "{asked}");
        assert_eq!(
            (&asked["params"]["ref"]["name"], &asked["params"]["x"]),
            (&json!("p"), &json!(1))
        );
    }
}
