//! Sessions outlive the process that began them.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::scripted::Scripted;
use crate::harness::{Weir, post};
use crate::{Old, asking, form, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_after_a_crash() {
    let up = asking().await;
    let toml = up.section("up", "");
    let weir = Weir::start("", &toml);
    weir.ready(&["up"]).await;
    let mut old = Old::open(&weir.url, None, "2025-06-18", &json!({"elicitation": {}})).await;
    let ended = Old::open(&weir.url, None, "2025-06-18", &json!({})).await;
    let delete = |url: String, id: String| async move {
        let raw = format!(
            "DELETE /mcp HTTP/1.1\r\nhost: localhost\r\nmcp-session-id: {id}\r\nconnection: close\r\n\r\n"
        );
        let address = url.trim_start_matches("http://").trim_end_matches("/mcp").to_owned();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(raw.as_bytes()).await.unwrap();
        let mut out = String::new();
        let _ = stream.read_to_string(&mut out).await;
        out[9..12].parse::<u16>().unwrap()
    };
    assert_eq!(delete(weir.url.clone(), ended.session.clone()).await, 204);
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    assert_eq!(ended.post(&list).await.status, 404, "ended is ended");

    let weir = weir.again("", &toml, &[]);
    old.url.clone_from(&weir.url);
    // At once, and with what was agreed: the revision, and that it can be asked.
    let got = old.post(&list).await;
    assert_eq!(got.status, 200, "{}", got.body);
    weir.ready(&["up"]).await;
    let seen = old
        .call("up__ask", json!({"q": [form("still there?")]}), |_| {
            Some(json!({"result": {"action": "decline"}}))
        })
        .await;
    assert_eq!(text(seen.last().unwrap()), json!([{"action": "decline"}]));
    let batch = json!([{"jsonrpc": "2.0", "id": 1, "method": "ping"}]);
    assert_eq!(old.post(&batch).await.status, 400, "2025-06-18 has no batches");
    // A forged id opens nothing.
    let mut forged = old.session.clone().into_bytes();
    forged[30] = if forged[30] == b'x' { b'y' } else { b'x' };
    let forged = String::from_utf8(forged).unwrap();
    let got = post(&weir.url, &[("mcp-session-id", &forged)], list.to_string()).await;
    assert_eq!(got.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_with_the_same_sealing_key_stand_for_one_another() {
    let up = Scripted::fine(&["a"]).await;
    let line = "sealing_key = \"${THE_KEY}\"";
    let start =
        |key: &'static str| Weir::start_with(line, &up.section("up", ""), &[("THE_KEY", key)]);
    let (one, two) =
        (start("0123456789012345678901234567890"), start("0123456789012345678901234567890"));
    let other = start("another-key-another-key-another-key");
    let old = Old::open(&one.url, None, "2025-11-25", &json!({})).await;
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let at = |url: String| {
        let (session, list) = (old.session.clone(), list.to_string());
        async move { post(&url, &[("mcp-session-id", &session)], list).await.status }
    };
    assert_eq!(
        (at(one.url.clone()).await, at(two.url.clone()).await, at(other.url.clone()).await),
        (200, 200, 404)
    );
    for weir in [&one, &two, &other] {
        assert!(!weir.log().contains("0123456789") && !weir.log().contains("another-key"));
        assert!(!std::fs::exists(weir.dir.path().join("state/sealing.key")).unwrap());
    }
}
