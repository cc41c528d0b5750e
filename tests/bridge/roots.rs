//! Changes of a client's roots: which conversations hear of them, and who is asked then.

use serde_json::{Value, json};

use crate::harness::Weir;
use crate::subscriptions::get;
use crate::{Old, text};

/// A child that asks for the roots whenever they change, outside of any call, and tells what it
/// knows: the roots, how often they changed, what was declared.
fn child(dir: &tempfile::TempDir, isolation: &str) -> String {
    let script = r"
import json, sys
def out(x): sys.stdout.write(json.dumps(x) + '\n'); sys.stdout.flush()
def result(i, r): out({'jsonrpc': '2.0', 'id': i, 'result': r})
roots, changes, caps = None, 0, None
for line in sys.stdin:
    m = json.loads(line)
    k, i = m.get('method'), m.get('id')
    if k is None: roots = m.get('result', m.get('error'))
    elif k == 'notifications/roots/list_changed':
        changes += 1
        out({'jsonrpc': '2.0', 'id': 'r%d' % changes, 'method': 'roots/list'})
    elif i is None: pass
    elif k == 'initialize':
        caps = m['params']['capabilities']
        result(i, {'protocolVersion': '2025-11-25', 'capabilities': {'tools': {}}, 'serverInfo': {'name': 'p', 'version': '1'}})
    elif k == 'tools/list': result(i, {'tools': [{'name': 'known', 'inputSchema': {'type': 'object'}}]})
    elif k == 'tools/call': result(i, {'content': [{'type': 'text', 'text': json.dumps({'roots': roots, 'changes': changes, 'caps': caps})}]})
    else: out({'jsonrpc': '2.0', 'id': i, 'error': {'code': -32601, 'message': 'no'}})
";
    let path = dir.path().join("roots.py");
    std::fs::write(&path, script).unwrap();
    format!(
        "[upstreams.up]\ncommand = \"python3\"\nargs = [\"-u\", \"{}\"]\nisolation = \"{isolation}\"\n",
        path.display()
    )
}

fn changed() -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/roots/list_changed"})
}

async fn known(old: &Old) -> Value {
    text(old.call("up__known", json!({}), |_| None).await.last().unwrap())
}

async fn until(old: &Old, what: impl Fn(&Value) -> bool) -> Value {
    let end = std::time::Instant::now() + crate::harness::PATIENCE;
    loop {
        let now = known(old).await;
        if what(&now) {
            return now;
        }
        assert!(std::time::Instant::now() < end, "{now}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_s_own_conversation_asks_its_client_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let weir = Weir::start("", &child(&dir, "session"));
    weir.ready(&["up"]).await;
    let declared = json!({"roots": {"listChanged": true}});
    let one = Old::open(&weir.url, None, "2025-11-25", &declared).await;
    let two = Old::open(&weir.url, None, "2025-06-18", &declared).await;
    let silent = Old::open(&weir.url, None, "2025-06-18", &json!({"roots": {}})).await;
    for old in [&one, &two] {
        assert_eq!(known(old).await["caps"], declared);
    }
    assert_eq!(known(&silent).await["caps"], json!({"roots": {}}));

    // Each hears its own question, on its own stream.
    for (old, root) in [(&one, "file:///one"), (&two, "file:///two")] {
        let mut stream = get(&weir, old).await;
        assert_eq!(old.post(&changed()).await.status, 202);
        let question = loop {
            let message = stream.recv().await.unwrap();
            if message["method"] == "roots/list" {
                break message;
            }
        };
        let answer =
            json!({"jsonrpc": "2.0", "id": question["id"], "result": {"roots": [{"uri": root}]}});
        assert_eq!(old.post(&answer).await.status, 202);
        until(old, |known| known["roots"]["roots"][0]["uri"] == root).await;
    }
    assert_eq!(known(&one).await["roots"]["roots"][0]["uri"], "file:///one");
    assert_eq!(known(&one).await["changes"], 1);
    // Who did not declare that it would say so is not believed to have.
    assert_eq!(silent.post(&changed()).await.status, 202);
    assert_eq!(known(&silent).await["changes"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_s_conversation_hears_of_the_change_and_asks_in_the_next_call() {
    let dir = tempfile::tempdir().unwrap();
    let weir = Weir::start("", &child(&dir, "consumer"));
    weir.ready(&["up"]).await;
    let old =
        Old::open(&weir.url, None, "2025-11-25", &json!({"roots": {"listChanged": true}})).await;
    known(&old).await;
    let mut stream = get(&weir, &old).await;
    assert_eq!(old.post(&changed()).await.status, 202);
    // The question belongs to no call and could be another session's: it is refused. One that
    // comes in the middle of a call ends with it.
    let now = until(&old, |known| known["changes"] == 1 && !known["roots"].is_null()).await;
    assert!([json!(-32601), json!(-32603)].contains(&now["roots"]["code"]), "{now}");
    assert!(stream.try_recv().is_err());
}
