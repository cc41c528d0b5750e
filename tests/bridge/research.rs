//! Tasks of a real server of 2025-11-25: `simulate-research-query` of server-everything runs in no
//! other way, and asks a form in the middle if its query is ambiguous.

use serde_json::{Value, json};

use crate::harness::{Program, Weir, free_port, peers};
use crate::{Old, extended, modern_call, modern_task};

const TOOL: &str = "ev__simulate-research-query";
const RELATED: &str = "io.modelcontextprotocol/related-task";

async fn over_http() -> (Program, Weir) {
    let port = free_port();
    let server = Program::everything("streamableHttp", port);
    let weir = Weir::start("", &format!("[upstreams.ev]\nurl = \"http://127.0.0.1:{port}/mcp\"\n"));
    weir.ready(&["ev"]).await;
    (server, weir)
}

fn pipe_section() -> String {
    let servers = peers().join("servers");
    let main = servers.join("node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    let section = "[upstreams.ev]\ncommand = \"node\"\nisolation = \"session\"\n";
    format!("{section}args = [{:?}, \"stdio\"]\n", main.display())
}

async fn over_a_pipe() -> Weir {
    let weir = Weir::start("", &pipe_section());
    weir.ready(&["ev"]).await;
    weir
}

// Nothing else: the server asks for roots when it likes.
fn forms() -> Value {
    json!({"elicitation": {"form": {}}})
}

fn snake(request: &Value) -> Option<Value> {
    assert_eq!(request["method"], "elicitation/create", "{request}");
    Some(json!({"result": {"action": "accept", "content": {"interpretation": "snake"}}}))
}

fn ambiguous() -> Value {
    json!({"topic": "python", "ambiguous": true})
}

fn report(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{result}"))
}

// One of the same revision: asks for a task, looks after it, fetches the result, gives one up.
async fn by_its_own_dialect(weir: &Weir) {
    let old = Old::open(&weir.url, None, "2025-11-25", &forms()).await;
    let tools = old.ask("tools/list", json!({})).await;
    let listed = tools["result"]["tools"].as_array().unwrap().iter().find(|t| t["name"] == TOOL);
    assert_eq!(listed.unwrap()["execution"]["taskSupport"], "required");
    let call = json!({"name": TOOL, "arguments": ambiguous(), "task": {"ttl": 60_000}});
    let made = old.ask("tools/call", call.clone()).await;
    let task = &made["result"]["task"];
    assert_eq!(task["status"], "working", "{made}");
    let id = task["taskId"].as_str().unwrap().to_owned();
    let got = old.ask("tasks/get", json!({"taskId": id})).await;
    assert_eq!(
        (&got["result"]["taskId"], &got["result"]["status"]),
        (&json!(id), &json!("working"))
    );
    assert!(got["result"].get("resultType").is_none(), "{got}");
    // The question comes while the result is waited for, and says whose it is.
    let related = |meta: &Value| meta["_meta"][RELATED]["taskId"].clone();
    let seen = old
        .say(&json!("r"), "tasks/result", &json!({"taskId": id}), |request| {
            assert_eq!(related(&request["params"]), id, "{request}");
            snake(request)
        })
        .await;
    assert!(seen.iter().any(|m| m["method"] == "elicitation/create"), "{seen:?}");
    let result = &seen.last().unwrap()["result"];
    assert!(report(result).contains("snake"), "{result}");
    assert_eq!(related(result), id, "{result}");
    let got = old.ask("tasks/get", json!({"taskId": id})).await;
    assert_eq!(got["result"]["status"], "completed", "{got}");
    // What is over cannot be given up.
    let late = old.ask("tasks/cancel", json!({"taskId": id})).await;
    assert_eq!(late["error"]["code"], -32602, "{late}");
    let made = old.ask("tools/call", call).await;
    let second = made["result"]["task"]["taskId"].as_str().unwrap();
    let gone = old.ask("tasks/cancel", json!({"taskId": second})).await;
    let said = &gone["result"];
    assert_eq!((&said["taskId"], &said["status"]), (&json!(second), &json!("cancelled")), "{gone}");
}

// Ones that know no tasks: they get the result.
async fn as_a_result(weir: &Weir) {
    let old = Old::open(&weir.url, None, "2025-06-18", &forms()).await;
    let seen = old
        .call(TOOL, ambiguous(), |request| {
            assert!(request["params"]["_meta"].get(RELATED).is_none(), "{request}");
            snake(request)
        })
        .await;
    let result = &seen.last().unwrap()["result"];
    assert!(report(result).contains("snake"), "{seen:?}");
    assert!(result["_meta"].get(RELATED).is_none(), "{result}");
}

async fn as_a_modern_result(weir: &Weir) {
    let caps = forms();
    let call = json!({"arguments": ambiguous()});
    let asked = modern_call(&weir.url, None, &caps, TOOL, call).await;
    assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
    let (key, request) =
        asked["result"]["inputRequests"].as_object().unwrap().iter().next().unwrap();
    assert!(request["params"]["_meta"].get(RELATED).is_none(), "{asked}");
    let answers = json!({key: snake(request).unwrap()["result"]});
    let state = &asked["result"]["requestState"];
    let again = json!({"arguments": ambiguous(), "inputResponses": answers, "requestState": state});
    let done = modern_call(&weir.url, None, &caps, TOOL, again).await;
    assert_eq!(done["result"]["resultType"], "complete", "{done}");
    assert!(report(&done["result"]).contains("snake"), "{done}");
}

// A modern one that knows the extension.
async fn by_the_extension(weir: &Weir) {
    let (url, caps) = (weir.url.as_str(), extended());
    let call = || json!({"arguments": {"topic": "rivers"}});
    let made = modern_call(url, None, &caps, TOOL, call()).await;
    let task = &made["result"];
    assert_eq!(
        (&task["resultType"], &task["status"]),
        (&json!("task"), &json!("working")),
        "{made}"
    );
    assert_eq!(
        (&task["ttlMs"], &task["pollIntervalMs"]),
        (&json!(300_000), &json!(1000)),
        "{made}"
    );
    let id = task["taskId"].as_str().unwrap();
    let end = loop {
        let got = modern_task(url, None, "tasks/get", id).await["result"].take();
        assert_eq!((&got["resultType"], &got["taskId"]), (&json!("complete"), &json!(id)), "{got}");
        if got["status"] != "working" {
            break got;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    assert_eq!(end["status"], "completed", "{end}");
    assert!(report(&end["result"]).contains("rivers"), "{end}");
    assert!(end["result"]["_meta"].get(RELATED).is_none(), "{end}");
    let ack = json!({"resultType": "complete"});
    // What is over is acknowledged too.
    assert_eq!(modern_task(url, None, "tasks/cancel", id).await["result"], ack);
    let made = modern_call(url, None, &caps, TOOL, call()).await;
    let id = made["result"]["taskId"].as_str().unwrap();
    assert_eq!(modern_task(url, None, "tasks/cancel", id).await["result"], ack);
    assert_eq!(modern_task(url, None, "tasks/get", id).await["result"]["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_task_over_http() {
    let (_server, weir) = over_http().await;
    let all = (by_its_own_dialect(&weir), as_a_result(&weir), as_a_modern_result(&weir));
    tokio::join!(all.0, all.1, all.2, by_the_extension(&weir));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_task_over_a_pipe() {
    let weir = over_a_pipe().await;
    let all = (by_its_own_dialect(&weir), as_a_result(&weir), as_a_modern_result(&weir));
    tokio::join!(all.0, all.1, all.2, by_the_extension(&weir));
}

fn typescript(how: &[&str]) -> Value {
    let clients = peers().join("clients");
    let output = std::process::Command::new("node")
        .arg(clients.join("tasks.mjs"))
        .arg(TOOL)
        .args(how)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim())
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn judge(seen: &Value) {
    let came: Vec<_> =
        seen["came"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert_eq!(came[0], "taskCreated", "{seen}");
    assert!(came.contains(&"working") && came.contains(&"input_required"), "{seen}");
    assert_eq!(came[came.len() - 2], "result", "{seen}");
    assert!(came[came.len() - 1].contains("snake"), "{seen}");
    assert!(seen["created"].is_string(), "{seen}");
    assert_eq!(seen["asked"], json!([seen["created"]]), "{seen}");
    assert_eq!(seen["cancelled"], "cancelled", "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_typescript_sdk_runs_a_task_over_http() {
    let (_server, weir) = over_http().await;
    let url = weir.url.clone();
    judge(&tokio::task::spawn_blocking(move || typescript(&["http", &url])).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_typescript_sdk_runs_a_task_over_a_pipe() {
    // The client decides by what `initialize` says: the server has to be known by then.
    let mut weir = over_a_pipe().await;
    weir.stop();
    let path = weir.dir.path().join("pipe.toml");
    let state = format!("[gateway]\nstate_dir = {:?}\n", weir.dir.path().join("state"));
    std::fs::write(&path, state + &pipe_section()).unwrap();
    let seen = tokio::task::spawn_blocking(move || {
        let (program, config) = (env!("CARGO_BIN_EXE_weir"), path.to_str().unwrap());
        typescript(&["stdio", program, "--config", config, "stdio"])
    });
    judge(&seen.await.unwrap());
}
