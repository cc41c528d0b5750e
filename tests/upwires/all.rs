//! What holds over each of them.

use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::json;

use crate::harness::{call, modern, modern_request, reason, send, tool_names, upstream};
use crate::peer::{NAMES, Out, Peer};
use crate::{Old, asked_call, outcome, text, until, weir};

async fn each() -> [(&'static str, Peer); 3] {
    [
        ("websocket, old", Peer::websocket(false).await),
        ("websocket, modern", Peer::websocket(true).await),
        ("sse", Peer::sse(405).await),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_calls_errors_and_what_comes_before_an_answer() {
    for (kind, up) in each().await {
        let weir = weir(&up, "").await;
        let mut names = tool_names(&weir.url, None).await;
        names.retain(|n| n.starts_with("up__"));
        assert_eq!(names, NAMES.map(|n| format!("up__{n}")), "{kind}: both pages");
        assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine", "{kind}");
        let broke = call(&weir.url, "up__broke", json!({})).await;
        assert_eq!(
            (&broke["error"]["code"], &broke["error"]["data"]["x"]),
            (&json!(-31050), &json!(1)),
            "{kind}: {broke}"
        );
        let params = json!({"name": "up__steps", "arguments": {}, "_meta": {"progressToken": "p",
            "io.modelcontextprotocol/logLevel": "debug"}});
        let got = modern(&weir.url, None, "tools/call", params).await;
        let methods: Vec<_> = got.messages().iter().map(|m| m["method"].clone()).collect();
        let step = &got.messages()[0];
        assert_eq!(step["params"]["progressToken"], "p", "{kind}: {step}");
        assert_eq!(methods.iter().filter(|m| *m == "notifications/progress").count(), 2, "{kind}");
        assert_eq!(text(&got.answer()), "done", "{kind}");
        let odd = modern(&weir.url, None, "tools/call", json!({"name": "up__odd"})).await;
        let kept = r#""structuredContent":{"n":1.10,"big":123456789012345678901234567890},"x-unknown":{"b":1,"a":2}"#;
        assert!(odd.body.contains(kept), "{kind}: {}", odd.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_share_the_connection() {
    for (kind, up) in each().await {
        let weir = weir(&up, "concurrency = { max = 40 }").await;
        let calls = (0..40).map(|n| {
            let url = weir.url.clone();
            let name = if n % 2 == 0 { "up__fine" } else { "up__steps" };
            tokio::spawn(async move { text(&call(&url, name, json!({})).await).to_owned() })
        });
        for (n, done) in calls.collect::<Vec<_>>().into_iter().enumerate() {
            assert_eq!(done.await.unwrap(), if n % 2 == 0 { "fine" } else { "done" }, "{kind}");
        }
        assert_eq!(up.state.connections(), 1, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_is_told_upstream() {
    for (kind, up) in each().await {
        let weir = weir(&up, "").await;
        let (headers, body) = modern_request(None, "tools/call", json!({"name": "up__hang"}));
        let url = weir.url.clone();
        let running = tokio::spawn(async move {
            let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
            let _ = send(&url, &headers, body).await.into_body().collect().await;
        });
        until("the call", || up.state.arrived("hang") == 1).await;
        running.abort();
        until("its end", || up.state.asked("notifications/cancelled") == 1).await;
        let heard = up.state.heard();
        let of = |method: &str| heard.iter().find(|m| m["method"] == method).unwrap();
        let call = heard.iter().find(|m| m["params"]["name"] == "hang").unwrap();
        assert_eq!(of("notifications/cancelled")["params"]["requestId"], call["id"], "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_runs_out_of_time_is_taken_back() {
    for (kind, up) in each().await {
        let weir = weir(&up, "call_timeout = \"300ms\"").await;
        let late = call(&weir.url, "up__hang", json!({})).await;
        assert_eq!((reason(&late), outcome(&late)), ("deadline_exceeded", "unknown"), "{kind}");
        until("its end", || up.state.asked("notifications/cancelled") == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_reach_callers_of_either_era() {
    for (kind, up) in each().await {
        let weir = weir(&up, "").await;
        let asked = asked_call(&weir.url, "up__ask", json!({})).await;
        assert_eq!(asked["result"]["resultType"], "input_required", "{kind}: {asked}");
        let requests = asked["result"]["inputRequests"].as_object().unwrap();
        let (key, request) = requests.iter().next().unwrap();
        assert_eq!(request["params"]["message"], "sure?", "{kind}");
        let more = json!({"requestState": asked["result"]["requestState"],
            "inputResponses": {key: {"action": "decline"}}});
        let done = asked_call(&weir.url, "up__ask", more).await;
        assert_eq!(text(&done), "decline", "{kind}: {done}");
        let old = Old::open(&weir.url).await;
        let seen = old.call("up__ask").await;
        assert_eq!(seen[0]["method"], "elicitation/create", "{kind}: {seen:?}");
        assert_eq!(text(seen.last().unwrap()), "accept", "{kind}");
        if !kind.contains("modern") {
            let level = json!({"jsonrpc": "2.0", "id": 2, "method": "logging/setLevel",
                "params": {"level": "debug"}});
            assert_eq!(old.post(&level).await, 200);
            let seen = old.call("up__steps").await;
            let has = |method: &str| seen.iter().filter(|m| m["method"] == method).count();
            assert_eq!(
                (has("notifications/progress"), has("notifications/message")),
                (2, 1),
                "{kind}: the one call on its conversation hears its log: {seen:?}"
            );
        }
        // An old upstream is asked in a conversation of the consumer's own, besides the one of all.
        let own = usize::from(kind != "websocket, modern");
        assert_eq!(up.state.connections(), 1 + own, "{kind}");
        // Where nobody can be asked, an old upstream that asks all the same learns it.
        if own == 1 {
            let deaf = call(&weir.url, "up__ask", json!({})).await;
            assert_eq!(text(&deaf), "refused", "{kind}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_of_calls_at_once_do_not_cross() {
    for (kind, up) in each().await {
        let weir = weir(&up, "").await;
        let one = asked_call(&weir.url, "up__ask", json!({"arguments": {"n": 1}})).await;
        assert_eq!(one["result"]["resultType"], "input_required", "{kind}: {one}");
        // The second waits for its turn, as long as it may, in an old conversation.
        let url = weir.url.clone();
        let two = tokio::spawn(async move {
            asked_call(&url, "up__ask", json!({"arguments": {"n": 2}})).await
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        let modern = kind == "websocket, modern";
        assert_eq!(up.state.arrived("ask"), if modern { 2 } else { 1 }, "{kind}");
        let key = one["result"]["inputRequests"].as_object().unwrap().keys().next().unwrap();
        let more = json!({"requestState": one["result"]["requestState"], "arguments": {"n": 1},
            "inputResponses": {key: {"action": "accept", "content": {}}}});
        assert_eq!(text(&asked_call(&weir.url, "up__ask", more).await), "accept", "{kind}");
        let two = two.await.unwrap();
        assert_eq!(two["result"]["resultType"], "input_required", "{kind}: {two}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told() {
    for (kind, up) in each().await {
        let weir = weir(&up, "").await;
        let before = up.state.asked("tools/list");
        let (headers, body) = modern_request(
            None,
            "subscriptions/listen",
            json!({"notifications": {"resourceSubscriptions": ["up+file:///a"]}}),
        );
        let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let mut stream = send(&weir.url, &headers, body).await.into_body();
        let modern = kind == "websocket, modern";
        let wish = if modern { "subscriptions/listen" } else { "resources/subscribe" };
        until("the wish", || {
            up.state
                .heard()
                .iter()
                .any(|m| m["method"] == wish && m.to_string().contains("file:///a"))
        })
        .await;
        let mut params = json!({"uri": "file:///a"});
        if modern {
            let heard = up.state.heard();
            let listen = heard.iter().rfind(|m| m["method"] == wish).unwrap();
            params["_meta"] = json!({"io.modelcontextprotocol/subscriptionId": listen["id"]});
        }
        up.state.notify_all("notifications/resources/updated", &params);
        let mut seen = String::new();
        while !seen.contains("notifications/resources/updated") {
            let frame = tokio::time::timeout(crate::PATIENCE, stream.frame()).await.unwrap();
            seen.push_str(
                std::str::from_utf8(frame.unwrap().unwrap().data_ref().unwrap()).unwrap(),
            );
        }
        assert!(seen.contains("up+file:///a"), "{kind}: {seen}");
        up.state.notify_all("notifications/tools/list_changed", &json!({}));
        until("fetched again", || up.state.asked("tools/list") >= before + 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_in_the_middle_of_a_write_leaves_it_unknown_and_connects_again() {
    for (kind, up) in each().await {
        let weir = weir(&up, "").await;
        let cut = call(&weir.url, "up__cut", json!({})).await;
        assert_eq!((reason(&cut), outcome(&cut)), ("connection_lost", "unknown"), "{kind}: {cut}");
        until("connected again", || up.state.connections() == 2).await;
        weir.ready(&["up"]).await;
        assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine", "{kind}");
        assert_eq!(up.state.arrived("cut"), 1, "{kind}: nothing is sent twice");
        // Idle, too.
        up.state.say_all(|| Out::Cut);
        until("connected again", || up.state.connections() == 3).await;
        // The verdict holds: an old one is not probed each time.
        weir.until("ready", |s| upstream(s, "up")["state"] == "ready").await;
        let probes = up.state.asked("server/discover");
        assert_eq!(
            probes,
            if kind == "websocket, modern" { 3 } else { usize::from(kind != "sse") }
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_ends_the_connection_and_nothing_else() {
    for (kind, up) in each().await {
        let neighbour = Peer::websocket(false).await;
        let weir = crate::harness::Weir::start(
            "",
            &(up.section("up", "max_message = \"64KiB\"") + &neighbour.section("other", "")),
        );
        weir.ready(&["up", "other"]).await;
        let big = call(&weir.url, "up__big", json!({})).await;
        assert_eq!((reason(&big), outcome(&big)), ("too_large", "unknown"), "{kind}: {big}");
        weir.ready(&["up"]).await;
        until("connected again", || up.state.connections() == 2).await;
        weir.ready(&["up"]).await;
        assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine", "{kind}");
        assert_eq!(up.state.arrived("big"), 1, "{kind}");
        assert_eq!(neighbour.state.connections(), 1);
    }
}
