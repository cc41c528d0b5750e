//! Upstreams that number their tasks anew in each process, and tasks whose upstream goes away:
//! nothing crosses, and nothing is done twice.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, reason};
use crate::{extended, modern_call, modern_task, weir};

/// A child whose every call becomes the task `1` of its process, which asks a form with the
/// caller's word in it.
fn child(dir: &tempfile::TempDir) -> String {
    let script = r"
import json, sys
def out(x): sys.stdout.write(json.dumps(x) + '\n'); sys.stdout.flush()
def result(i, r): out({'jsonrpc': '2.0', 'id': i, 'result': r})
word, waiting, heard = None, None, None
for line in sys.stdin:
    m = json.loads(line)
    k, i, p = m.get('method'), m.get('id'), m.get('params', {})
    state = 'completed' if heard is not None else 'input_required'
    if k is None:
        heard = m.get('result', m.get('error'))
        result(waiting, {'content': [{'type': 'text', 'text': json.dumps([word, heard])}]})
    elif i is None: pass
    elif k == 'initialize': result(i, {'protocolVersion': '2025-11-25', 'capabilities': {'tools': {}, 'tasks': {'cancel': {}, 'requests': {'tools': {'call': {}}}}}, 'serverInfo': {'name': 'p', 'version': '1'}})
    elif k == 'tools/list': result(i, {'tools': [{'name': 'ask', 'inputSchema': {'type': 'object'}, 'execution': {'taskSupport': 'required'}}]})
    elif k == 'tools/call':
        word = p['arguments']['word']
        result(i, {'task': {'taskId': '1', 'status': 'working', 'ttl': None}})
    elif k == 'tasks/get': result(i, {'taskId': '1', 'status': state, 'ttl': None})
    elif k == 'tasks/result' and heard is not None: result(i, {'content': [{'type': 'text', 'text': json.dumps([word, heard])}]})
    elif k == 'tasks/result':
        waiting = i
        out({'jsonrpc': '2.0', 'id': 'q', 'method': 'elicitation/create', 'params': {'message': word, 'requestedSchema': {'type': 'object', 'properties': {}}, '_meta': {'io.modelcontextprotocol/related-task': {'taskId': '1'}}}})
    else: out({'jsonrpc': '2.0', 'id': i, 'error': {'code': -32601, 'message': 'no'}})
";
    let path = dir.path().join("one.py");
    std::fs::write(&path, script).unwrap();
    let script = path.display();
    format!(
        "[upstreams.up]\ncommand = \"python3\"\nargs = [\"-u\", \"{script}\"]\nisolation = \"consumer\"\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_the_same_id_are_not_each_other_s() {
    let dir = tempfile::tempdir().unwrap();
    let keys = [("a", "key-of-a"), ("b", "key-of-b")];
    let mut toml = child(&dir);
    for (name, key) in keys {
        write!(toml, "\n[consumers.{name}]\nkey = \"sha256:").unwrap();
        for byte in <sha2::Sha256 as sha2::Digest>::digest(key.as_bytes()) {
            write!(toml, "{byte:02x}").unwrap();
        }
        toml.push_str("\"\n");
    }
    let weir = Weir::start("", &toml);
    weir.ready(&["up"]).await;
    let mut ids = Vec::new();
    for (name, key) in keys {
        let arguments = json!({"arguments": {"word": name}});
        let made = modern_call(&weir.url, Some(key), &extended(), "up__ask", arguments).await;
        ids.push(made["result"]["taskId"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned());
    }
    let get = async |n: usize| -> Value {
        modern_task(&weir.url, Some(keys[n].1), "tasks/get", &ids[n]).await["result"].clone()
    };
    // Each reads the question of its own, also while the other's is open.
    let mut asked = Vec::new();
    for (n, (name, _)) in keys.iter().enumerate() {
        let task = get(n).await;
        let requests = task["inputRequests"].as_object().unwrap_or_else(|| panic!("{task}"));
        let (key, request) = requests.iter().next().unwrap();
        assert_eq!((requests.len(), &request["params"]["message"]), (1, &json!(name)), "{task}");
        asked.push(key.clone());
    }
    assert_ne!(asked[0], asked[1]);
    // Nobody answers another's.
    let update = async |n: usize, key: &str| {
        let meta = json!({"io.modelcontextprotocol/clientCapabilities": extended()});
        let responses = json!({key: {"action": "accept", "content": {"by": keys[n].0}}});
        let params = json!({"taskId": ids[n], "inputResponses": responses, "_meta": meta});
        crate::harness::modern(&weir.url, Some(keys[n].1), "tasks/update", params).await.answer()
    };
    update(1, &asked[0]).await;
    assert_eq!(get(0).await["status"], "input_required");
    for (n, (name, _)) in keys.iter().enumerate() {
        assert_eq!(update(n, &asked[n]).await["result"]["resultType"], "complete");
        let done = get(n).await;
        let text =
            done["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{done}"));
        let told: Value = serde_json::from_str(text).unwrap();
        assert_eq!((&told[0], &told[1]["content"]["by"]), (&json!(name), &json!(name)), "{done}");
    }
    // And what nobody asked is told so.
    let late = update(0, &asked[0]).await;
    assert_eq!(late["error"]["code"], -32602, "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_became_a_task_is_not_made_again_when_its_upstream_goes() {
    let mut long = tool("long", false);
    long["execution"] = json!({"taskSupport": "required"});
    let up = Scripted::start(&[long], |a| {
        let json = |result: &Value| Some(Reply::Json(a.result(result)));
        match a.method() {
            "initialize" => {
                let capabilities = json!({"tools": {}, "tasks": {"cancel": {}, "requests": {"tools": {"call": {}}}}});
                let result = json!({"protocolVersion": "2025-11-25", "capabilities": capabilities, "serverInfo": {"name": "t", "version": "1"}});
                let headers = vec![("content-type", "application/json".into()), ("mcp-session-id", "s".into())];
                Some(Reply::Http(200, headers, a.result(&result)))
            }
            "tools/call" => json(&json!({"task": {"taskId": "t", "status": "working", "pollInterval": 10}})),
            // The session is gone: nothing of this request was done.
            "tasks/get" => Some(Reply::Http(404, vec![], String::new())),
            _ => None,
        }
    })
    .await;
    let weir = weir(&up, "").await;
    let told = modern_call(&weir.url, None, &json!({}), "up__long", json!({"arguments": {}})).await;
    assert_eq!(up.arrived("long"), 1, "{told}");
    assert!(told.to_string().contains("unknown"), "{told}");
    assert!(!reason(&told).is_empty(), "{told}");

    // What only looks like a task is a result like any other.
    let up = Scripted::start(&[tool("plain", false)], |a| {
        let result = json!({"content": [], "task": {"taskId": "JIRA-1", "status": "working"}});
        (a.tool()? == "plain").then(|| Reply::Json(a.result(&result)))
    })
    .await;
    let weir = crate::weir(&up, "").await;
    let said = modern_call(&weir.url, None, &extended(), "up__plain", json!({})).await;
    assert_eq!(said["result"]["task"]["taskId"], "JIRA-1", "{said}");
}
