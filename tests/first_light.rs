//! The main job, seen from outside: real servers behind one endpoint, both eras, a reload.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use harness::{Weir, call, modern, peers, post, reason, tool_names, upstream};
use serde_json::{Value, json};

fn node(name: &str, script: &str, more: &str) -> String {
    let path = peers().join("servers/node_modules").join(script);
    format!("[upstreams.{name}]\ncommand = \"node\"\n{more}\nargs = [{:?}, ", path.display())
}

fn time() -> String {
    let python = peers().join("py2/bin/python");
    format!(
        "[upstreams.time]\ncommand = {:?}\nargs = [\"-m\", \"mcp_server_time\"]\nconnect_timeout = \"40s\"\n",
        python.display()
    )
}

fn everything() -> String {
    node("everything", "@modelcontextprotocol/server-everything/dist/index.js", "") + "\"stdio\"]\n"
}

fn vendors() -> String {
    let home = std::env::temp_dir();
    [
        node("hubspot", "@hubspot/mcp-server/dist/index.js", "env = { PRIVATE_APP_ACCESS_TOKEN = \"pat-dummy-token\" }") + "]\n",
        node("firebase", "firebase-tools/lib/bin/firebase.js",
            &format!("env = {{ METADATA_SERVER_DETECTION = \"none\", HOME = {:?} }}\nconnect_timeout = \"60s\"\nlist_timeout = \"60s\"", home.display()))
            + "\"mcp\", \"--only\", \"core\"]\n",
        node("calcom", "@calcom/cal-mcp/dist/index.js", "env = { CAL_API_KEY = \"cal_dummy_secret_key\" }") + "]\n",
        node("retell", "@abhaybabbar/retellai-mcp-server/build/index.js", "env = { RETELL_API_KEY = \"key_dummy\" }") + "]\n",
        node("stripe", "@stripe/mcp/dist/index.js", "env = { STRIPE_SECRET_KEY = \"rk_test_dummy\" }") + "\"--tools=all\"]\n",
    ]
    .concat()
}

fn said(answer: &Value) -> String {
    answer["result"]["content"][0]["text"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn real_servers_stand_behind_one_endpoint() {
    let weir = Weir::start("", &(vendors() + &everything() + &time()));
    let all = ["hubspot", "firebase", "calcom", "retell", "stripe", "everything", "time"];
    weir.ready(&all).await;

    let names = tool_names(&weir.url, None).await;
    let of = |u: &str| names.iter().filter(|n| n.starts_with(&format!("{u}__"))).count();
    let counts: Vec<usize> = all.iter().map(|u| of(u)).collect();
    assert_eq!(counts, [21, 17, 9, 24, 22, 13, 2]);
    assert!(names.iter().all(|n| n.len() <= 64));

    // Each call reaches its own upstream and comes back in that vendor's own words.
    let link = json!({"portalId": "1", "uiDomain": "app.hubspot.com",
        "pageRequests": [{"pagetype": "index", "objectTypeId": "0-1"}]});
    let answer = call(&weir.url, "hubspot__hubspot-get-link", link).await;
    assert!(said(&answer).contains("https://app.hubspot.com/contacts/1/objects/0-1"), "{answer}");
    let answer = call(&weir.url, "firebase__firebase_get_environment", json!({})).await;
    assert!(said(&answer).contains("Environment"), "{answer}");
    let answer = call(&weir.url, "calcom__getBookings", json!({})).await;
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    let answer = call(&weir.url, "retell__list_agents", json!({})).await;
    assert!(said(&answer).contains("Error"), "{answer}");
    let answer = call(&weir.url, "stripe__retrieve_balance", json!({})).await;
    assert!(said(&answer).contains("Failed to retrieve balance"), "{answer}");
    let answer = call(&weir.url, "everything__get-sum", json!({"a": 2, "b": 3})).await;
    assert_eq!(said(&answer), "The sum of 2 and 3 is 5.");
    let answer = call(&weir.url, "time__get_current_time", json!({"timezone": "UTC"})).await;
    assert!(answer["result"]["structuredContent"]["datetime"].is_string(), "{answer}");

    // Cal.com's server prints its key on stderr with every failed call.
    weir.logged("calcom").await;
    assert!(!weir.log().contains("cal_dummy_secret_key"));
    let metrics = weir.metrics().await;
    assert!(metrics.contains("weir_tool_call_duration_seconds_count{tool=\"time__get_current_time\",upstream=\"time\"} 1")
        || metrics.contains("upstream=\"time\",tool=\"time__get_current_time\""), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_adds_and_removes_and_keeps_the_rest() {
    let weir = Weir::start("", &(everything() + &time()));
    weir.ready(&["everything", "time"]).await;
    let since = upstream(&weir.status().await, "time")["since"].clone();

    weir.rewrite("", &time());
    weir.until("everything is gone", |s| upstream(s, "everything").is_null()).await;
    assert!(tool_names(&weir.url, None).await.iter().all(|n| !n.starts_with("everything__")));
    let gone = call(&weir.url, "everything__echo", json!({"message": "hi"})).await;
    assert_eq!((reason(&gone), &gone["error"]["code"]), ("unknown_name", &json!(-32602)));
    assert_eq!(upstream(&weir.status().await, "time")["since"], since, "time was not touched");

    weir.rewrite("", "[upstreams.Bad]\n");
    weir.logged("the new configuration is refused").await;
    assert!(weir.log().contains("is no upstream name"));
    let answer = call(&weir.url, "time__get_current_time", json!({"timezone": "UTC"})).await;
    assert!(answer["result"]["structuredContent"].is_object(), "{answer}");

    weir.rewrite("", &(everything() + &time()));
    weir.ready(&["everything", "time"]).await;
    let answer = call(&weir.url, "everything__echo", json!({"message": "hi"})).await;
    assert_eq!(said(&answer), "Echo: hi");
    assert!(weir.metrics().await.contains("weir_config_last_reload_successful 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_client_has_its_session_over_either_kind_of_upstream() {
    let weir = Weir::start("", &(everything() + &time()));
    weir.ready(&["everything", "time"]).await;
    for version in ["2025-03-26", "2025-06-18", "2025-11-25"] {
        let hello = json!({"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": {
            "protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}}});
        let got = post(&weir.url, &[], hello.to_string()).await;
        assert_eq!(
            (got.status, &got.answer()["result"]["protocolVersion"]),
            (200, &json!(version))
        );
        let session = got.headers["mcp-session-id"].to_str().unwrap().to_owned();
        let headers = [("mcp-session-id", session.as_str()), ("mcp-protocol-version", version)];
        let done = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        let got = post(&weir.url, &headers, done.to_string()).await;
        assert_eq!((got.status, got.body.as_str()), (202, ""));
        for (name, arguments) in [
            ("time__get_current_time", json!({"timezone": "UTC"})),
            ("everything__echo", json!({"message": "hi"})),
        ] {
            let request = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call",
                "params": {"name": name, "arguments": arguments}});
            let answer = post(&weir.url, &headers, request.to_string()).await.answer();
            assert!(answer["result"]["content"][0]["text"].is_string(), "{answer}");
            assert!(answer["result"].get("resultType").is_none(), "{answer}");
        }
        let read = json!({"jsonrpc": "2.0", "id": 8, "method": "resources/list"});
        let listed = post(&weir.url, &headers, read.to_string()).await.answer();
        let uri = listed["result"]["resources"][0]["uri"].as_str().unwrap().to_owned();
        assert!(uri.starts_with("everything+"), "{uri}");
        let read =
            json!({"jsonrpc": "2.0", "id": 9, "method": "resources/read", "params": {"uri": uri}});
        let answer = post(&weir.url, &headers, read.to_string()).await.answer();
        assert_eq!(answer["result"]["contents"][0]["uri"], json!(uri), "{answer}");
    }
    // The same as a modern client.
    let prompts = modern(&weir.url, None, "prompts/list", json!({})).await.answer();
    assert_eq!(prompts["result"]["resultType"], "complete");
    assert!(prompts["result"]["prompts"].as_array().unwrap().len() == 4, "{prompts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_progress_stream_reaches_the_caller_with_its_own_token() {
    let weir = Weir::start("", &everything());
    weir.ready(&["everything"]).await;
    let params = json!({"name": "everything__trigger-long-running-operation",
        "arguments": {"duration": 1, "steps": 3}, "_meta": {"progressToken": "tok-1"}});
    let got = modern(&weir.url, None, "tools/call", params).await;
    let messages = got.messages();
    let progress: Vec<_> =
        messages.iter().filter(|m| m["method"] == "notifications/progress").collect();
    assert!(!progress.is_empty(), "{}", got.body);
    assert!(progress.iter().all(|m| m["params"]["progressToken"] == "tok-1"), "{}", got.body);
    assert!(messages.last().unwrap()["result"]["content"].is_array(), "{}", got.body);
}
