//! An old upstream asks in the middle of a call.

use serde_json::{Value, json};

use crate::harness::{Weir, modern, reason};
use crate::{
    Old, asking, capabilities_of, everything, form, modern_call, pages, roots, sampling, text, weir,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_modern_caller_is_asked_by_input_required_and_takes_the_call_up_again() {
    let up = asking().await;
    let weir = weir(&up, "call_timeout = \"2s\"").await;
    let arguments = json!({"q": [form("which region?"), sampling(), roots()], "x": 1.50});
    let meta = json!({"progressToken": "first"});
    let asked = modern_call(
        &weir.url,
        None,
        &everything(),
        "up__ask",
        json!({"arguments": arguments, "_meta": meta}),
    )
    .await;
    assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
    let requests = asked["result"]["inputRequests"].as_object().unwrap();
    let find = |method: &str| {
        requests
            .iter()
            .find(|(_, r)| r["method"] == method)
            .unwrap_or_else(|| panic!("{method}: {asked}"))
    };
    assert_eq!(find("elicitation/create").1["params"], form("which region?")["params"]);
    assert_eq!(find("sampling/createMessage").1["params"], sampling()["params"]);
    let state = asked["result"]["requestState"].as_str().unwrap();
    // The person takes longer than the call may: the clock stands still.
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    let elicited = json!({"action": "accept", "content": {"n": 2}});
    let sampled =
        json!({"role": "assistant", "content": {"type": "text", "text": "ho"}, "model": "m"});
    let listed = json!({"roots": [{"uri": "file:///r"}]});
    // First only two of three: the third is asked again under the same key.
    let some = json!({find("elicitation/create").0: elicited, find("roots/list").0: listed, "stranger": {}});
    let params = json!({"arguments": {"x": 1.50, "q": arguments["q"]}, "inputResponses": some, "requestState": state});
    let again = modern_call(&weir.url, None, &everything(), "up__ask", params.clone()).await;
    let left = again["result"]["inputRequests"].as_object().unwrap_or_else(|| panic!("{again}"));
    assert_eq!(left.keys().collect::<Vec<_>>(), [find("sampling/createMessage").0]);
    // What was used is used.
    let replayed = modern_call(&weir.url, None, &everything(), "up__ask", params).await;
    assert_eq!(replayed["error"]["code"], -32602, "{replayed}");
    let rest = json!({find("sampling/createMessage").0: sampled});
    let params = json!({"arguments": arguments, "inputResponses": rest, "requestState": again["result"]["requestState"]});
    let done = modern_call(&weir.url, None, &everything(), "up__ask", params).await;
    assert_eq!(text(&done), json!([elicited, sampled, listed]), "{done}");
    assert_eq!(done["result"]["resultType"], "complete");
    assert_eq!(up.arrived("ask"), 1, "one call, however many requests");
    // The shared conversation declares nothing to be asked, the consumer's what this caller can be.
    let declared = capabilities_of(&up.arrivals());
    assert_eq!(declared.len(), 2, "{declared:?}");
    assert_eq!(declared[0], pages());
    assert_eq!(
        declared[1],
        json!({"elicitation": {"form": {}, "url": {}}, "roots": {}, "sampling": {}})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_state_is_good_for_its_own_request_once() {
    let up = asking().await;
    let (px, sales) =
        (weirkeeper::config::secret::new_key(), weirkeeper::config::secret::new_key());
    let digest = |k: &weirkeeper::config::secret::Secret| {
        weirkeeper::config::secret::ConsumerKey::of(k.expose()).to_text()
    };
    let weir = Weir::start(
        "",
        &(up.section("up", "")
            + &format!(
                "[consumers.px]\nkey = {:?}\n[consumers.sales]\nkey = {:?}\n",
                digest(&px),
                digest(&sales)
            )),
    );
    weir.ready(&["up"]).await;
    let (px, sales) = (Some(px.expose()), Some(sales.expose()));
    let caps = everything();
    let params = || json!({"arguments": {"q": [form("a?")]}});
    let asked = modern_call(&weir.url, px, &caps, "up__ask", params()).await;
    let state = asked["result"]["requestState"].as_str().unwrap().to_owned();
    let with = |state: &str, arguments: Value| {
        json!({"arguments": arguments, "requestState": state,
            "inputResponses": {"q1": {"action": "decline"}}})
    };
    let same = json!({"q": [form("a?")]});
    let mut forged = state.clone().into_bytes();
    forged[20] ^= 1;
    let forged = String::from_utf8(forged).unwrap();
    for (who, key, state, name, arguments) in [
        ("somebody else", sales, &state, "up__ask", same.clone()),
        ("other arguments", px, &state, "up__ask", json!({"q": [form("b?")]})),
        ("another tool", px, &state, "up__plain", same.clone()),
        ("forged", px, &forged, "up__ask", same.clone()),
        ("made up", px, &"nonsense".to_owned(), "up__ask", same.clone()),
    ] {
        let answer = modern_call(&weir.url, key, &caps, name, with(state, arguments)).await;
        assert_eq!(answer["error"]["code"], -32602, "{who}: {answer}");
        assert_eq!(reason(&answer), "invalid_params", "{who}");
    }
    // None of that has used it up.
    let done = modern_call(&weir.url, px, &caps, "up__ask", with(&state, same.clone())).await;
    assert_eq!(text(&done), json!([{"action": "decline"}]), "{done}");
    let again = modern_call(&weir.url, px, &caps, "up__ask", with(&state, same)).await;
    assert_eq!(again["error"]["code"], -32602, "{again}");
    assert_eq!(up.arrived("ask"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_caller_is_asked_on_the_stream_of_its_own_call() {
    let up = asking().await;
    let weir = weir(&up, "").await;
    for revision in ["2025-03-26", "2025-06-18", "2025-11-25"] {
        let old = Old::open(
            &weir.url,
            None,
            revision,
            &json!({"elicitation": {}, "sampling": {}, "roots": {"listChanged": true}}),
        )
        .await;
        let can_elicit = revision != "2025-03-26";
        let seen = old
            .call("up__ask", json!({"q": [form("sure?"), sampling(), roots()]}), |request| {
                Some(match request["method"].as_str().unwrap() {
                    "elicitation/create" => {
                        json!({"result": {"action": "accept", "content": {"n": 1.0}}})
                    }
                    "sampling/createMessage" => {
                        json!({"error": {"code": -1, "message": "user said no"}})
                    }
                    _ => json!({"result": {"roots": []}}),
                })
            })
            .await;
        let methods: Vec<_> = seen.iter().filter_map(|m| m["method"].as_str()).collect();
        assert_eq!(methods[0], "notifications/progress", "{seen:?}");
        assert_eq!(methods.contains(&"elicitation/create"), can_elicit, "{revision}: {methods:?}");
        let answers = text(seen.last().unwrap());
        if can_elicit {
            assert_eq!(answers[0], json!({"action": "accept", "content": {"n": 1.0}}));
        } else {
            assert_eq!(answers[0]["code"], -32601, "never declared: {answers}");
        }
        assert_eq!(answers[1], json!({"code": -1, "message": "user said no"}));
        assert_eq!(answers[2], json!({"roots": []}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_asked_is_not_and_the_upstream_is_told_at_once() {
    let up = asking().await;
    let weir = weir(&up, "").await;
    let done = modern_call(
        &weir.url,
        None,
        &json!({}),
        "up__ask",
        json!({"arguments": {"q": [form("x")]}}),
    )
    .await;
    assert_eq!(text(&done)[0]["code"], -32601, "{done}");
    // A form, but no URL; sampling, but without tools.
    let url = json!({"method": "elicitation/create", "params": {"mode": "url", "message": "m", "url": "https://x.example/", "elicitationId": "e"}});
    let mut tools = sampling();
    tools["params"]["tools"] = json!([]);
    let caps = json!({"elicitation": {"form": {}}, "sampling": {}});
    let done = modern_call(
        &weir.url,
        None,
        &caps,
        "up__ask",
        json!({"arguments": {"q": [url, tools, roots()]}}),
    )
    .await;
    let answers = text(&done);
    assert_eq!(
        (&answers[0]["code"], &answers[1]["code"], &answers[2]["code"]),
        (&json!(-32602), &json!(-32602), &json!(-32601)),
        "{answers}"
    );
    let declared = capabilities_of(&up.arrivals());
    assert_eq!(declared, [pages(), json!({"elicitation": {"form": {}}, "sampling": {}})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_takes_the_call_with_it() {
    let up = asking().await;
    let weir = weir(&up, "").await;
    // An old client cancels while it is asked: the upstream is told, the client's question is
    // taken back.
    let old = std::sync::Arc::new(Old::open(&weir.url, None, "2025-11-25", &everything()).await);
    let (tx, mut asked) = tokio::sync::mpsc::channel(8);
    let running = {
        let old = old.clone();
        tokio::spawn(async move {
            old.call("up__ask", json!({"q": [form("?")]}), |request| {
                tx.try_send(request["id"].clone()).unwrap();
                None
            })
            .await
        })
    };
    let question = asked.recv().await.unwrap();
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "c"}});
    assert_eq!(old.post(&cancel).await.status, 202);
    let seen = running.await.unwrap();
    let last = seen.last().unwrap();
    assert_eq!(
        (&last["method"], &last["params"]["requestId"]),
        (&json!("notifications/cancelled"), &question),
        "{seen:?}"
    );
    weir.until("cancelled upstream", |_| up.asked("notifications/cancelled") == 1).await;
    // Its answer comes too late, and an answer that nobody asked for: both are taken and forgotten.
    for id in [question, json!("weir-999"), json!(7)] {
        let late = json!({"jsonrpc": "2.0", "id": id, "result": {"action": "accept"}});
        assert_eq!(old.post(&late).await.status, 202);
    }
    let still = modern(&weir.url, None, "tools/call", json!({"name": "up__plain"})).await.answer();
    assert_eq!(text(&still), "fine");
}
