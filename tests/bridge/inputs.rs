//! An old upstream's task that wants to know something, for a caller of the newest revision.

use serde_json::{Value, json};

use crate::harness::{Weir, modern, peers};

const TASKS: &str = "io.modelcontextprotocol/tasks";

async fn ask(weir: &Weir, method: &str, mut params: Value) -> Value {
    params["_meta"]["io.modelcontextprotocol/clientCapabilities"] =
        json!({"elicitation": {}, "extensions": {TASKS: {}}});
    modern(&weir.url, None, method, params).await.answer()
}

#[tokio::test(flavor = "multi_thread")]
async fn its_questions_are_read_with_the_task_and_answered_by_name() {
    let servers = peers().join("servers");
    let main = servers.join("node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    let section = format!(
        "[upstreams.up]\ncommand = \"node\"\nargs = [{:?}, \"stdio\"]\nisolation = \"consumer\"\n",
        main.display().to_string()
    );
    let weir = Weir::start("", &section);
    weir.ready(&["up"]).await;
    let arguments = json!({"topic": "weirs", "ambiguous": true});
    let made = ask(
        &weir,
        "tools/call",
        json!({"name": "up__simulate-research-query", "arguments": arguments}),
    )
    .await;
    assert_eq!(made["result"]["resultType"], "task", "{made}");
    let id = made["result"]["taskId"].as_str().unwrap().to_owned();
    let end = std::time::Instant::now() + crate::harness::PATIENCE;
    let mut asked = 0;
    let done = loop {
        let task = ask(&weir, "tasks/get", json!({"taskId": id})).await;
        assert_eq!(task["result"]["taskId"], id.as_str(), "{task}");
        match task["result"]["status"].as_str().unwrap() {
            "input_required" => {
                let requests = task["result"]["inputRequests"].as_object().unwrap();
                let (key, request) = requests.iter().next().unwrap();
                assert_eq!(request["method"], "elicitation/create", "{request}");
                assert!(!request.to_string().contains("related-task"), "{request}");
                // The same question is asked under the same name until it is answered.
                let again = ask(&weir, "tasks/get", json!({"taskId": id})).await;
                assert!(again["result"]["inputRequests"].get(key).is_some(), "{again}");
                let schema = &request["params"]["requestedSchema"]["properties"];
                let (field, of) = schema.as_object().unwrap().iter().next().unwrap();
                let choice = of["enum"][0].as_str().or(of["oneOf"][0]["const"].as_str());
                let mut content = json!({});
                content[field] = json!(choice.unwrap_or("engineering"));
                let mut responses = json!({"nobody": {"action": "decline"}});
                responses[key] = json!({"action": "accept", "content": content});
                let ack =
                    ask(&weir, "tasks/update", json!({"taskId": id, "inputResponses": responses}))
                        .await;
                assert_eq!(ack["result"]["resultType"], "complete", "{ack}");
                asked += 1;
            }
            "working" => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            _ => break task,
        }
        assert!(std::time::Instant::now() < end, "{task}");
    };
    assert_eq!((asked, done["result"]["status"].as_str()), (1, Some("completed")), "{done}");
    let text = done["result"]["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("weirs"), "{text}");
    assert!(!done.to_string().contains("related-task"), "{done}");
}
