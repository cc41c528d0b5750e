//! The bridge and a real gateway, which is killed and started again.

use serde_json::json;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, free_port};
use crate::{Host, until};

const OLD: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];

/// Lines that hold a gateway at one address.
fn at(port: u16) -> String {
    format!("listen = \"127.0.0.1:{port}\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn old_hosts_of_every_revision_get_what_they_agreed_on() {
    let up = Scripted::fine(&["pay"]).await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    for revision in OLD {
        let mut host = Host::start(&weir.url);
        assert_eq!(host.hello(revision).await["protocolVersion"], revision);
        let list = host.ask(1, "tools/list", json!({})).await;
        assert_eq!(list["result"]["tools"][0]["name"], "up__pay", "{revision}: {list}");
        let call = host.ask("c", "tools/call", json!({"name": "up__pay", "arguments": {}})).await;
        assert_eq!(call["result"]["content"][0]["text"], "fine", "{revision}: {call}");
        assert_eq!(host.ask(2, "ping", json!({})).await["result"], json!({}));
        host.hang_up();
        assert_eq!(host.ended().await, Some(0), "{}", host.log());
    }
    // Each session was ended.
    let status = weir.status().await;
    assert!(!status.to_string().contains("\"sessions\":4"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_eras_on_one_pipe() {
    let up = Scripted::fine(&["pay"]).await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let mut host = Host::start(&weir.url);
    let found = host.modern("d", "server/discover", json!({})).await;
    assert!(found["result"]["supportedVersions"].to_string().contains("2026-07-28"), "{found}");
    host.hello("2025-06-18").await;
    for n in 0..5 {
        let call = json!({"name": "up__pay", "arguments": {}});
        host.send_modern(format!("m{n}"), "tools/call", call.clone()).await;
        host.send(json!({"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": call})).await;
    }
    for n in 0..5 {
        assert_eq!(host.answer(json!(format!("m{n}"))).await["result"]["resultType"], "complete");
        assert!(host.answer(json!(n)).await["result"].get("resultType").is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_unknown_fields_and_ids_keep_their_text() {
    let up = Scripted::start(&[tool("pay", false)], |a| {
        let result = r#"{"content":[],"structuredContent":{"n":1.10,"m":1e400},"x":{"b":2,"a":1}}"#;
        a.tool().map(|_| {
            let id = &a.message["id"];
            Reply::Json(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#))
        })
    })
    .await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let mut host = Host::start(&weir.url);
    host.hello("2025-06-18").await;
    for id in ["1.0", "-7", r#""a\u0062\/""#] {
        let params =
            r#"{"name":"up__pay","arguments":{"amount":10.00,"big":12345678901234567890}}"#;
        host.write(&format!(
            r#"{{ "jsonrpc":"2.0", "id":{id}, "method":"tools/call","params":{params}}}"#
        ))
        .await;
        let line = host.line(id, |l| l.contains("structuredContent")).await;
        assert!(line.contains(&format!(r#""id":{id},"#)), "{line}");
        assert!(line.contains(r#"{"n":1.10,"m":1e400},"x":{"b":2,"a":1}"#), "{line}");
    }
    let arrived = up.arrivals();
    let call = arrived.iter().rfind(|a| a.tool().is_some()).unwrap();
    assert!(call.body.contains(r#"{"amount":10.00,"big":12345678901234567890}"#), "{}", call.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_gateway_goes_unnoticed() {
    let up = Scripted::fine(&["pay"]).await;
    let (port, section) = (free_port(), up.section("up", ""));
    let mut weir = Weir::start(&at(port), &section);
    weir.ready(&["up"]).await;
    let mut host = Host::start(&weir.url);
    host.hello("2025-11-25").await;
    let wish = json!({"notifications": {"toolsListChanged": true}});
    host.send_modern("listen", "subscriptions/listen", wish).await;
    host.told("notifications/subscriptions/acknowledged").await;
    let call = json!({"name": "up__pay", "arguments": {}});
    assert!(host.ask(1, "tools/call", call.clone()).await["result"].is_object());
    // Once killed, once stopped with all the farewells.
    for round in 0..2 {
        if round == 0 {
            weir.kill();
        } else {
            assert!(weir.stop().success());
        }
        let id = format!("old{round}");
        host.send(json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": call}))
            .await;
        host.send_modern(format!("new{round}"), "tools/list", json!({})).await;
        let noticed = || host.log().matches("no way to the gateway").count() > round;
        until("the bridge notices", noticed).await;
        weir = weir.again(&at(port), &section, &[]);
        let answer = host.answer(json!(id)).await;
        assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}\n{}", host.log());
        assert!(host.answer(json!(format!("new{round}"))).await["result"]["tools"].is_array());
        let told = host
            .message("a change on the listen stream", |m| {
                m["method"] == "notifications/tools/list_changed"
                    && m["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "listen"
            })
            .await;
        assert_eq!(told["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "listen");
    }
    assert_eq!(up.arrived("pay"), 3, "each call once");
    let seen = host.aside().join("\n");
    assert!(!seen.contains("acknowledged"), "one acknowledgement is enough: {seen}");
    assert!(!seen.contains(r#""id":"hello""#) && !seen.contains("error"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_may_have_arrived_is_not_repeated_and_a_list_is() {
    let up =
        Scripted::start(&[tool("pay", false)], |a| a.tool().map(|_| Reply::Hang(Vec::new()))).await;
    let (port, section) = (free_port(), up.section("up", ""));
    let mut weir = Weir::start(&at(port), &section);
    weir.ready(&["up"]).await;
    let mut host = Host::start(&weir.url);
    host.hello("2025-11-25").await;
    let call = json!({"name": "up__pay", "arguments": {}});
    host.send(json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call})).await;
    host.send_modern(2, "tools/call", call).await;
    until("both arrive", || up.arrived("pay") == 2).await;
    weir.kill();
    for id in [1, 2] {
        let answer = host.answer(json!(id)).await;
        let error = &answer["error"];
        assert_eq!(error["data"]["outcome"], "unknown", "{answer}");
        assert_eq!(error["data"]["reason"], "connection_lost", "{answer}");
        assert!(error["message"].as_str().unwrap().contains("outcome is unknown"), "{answer}");
    }
    host.send_modern(3, "tools/list", json!({})).await;
    let weir = weir.again(&at(port), &section, &[]);
    assert!(host.answer(json!(3)).await["result"]["tools"].is_array());
    weir.ready(&["up"]).await;
    assert_eq!(up.arrived("pay"), 2, "nothing was repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_calls_are_cancelled_in_both_eras() {
    let up =
        Scripted::start(&[tool("pay", false)], |a| a.tool().map(|_| Reply::Hang(Vec::new()))).await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let mut host = Host::start(&weir.url);
    host.hello("2025-11-25").await;
    let call = json!({"name": "up__pay", "arguments": {}});
    host.send(json!({"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": call})).await;
    host.send_modern("b", "tools/call", call).await;
    until("both arrive", || up.arrived("pay") == 2).await;
    for id in ["a", "b"] {
        let params = json!({"requestId": id, "reason": "changed my mind"});
        let told = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params});
        host.send(told).await;
    }
    // The gateway tells its upstream, for each.
    until("both are cancelled", || up.asked("notifications/cancelled") == 2).await;
    // Its id is free again, and the pipe is alive.
    assert!(host.ask("a", "tools/list", json!({})).await["result"].is_object());
    assert!(host.aside().iter().all(|l| !l.contains(r#""id":"b""#)), "{:?}", host.aside());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_sent_and_never_shown() {
    let up = Scripted::fine(&["pay"]).await;
    let key = "weir_test-key-that-nobody-may-see";
    let digest = weirkeeper::config::secret::ConsumerKey::of(key).to_text();
    let consumers = format!("[consumers.desk]\nkey = \"{digest}\"\n{}", up.section("up", ""));
    let weir = Weir::start("", &consumers);
    weir.ready(&["up"]).await;
    let file = weir.dir.path().join("desk.key");
    std::fs::write(&file, format!("{key}\n")).unwrap();
    let file = file.display().to_string();
    for (args, env) in [
        (vec!["--token", key], vec![]),
        (vec!["--token-file", &file], vec![("WEIR_TOKEN", "another")]),
        (vec![], vec![("WEIR_TOKEN", key)]),
    ] {
        let mut host = Host::start_with(&weir.url, &args, &env);
        host.hello("2025-06-18").await;
        assert!(host.ask(1, "tools/list", json!({})).await["result"]["tools"][0].is_object());
    }
    // Refused: said with the remedy, and the bridge lives on.
    let wrong = "weir_wrong-key-in-the-wrong-place";
    let mut host = Host::start_with(&weir.url, &["--token", wrong], &[]);
    for id in 1..3 {
        let answer = host.modern(id, "tools/list", json!({})).await;
        assert_eq!(answer["error"]["data"]["reason"], "credential_refused", "{answer}");
        let text = answer["error"]["message"].as_str().unwrap();
        assert!(text.contains("--token-file") && text.contains("WEIR_TOKEN"), "{text}");
        assert!(!answer.to_string().contains(wrong));
    }
    host.logged("refuses the key").await;
    assert!(!host.log().contains(wrong), "{}", host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_had_set_is_set_again_after_a_restart() {
    let up = Scripted::start(&[tool("pay", false)], |a| match a.method() {
        "initialize" => Some(Reply::Json(a.result(&json!({"protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}, "logging": {}, "resources": {"subscribe": true}},
            "serverInfo": {"name": "up", "version": "1"}})))),
        "resources/list" => {
            Some(Reply::Json(a.result(&json!({"resources": [{"uri": "file:///a", "name": "a"}]}))))
        }
        "resources/subscribe" => Some(Reply::Json(a.result(&json!({})))),
        _ => None,
    })
    .await;
    let (port, section) = (free_port(), up.section("up", ""));
    let weir = Weir::start(&at(port), &section);
    weir.ready(&["up"]).await;
    let mut host = Host::start(&weir.url);
    host.hello("2025-11-25").await;
    let uri = json!({"uri": "up+file:///a"});
    let granted = host.ask(1, "resources/subscribe", uri).await;
    assert_eq!(granted["result"], json!({}), "{granted}");
    until("the subscription arrives", || up.asked("resources/subscribe") == 1).await;
    let weir = weir.again(&at(port), &section, &[]);
    weir.ready(&["up"]).await;
    let told = host.told("notifications/resources/updated").await;
    assert_eq!(told["params"]["uri"], "up+file:///a");
    until("the subscription arrives again", || up.asked("resources/subscribe") == 2).await;
}
