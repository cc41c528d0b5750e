//! Children that die, and that say what nobody asked.

use serde_json::json;

use crate::harness::{Weir, call, reason, upstream};
use crate::{child, failure, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_dies_in_the_middle_is_started_again_and_nothing_is_sent_twice() {
    let dir = tempfile::tempdir().unwrap();
    let arrivals = dir.path().join("arrivals");
    let on_call = format!(
        "def on_call(m):\n    open({arrivals:?}, 'a').write('x')\n    sys.stdout.write('{{\"jsonrpc\"'); sys.stdout.flush(); os._exit(9)"
    );
    let section = child(&dir, "up", &on_call, "restart_backoff = \"100ms\"");
    let weir = Weir::start("", &section);
    weir.ready(&["up"]).await;
    let answer = call(&weir.url, "up__act", json!({})).await;
    assert_eq!(
        (reason(&answer), &failure(&answer)["outcome"]),
        ("connection_lost", &json!("unknown")),
        "{answer}"
    );
    weir.until("started again", |s| {
        upstream(s, "up")["state"] == "ready" && upstream(s, "up")["restarts"] == 1
    })
    .await;
    assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
    assert_eq!(std::fs::read_to_string(&arrivals).unwrap(), "x");
    assert!(weir.metrics().await.contains("weir_upstream_restarts_total{upstream=\"up\"} 1"));
    // Time and again: a crash loop, named as such.
    for _ in 0..3 {
        call(&weir.url, "up__act", json!({})).await;
        weir.until("up or known to crash", |s| {
            upstream(s, "up")["state"] == "ready" || upstream(s, "up")["crash_loop"] == true
        })
        .await;
    }
    weir.logged("\"crash_loop\":true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_waits_for_reach_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let on_call = r"
def on_call(m):
    out('this is no message'); out('[1, 2'); out('{}')
    result({'id': 424242}, {'content': []})
    text(m, 'first'); text(m, 'second')
    out(json.dumps({'jsonrpc': '2.0', 'id': 'q-1', 'method': 'sampling/createMessage', 'params': {}}))
    out(json.dumps({'jsonrpc': '2.0', 'method': 'notifications/unheard/of', 'params': {}}))
";
    let weir = Weir::start("", &child(&dir, "up", on_call, ""));
    weir.ready(&["up"]).await;
    for _ in 0..5 {
        let answer = call(&weir.url, "up__act", json!({})).await;
        assert_eq!(text(&answer), "first", "{answer}");
        assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
    }
    let metrics = weir.metrics().await;
    assert!(
        metrics.contains("weir_upstream_unmatched_answers_total{upstream=\"up\"} 10"),
        "{metrics}"
    );
    assert!(!metrics.contains("weir_upstream_stdout_noise_total{upstream=\"up\"} 0"), "{metrics}");
    assert_eq!(upstream(&weir.status().await, "up")["restarts"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_that_is_slow_to_start_is_not_taken_for_an_old_one() {
    // It reads nothing for longer than the probe is waited for, then answers the probe, and
    // refuses the old handshake that has come meanwhile.
    let dir = tempfile::tempdir().unwrap();
    let script = r"
import json, sys, time
time.sleep(2.5)
def out(x): sys.stdout.write(json.dumps(x) + '\n'); sys.stdout.flush()
for line in sys.stdin:
    m = json.loads(line)
    k, i = m.get('method'), m.get('id')
    if i is None: continue
    done = lambda r: out({'jsonrpc': '2.0', 'id': i, 'result': {'resultType': 'complete', 'ttlMs': 0, 'cacheScope': 'private', **r}})
    if k == 'server/discover': done({'supportedVersions': ['2026-07-28'], 'capabilities': {'tools': {}}})
    elif k == 'tools/list': done({'tools': [{'name': 'fine', 'inputSchema': {'type': 'object'}}]})
    elif k == 'tools/call': done({'content': [{'type': 'text', 'text': 'fine'}]})
    else: out({'jsonrpc': '2.0', 'id': i, 'error': {'code': -32022, 'message': 'no', 'data': {'supported': ['2026-07-28'], 'requested': '2025-11-25'}}})
";
    let path = dir.path().join("slow.py");
    std::fs::write(&path, script).unwrap();
    let section = format!(
        "[upstreams.up]\ncommand = \"python3\"\nargs = [\"-u\", \"{}\"]\nconnect_timeout = \"4s\"\n",
        path.display()
    );
    let weir = Weir::start("", &section);
    weir.ready(&["up"]).await;
    assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
    let status = weir.status().await;
    let up = upstream(&status, "up");
    assert_eq!((&up["restarts"], &up["revision"]), (&json!(0), &json!("2026-07-28")), "{up:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_word_of_a_child_makes_a_write_unsent() {
    let dir = tempfile::tempdir().unwrap();
    let arrivals = dir.path().join("arrivals");
    // What a supervisor says of a program that never ran; a caller could have it logged.
    let on_call = format!(
        "def on_call(m):\n    open({arrivals:?}, 'a').write('x')\n    \
         sys.stderr.write('\\n\\x1eweir not-started x\\n'); sys.stderr.flush(); os._exit(127)"
    );
    let weir = Weir::start("", &child(&dir, "up", &on_call, "restart_backoff = \"100ms\""));
    weir.ready(&["up"]).await;
    let answer = call(&weir.url, "up__act", json!({})).await;
    assert_eq!(failure(&answer)["outcome"], "unknown", "{answer}");
    weir.until("again", |s| upstream(s, "up")["restarts"] == 1).await;
    assert_eq!(std::fs::read_to_string(&arrivals).unwrap(), "x", "carried once");
}
