//! Whom a question reaches: its own caller, and nobody else.

use serde_json::{Value, json};

use crate::harness::{Weir, upstream};
use crate::{Old, asking, capabilities_of, everything, form, modern_call, text, weir};

/// A child that asks a form with the caller's word in it, and tells its process id and the answer.
fn child(dir: &tempfile::TempDir, more: &str) -> String {
    let script = r"
import json, os, sys
def out(x): sys.stdout.write(json.dumps(x) + '\n'); sys.stdout.flush()
def result(i, r): out({'jsonrpc': '2.0', 'id': i, 'result': r})
n = 0
pending = {}
caps = None
for line in sys.stdin:
    m = json.loads(line)
    k, i = m.get('method'), m.get('id')
    if k is None:
        call = pending.pop(i)
        result(call, {'content': [{'type': 'text', 'text': json.dumps([os.getpid(), m.get('result', m.get('error'))])}]})
    elif i is None: pass
    elif k == 'initialize':
        caps = m['params']['capabilities']
        result(i, {'protocolVersion': '2025-11-25', 'capabilities': {'tools': {}}, 'serverInfo': {'name': 'p', 'version': '1'}})
    elif k == 'tools/list': result(i, {'tools': [{'name': 'ask', 'inputSchema': {'type': 'object'}}, {'name': 'caps', 'inputSchema': {'type': 'object'}}]})
    elif k == 'tools/call' and m['params']['name'] == 'caps': result(i, {'content': [{'type': 'text', 'text': json.dumps([os.getpid(), caps])}]})
    elif k == 'tools/call':
        n += 1
        pending['q%d' % n] = i
        out({'jsonrpc': '2.0', 'id': 'q%d' % n, 'method': 'elicitation/create', 'params': {'message': m['params']['arguments']['word'], 'requestedSchema': {'type': 'object', 'properties': {}}}})
    else: out({'jsonrpc': '2.0', 'id': i, 'error': {'code': -32601, 'message': 'no'}})
";
    let path = dir.path().join("asks.py");
    std::fs::write(&path, script).unwrap();
    format!(
        "[upstreams.up]\ncommand = \"python3\"\nargs = [\"-u\", \"{}\"]\n{more}\n",
        path.display()
    )
}

fn echo(request: &Value) -> Option<Value> {
    Some(
        json!({"result": {"action": "accept", "content": {"heard": request["params"]["message"]}}}),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_child_may_not_ask_and_one_of_a_consumer_may() {
    let dir = tempfile::tempdir().unwrap();
    let weir = Weir::start("", &child(&dir, ""));
    weir.ready(&["up"]).await;
    let old = Old::open(&weir.url, None, "2025-11-25", &everything()).await;
    let seen = old.call("up__ask", json!({"word": "w"}), echo).await;
    let told = text(seen.last().unwrap());
    assert_eq!((seen.len(), &told[1]["code"]), (1, &json!(-32601)), "{seen:?}");
    let shared = told[0].clone();

    weir.rewrite("", &child(&dir, "isolation = \"consumer\""));
    weir.logged("configuration reloaded").await;
    let seen = old.call("up__ask", json!({"word": "w"}), echo).await;
    let told = text(seen.last().unwrap());
    assert_eq!(told[1], json!({"action": "accept", "content": {"heard": "w"}}), "{seen:?}");
    assert_ne!(told[0], shared, "a process of its own");
    // The same consumer again, in either era: the same process, if it can be asked the same.
    let asked =
        modern_call(&weir.url, None, &everything(), "up__ask", json!({"arguments": {"word": "v"}}))
            .await;
    let key = asked["result"]["inputRequests"].as_object().unwrap().keys().next().unwrap().clone();
    let params = json!({"arguments": {"word": "v"}, "requestState": asked["result"]["requestState"],
        "inputResponses": {key: {"action": "decline"}}});
    let done = modern_call(&weir.url, None, &everything(), "up__ask", params).await;
    assert_eq!(text(&done), json!([told[0], {"action": "decline"}]), "{done}");
    // Who can be asked nothing uses the shared one, which declares nothing.
    let plain = modern_call(&weir.url, None, &json!({}), "up__caps", json!({})).await;
    assert_eq!(text(&plain), json!([shared, {}]));
    let mut pids = vec![shared, told[0].clone()];
    assert_eq!(upstream(&weir.status().await, "up")["restarts"], 0);
    // All of them end with the upstream.
    weir.rewrite("", "");
    for pid in pids.drain(..) {
        let place = format!("/proc/{pid}");
        weir.until("gone", |_| !std::path::Path::new(&place).exists()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_are_each_asked_their_own_question() {
    let dir = tempfile::tempdir().unwrap();
    let up = asking().await;
    let toml = child(&dir, "isolation = \"session\"") + &up.section("http", "");
    let weir = Weir::start("", &toml);
    weir.ready(&["up", "http"]).await;
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..6 {
        let url = weir.url.clone();
        callers.spawn(async move {
            let old = Old::open(&url, None, "2025-11-25", &everything()).await;
            for round in 0..3 {
                let word = format!("{n}/{round}");
                let own = word.clone();
                let heard = |request: &Value| {
                    assert_eq!(request["params"]["message"], own.as_str());
                    echo(request)
                };
                let seen = old.call("up__ask", json!({"word": word}), heard).await;
                assert_eq!(text(seen.last().unwrap())[1]["content"]["heard"], word.as_str());
                let seen = old.call("http__ask", json!({"q": [form(&word)]}), heard).await;
                assert_eq!(text(seen.last().unwrap())[0]["content"]["heard"], word.as_str());
            }
        });
        let url = weir.url.clone();
        callers.spawn(async move {
            for round in 0..3 {
                let word = format!("modern {n}/{round}");
                let arguments = json!({"q": [form(&word)]});
                let asked = modern_call(&url, None, &everything(), "http__ask", json!({"arguments": arguments})).await;
                let requests = asked["result"]["inputRequests"].as_object().unwrap().clone();
                let (key, request) = requests.iter().next().unwrap();
                assert_eq!((requests.len(), request["params"]["message"].as_str().unwrap()), (1, word.as_str()));
                let params = json!({"arguments": arguments, "requestState": asked["result"]["requestState"],
                    "inputResponses": {key: {"action": "accept", "content": {"heard": word}}}});
                let done = modern_call(&url, None, &everything(), "http__ask", params).await;
                assert_eq!(text(&done)[0]["content"]["heard"], word.as_str());
            }
        });
    }
    while let Some(one) = callers.join_next().await {
        one.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_conversation_is_made_again() {
    let up = asking().await;
    let weir = weir(&up, "isolation = \"consumer\"").await;
    for revision in ["2025-06-18", "2025-11-25"] {
        let old = Old::open(&weir.url, None, revision, &json!({"elicitation": {}})).await;
        let seen = old.call("up__ask", json!({"q": [form("a")]}), echo).await;
        assert_eq!(text(seen.last().unwrap())[0]["content"]["heard"], "a");
    }
    assert_eq!(
        capabilities_of(&up.arrivals()).len(),
        2,
        "both can be asked the same: one conversation"
    );
    weir.rewrite("", &up.section("up", "isolation = \"shared\""));
    weir.logged("configuration reloaded").await;
    let old = Old::open(&weir.url, None, "2025-11-25", &everything()).await;
    let seen = old.call("up__ask", json!({"q": [form("a")]}), echo).await;
    assert_eq!(text(seen.last().unwrap())[0]["code"], -32601, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_of_one_call_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let weir = Weir::start("", &child(&dir, "isolation = \"session\""));
    weir.ready(&["up"]).await;
    let told = modern_call(&weir.url, None, &everything(), "up__caps", json!({})).await;
    let (pid, declared) = (text(&told)[0].clone(), text(&told)[1].clone());
    assert!(declared["elicitation"].is_object(), "{told}");
    let again = modern_call(&weir.url, None, &everything(), "up__caps", json!({})).await;
    assert_ne!(text(&again)[0], pid, "a process for each call");
    let place = format!("/proc/{pid}");
    let began = std::time::Instant::now();
    weir.until("gone", |_| !std::path::Path::new(&place).exists()).await;
    // Far sooner than idle conversations are looked at.
    assert!(began.elapsed() < std::time::Duration::from_secs(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_that_nobody_uses_rest_with_their_upstream() {
    let dir = tempfile::tempdir().unwrap();
    let weir = Weir::start("", &child(&dir, "isolation = \"session\"\nidle_stop = \"1s\""));
    weir.ready(&["up"]).await;
    let old = Old::open(&weir.url, None, "2025-11-25", &everything()).await;
    let mut before = Vec::new();
    for _ in 0..2 {
        let seen = old.call("up__ask", json!({"word": "w"}), echo).await;
        let told = text(seen.last().unwrap());
        assert_eq!(told[1]["content"], json!({"heard": "w"}), "{seen:?}");
        let plain = modern_call(&weir.url, None, &json!({}), "up__caps", json!({})).await;
        let pids = [text(&plain)[0].clone(), told[0].clone()];
        assert_ne!(pids[0], pids[1], "its own and the shared one");
        assert!(pids.iter().all(|pid| !before.contains(pid)), "both are new: {pids:?} {before:?}");
        weir.until("idle", |s| upstream(s, "up")["state"] == "idle").await;
        for pid in &pids {
            let place = format!("/proc/{pid}");
            weir.until("its end", |_| !std::path::Path::new(&place).exists()).await;
        }
        before.extend(pids);
    }
    assert_eq!(upstream(&weir.status().await, "up")["restarts"], 0);
}
