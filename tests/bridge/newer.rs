//! An upstream of the newest revision answers `input_required`.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::harness::reason;
use crate::harness::scripted::{Reply, Scripted, tool};
use crate::{Old, everything, form, modern_call, roots, sampling, text, weir};

/// Asks a form, then a sampling and the roots together, then only to be asked again; its state
/// has an odd text that must come back as it was.
async fn newest() -> Scripted {
    let rounds = AtomicUsize::new(0);
    Scripted::start(&[], move |a| {
        let complete = |mut result: Value| {
            result["resultType"] = json!("complete");
            Some(Reply::Json(a.result(&result)))
        };
        match a.method() {
            "server/discover" => complete(json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, "ttlMs": 0, "cacheScope": "private"})),
            "tools/list" => complete(json!({"tools": [tool("ask", false)], "ttlMs": 0, "cacheScope": "private"})),
            "tools/call" => {
                let params = &a.message["params"];
                let ask = |requests: Value, state: &str| {
                    let mut answer = json!({"resultType": "input_required", "inputRequests": requests});
                    if requests.is_null() {
                        answer.as_object_mut().unwrap().remove("inputRequests");
                    }
                    // As text: the escapes are part of it.
                    let text = a.result(&answer).replacen("\"resultType\"", &format!("\"requestState\":{state},\"resultType\""), 1);
                    Some(Reply::Json(text))
                };
                rounds.fetch_add(1, Ordering::SeqCst);
                match params["requestState"].as_str() {
                    None => ask(json!({"f": form("first?")}), r#""st\u0061te \/1""#),
                    Some("state /1") if a.body.contains(r#""requestState":"st\u0061te \/1""#) => {
                        assert_eq!(params["inputResponses"]["f"]["action"], "accept");
                        ask(json!({"s": sampling(), "r": roots()}), r#""2""#)
                    }
                    Some("2") => ask(Value::Null, r#""3""#),
                    Some("3") => complete(json!({"content": [{"type": "text", "text": "\"done\""}]})),
                    _ => Some(Reply::Json(json!({"jsonrpc": "2.0", "id": a.message["id"], "error": {"code": -32602, "message": "state changed"}}).to_string())),
                }
            }
            _ => None,
        }
    })
    .await
}

fn answer(request: &Value) -> Option<Value> {
    Some(match request["method"].as_str().unwrap() {
        "elicitation/create" => json!({"result": {"action": "accept", "content": {}}}),
        "sampling/createMessage" => {
            json!({"result": {"role": "assistant", "content": {"type": "text", "text": "x"}, "model": "m"}})
        }
        _ => json!({"result": {"roots": []}}),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_caller_is_asked_live_and_the_rounds_are_made_for_it() {
    let up = newest().await;
    let weir = weir(&up, "").await;
    let old = Old::open(&weir.url, None, "2025-11-25", &everything()).await;
    let seen = old.call("up__ask", json!({"a": 1.50}), answer).await;
    let asked: Vec<_> = seen.iter().filter_map(|m| m["method"].as_str()).collect();
    assert_eq!(asked[0], "elicitation/create", "{seen:?}");
    assert_eq!(asked.len(), 3, "{seen:?}");
    let last = seen.last().unwrap();
    assert_eq!((text(last), &last["id"]), (json!("done"), &json!("c")));
    assert!(last["result"].get("resultType").is_none(), "an old client is not told so: {last}");
    assert_eq!(up.arrived("ask"), 4);
    // Each says what this caller can be asked, and the same arguments.
    for a in up.arrivals().iter().filter(|a| a.tool().is_some()) {
        assert!(a.body.contains("\"arguments\":{\"a\":1.5}"), "{}", a.body);
        let declared = &a.message["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"];
        assert_eq!(
            declared,
            &json!({"roots": {}, "sampling": {}, "elicitation": {"form": {}, "url": {}}})
        );
        assert_eq!(a.headers["mcp-name"], "ask");
    }
    // One that can be asked nothing: the upstream was told so, and asks all the same.
    let deaf = Old::open(&weir.url, None, "2025-11-25", &json!({})).await;
    let seen = deaf.call("up__ask", json!({}), answer).await;
    let outcome = |last: &Value| last["error"]["data"]["outcome"].clone();
    let last = seen.last().unwrap();
    assert_eq!((reason(last), outcome(last)), ("capability_missing", json!("no_effect")), "{last}");
    // What it did with the first answer before it asked for more than this caller can say, nobody
    // knows.
    let partly = Old::open(&weir.url, None, "2025-11-25", &json!({"elicitation": {}})).await;
    let seen = partly.call("up__ask", json!({}), answer).await;
    let last = seen.last().unwrap();
    assert_eq!((reason(last), outcome(last)), ("capability_missing", json!("unknown")), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modern_caller_reads_it_itself_and_its_state_is_wrapped() {
    let up = newest().await;
    let weir = weir(&up, "").await;
    let caps = everything();
    let asked =
        modern_call(&weir.url, None, &caps, "up__ask", json!({"arguments": {"a": 1}})).await;
    assert_eq!(asked["result"]["inputRequests"]["f"], form("first?"), "{asked}");
    let state = asked["result"]["requestState"].as_str().unwrap();
    assert!(!state.contains("/1"), "sealed: {state}");
    let retry = |arguments: Value, state: &Value, responses: Value| json!({"arguments": arguments, "requestState": state, "inputResponses": responses});
    // For another request it is worth nothing; unsealed neither.
    for (arguments, state) in
        [(json!({"a": 2}), json!(state)), (json!({"a": 1}), json!("state /1"))]
    {
        let params = retry(arguments, &state, json!({"f": {"action": "accept"}}));
        let refused = modern_call(&weir.url, None, &caps, "up__ask", params).await;
        assert_eq!(refused["error"]["code"], -32602, "{refused}");
    }
    assert_eq!(up.arrived("ask"), 1, "the upstream saw nothing of it");
    let params =
        retry(json!({"a": 1}), &json!(state), json!({"f": {"action": "accept", "content": {}}}));
    let asked = modern_call(&weir.url, None, &caps, "up__ask", params).await;
    assert_eq!(asked["result"]["inputRequests"].as_object().unwrap().len(), 2, "{asked}");
    let params = retry(json!({"a": 1}), &asked["result"]["requestState"], json!({}));
    let asked = modern_call(&weir.url, None, &caps, "up__ask", params).await;
    assert!(asked["result"].get("inputRequests").is_none(), "only to be asked again: {asked}");
    let params = retry(json!({"a": 1}), &asked["result"]["requestState"], json!({}));
    let done = modern_call(&weir.url, None, &caps, "up__ask", params).await;
    assert_eq!(text(&done), json!("done"), "{done}");
}
