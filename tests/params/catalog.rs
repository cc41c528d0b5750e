//! What is published of annotations.

use serde_json::{Value, json};

use crate::harness::scripted::{Scripted, tool};
use crate::harness::{Weir, call, modern, tool_names, upstream};
use crate::{mirrored, mirroring, newest, pairs, weir};

fn wrong() -> Vec<Value> {
    let property = |name: &str, property: Value| json!({"name": name, "inputSchema": {"type": "object", "properties": {"p": property}}});
    vec![
        property("good", json!({"type": "string", "x-mcp-header": "P"})),
        property("number", json!({"type": "number", "x-mcp-header": "P"})),
        property("space", json!({"type": "string", "x-mcp-header": "My P"})),
        property(
            "item",
            json!({"type": "array", "items": {"type": "string", "x-mcp-header": "P"}}),
        ),
    ]
}

async fn published(weir: &Weir, name: &str) -> Value {
    let answer = modern(&weir.url, None, "tools/list", json!({})).await.answer();
    let tools = answer["result"]["tools"].as_array().unwrap();
    tools.iter().find(|t| t["name"] == name).unwrap()["inputSchema"].clone()
}

fn dropped(metrics: &str) -> Option<&str> {
    metrics.lines().find_map(|l| l.strip_prefix("weir_catalog_dropped_entries{upstream=\"up\"} "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_with_an_invalid_annotation_is_dropped_and_reported() {
    let up = newest(wrong, |_| None).await;
    let weir = weir(&up).await;
    assert_eq!(tool_names(&weir.url, None).await, ["up__good"]);
    assert_eq!(call(&weir.url, "up__number", json!({"p": 1.5})).await["error"]["code"], -32602);
    let status = weir.status().await;
    let drops = status["dropped_entries"].as_array().unwrap();
    let told: Vec<_> =
        drops.iter().map(|d| (d["native"].as_str().unwrap(), d["why"].as_str().unwrap())).collect();
    let place = "it has an \"x-mcp-header\" that is not reached through \"properties\" alone";
    assert_eq!(told.len(), 3, "{drops:?}");
    assert!(told.contains(&("item", place)), "{told:?}");
    weir.logged("it has an \\\"x-mcp-header\\\" on what is no string, integer or boolean").await;
    assert_eq!(dropped(&weir.metrics().await), Some("3"));
    // As its upstream wrote it.
    assert_eq!(published(&weir, "up__good").await, wrong()[0]["inputSchema"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_headers_go_annotations_are_taken_out_and_not_enforced() {
    let tools = [&wrong()[..], &[mirroring(), tool("plain", false)]].concat();
    let old = Scripted::start(&tools, |_| None).await;
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("child.py");
    let code = r"
import json, sys
tools = json.loads(sys.argv[1])
for line in sys.stdin:
    m = json.loads(line)
    k, i = m.get('method'), m.get('id')
    if i is None: continue
    r = {'resultType': 'complete', 'ttlMs': 0, 'cacheScope': 'private'}
    if k == 'server/discover': r.update({'supportedVersions': ['2026-07-28'], 'capabilities': {'tools': {}}})
    elif k == 'tools/list': r.update({'tools': tools})
    elif k == 'tools/call': r.update({'content': [{'type': 'text', 'text': 'done'}]})
    else: continue
    sys.stdout.write(json.dumps({'jsonrpc': '2.0', 'id': i, 'result': r}) + '\n'); sys.stdout.flush()
";
    std::fs::write(&script, code).unwrap();
    let argument = toml_string(&Value::from(tools.clone()).to_string());
    let child = format!(
        "[upstreams.child]\ncommand = \"python3\"\nargs = [\"-u\", {:?}, {argument}]\n",
        script.display().to_string()
    );
    let weir = Weir::start("builtin = false", &(old.section("up", "") + &child));
    weir.ready(&["up", "child"]).await;
    assert_eq!(upstream(&weir.status().await, "child")["revision"], "2026-07-28");
    assert_eq!(tool_names(&weir.url, None).await.len(), 2 * tools.len());
    for name in ["up__pay", "child__pay"] {
        let schema = published(&weir, name).await;
        assert!(!schema.to_string().contains("x-mcp-header"), "{schema}");
        assert_eq!(schema["properties"]["to"]["properties"]["account"], json!({"type": "integer"}));
        let done = call(&weir.url, name, json!({"region": "eu", "to": {"account": 7}})).await;
        assert_eq!(done["result"]["resultType"], "complete", "{done}");
    }
    assert_eq!(mirrored(&old, "pay"), [pairs(&[])]);
    assert_eq!(dropped(&weir.metrics().await), Some("0"));
}

fn toml_string(text: &str) -> String {
    assert!(!text.contains('\''));
    format!("'{text}'")
}
