//! How the bridge takes bad input, and how it ends.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use weirkeeper::bridge::{self, Options};

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::sessions::welcome;
use crate::{Host, until};

/// A tool that takes its time, in a session.
async fn slow() -> Scripted {
    Scripted::start(&[tool("slow", false)], |a| {
        if a.method() == "initialize" {
            return Some(welcome(a, "s"));
        }
        a.tool().map(|_| Reply::After(Duration::from_millis(400), Box::new(a.text("at last"))))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_are_no_messages_are_answered() {
    let up = slow().await;
    let mut host = Host::start(&up.url);
    for (line, code) in [
        ("nonsense", -32700),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"id\":2,\"method\":\"a\"}", -32700),
        ("[]", -32600),
        ("{\"id\":1,\"method\":\"a\"}", -32600),
    ] {
        host.write(line).await;
        let answer = host.message(line, |m| m.get("id").is_none()).await;
        assert_eq!(answer["error"]["code"], code, "{line}: {answer}");
    }
    host.write(&"x".repeat(weirkeeper::bridge::LINE_MAX + 1)).await;
    let answer = host.message("too long", |m| m.get("id").is_none()).await;
    assert_eq!(answer["error"]["data"]["reason"], "too_large", "{answer}");
    host.write("").await;
    // Two with one id: the second is refused, the first answered.
    host.hello("2025-11-25").await;
    let params = json!({"name": "slow", "arguments": {}});
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    host.send(call.clone()).await;
    host.send(call).await;
    assert_eq!(host.answer(json!(1)).await["error"]["data"]["reason"], "duplicate_id");
    assert_eq!(host.answer(json!(1)).await["result"]["content"][0]["text"], "at last");
    assert_eq!(up.arrived("slow"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_calls_are_answered_and_the_session_is_closed() {
    for by_signal in [false, true] {
        let up = slow().await;
        let mut host = Host::start(&up.url);
        host.hello("2025-11-25").await;
        let params = json!({"name": "slow", "arguments": {}});
        host.send(json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}))
            .await;
        host.send_modern(2, "tools/call", params).await;
        until("both arrive", || up.arrived("slow") == 2).await;
        if by_signal {
            let pid = i32::try_from(host.child.id().unwrap()).unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        } else {
            host.hang_up();
        }
        for id in [1, 2] {
            assert_eq!(host.answer(json!(id)).await["result"]["content"][0]["text"], "at last");
        }
        assert_eq!(host.ended().await, Some(0));
        let ends: Vec<_> = up.arrivals().into_iter().filter(|a| a.verb == "DELETE").collect();
        assert_eq!(ends.len(), 1);
        assert_eq!(ends[0].headers["mcp-session-id"], "s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_conversation_may_come_at_once() {
    let up = slow().await;
    let mut host = Host::start(&up.url);
    let hello = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}});
    for message in [
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}),
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}),
    ] {
        host.send(message).await;
    }
    host.hang_up();
    assert!(host.answer(json!(2)).await["result"]["tools"].is_array());
    assert_eq!(host.ended().await, Some(0));
    let methods: Vec<_> = up.arrivals().iter().map(|a| a.method().to_owned()).collect();
    let place = |m: &str| methods.iter().position(|x| x == m).unwrap();
    assert!(place("initialize") < place("notifications/initialized"));
    assert!(place("notifications/initialized") < place("tools/list"), "{methods:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_waits_for_a_gateway_that_is_away_once_the_host_has_gone() {
    let url = format!("http://127.0.0.1:{}/mcp", crate::harness::free_port());
    let mut host = Host::start_with(&url, &["--patience", "3600"], &[]);
    host.send_modern(1, "tools/list", json!({})).await;
    host.logged("cannot be reached").await;
    host.hang_up();
    assert_eq!(host.answer(json!(1)).await["error"]["data"]["reason"], "connect_failed");
    assert_eq!(host.ended().await, Some(0));
}

/// The bridge in this process, where the clock can be stopped.
fn options(url: &str) -> Options {
    Options { url: url.to_owned(), token: None, patience: Duration::ZERO }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_holds_the_pipe_and_does_not_read_does_not_keep_the_bridge() {
    // Answered without a gateway: more answers than wait for a host.
    let pings: String = (0..5000)
        .map(|n| format!(r#"{{"jsonrpc":"2.0","id":{n},"method":"ping"}}"#) + "\n")
        .collect();
    let (mut host, input) = tokio::io::duplex(pings.len());
    host.write_all(pings.as_bytes()).await.unwrap();
    let (_unread, output) = tokio::io::duplex(64);
    let stop = tokio::time::sleep(Duration::from_secs(1));
    let bridge = bridge::run(options("http://127.0.0.1:1/mcp"), input, output, stop);
    let ended = tokio::time::timeout(Duration::from_secs(60), bridge).await;
    ended.expect("it ends").unwrap();
}

#[tokio::test]
async fn a_gateway_that_never_answers_a_handshake_keeps_no_call_and_not_the_bridge() {
    let hellos = AtomicUsize::new(0);
    let up = Scripted::start(&[tool("pay", false)], move |a| match a.method() {
        "initialize" if hellos.fetch_add(1, Ordering::SeqCst) == 0 => Some(welcome(a, "s")),
        "initialize" => Some(Reply::Hang(Vec::new())),
        _ => Some(Reply::Http(404, vec![], String::new())),
    })
    .await;
    let ((host, input), (output, answers)) = (tokio::io::duplex(4096), tokio::io::duplex(4096));
    let (mut host, mut answers) = (host, BufReader::new(answers).lines());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async move { stopped.await.unwrap() };
    let url = up.url.clone();
    let bridge =
        tokio::spawn(async move { bridge::run(options(&url), input, output, stopped).await });
    let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}});
    let message = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
    host.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    answers.next_line().await.unwrap().unwrap();
    let call = |id: u32| {
        let params = json!({"name": "pay", "arguments": {}});
        let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params});
        format!("{call}\n")
    };
    host.write_all((call(1) + &call(2)).as_bytes()).await.unwrap();
    // One asks for a session anew, the other waits for it.
    until("both are refused", || up.arrived("pay") == 2 && up.asked("initialize") == 2).await;
    tokio::time::pause();
    for _ in 0..2 {
        let answer = answers.next_line().await.unwrap().unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["data"]["reason"], "deadline_exceeded", "{answer}");
        assert_eq!(answer["error"]["data"]["outcome"], "no_effect", "{answer}");
    }
    // What has no answer asks for a session too, and nobody waits for it at the end.
    tokio::time::resume();
    let ready = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    host.write_all(format!("{ready}\n").as_bytes()).await.unwrap();
    let refused = || up.asked("notifications/initialized") == 1 && up.asked("initialize") >= 3;
    until("it is refused", refused).await;
    stop.send(()).unwrap();
    tokio::time::pause();
    let ended = tokio::time::timeout(Duration::from_secs(25), bridge).await;
    ended.expect("it ends").unwrap().unwrap();
}

#[test]
fn wrong_usage_is_told_before_anything_starts() {
    let told = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_weir")).args(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        format!("{} {}", output.status.code().unwrap(), text.lines().next().unwrap())
    };
    let url = "http://127.0.0.1:1/mcp";
    let lines = [
        told(&["stdio", "--connect", url, "--consumer", "x"]),
        told(&["stdio", "--connect", url, "--config", "x"]),
        told(&["--config", "x", "stdio", "--connect", url]),
        told(&["--listen", "127.0.0.1:1", "stdio", "--connect", url]),
        told(&["stdio", "--token", "x"]),
        told(&["stdio", "--connect", url, "--token", "x", "--token-file", "y"]),
        told(&["stdio", "--connect", url, "--token-file", "/no/such/file"]),
        told(&["stdio", "--connect", url, "--token", "a\nb"]),
        told(&["stdio", "--connect", "ftp://127.0.0.1/mcp"]),
        told(&["stdio", "--connect", "127.0.0.1:8080/mcp"]),
        told(&["stdio", "--connect", "http://a:b@127.0.0.1/mcp"]),
    ];
    insta::assert_snapshot!(lines.join("\n"), @r"
    2 error: the argument '--connect <URL>' cannot be used with '--consumer <NAME>'
    2 error: the argument '--connect <URL>' cannot be used with '--config <PATH>'
    2 error: --config cannot be used with --connect, which reads no configuration
    2 error: --listen cannot be used with --connect, which reads no configuration
    2 error: the following required arguments were not provided:
    2 error: the argument '--token <KEY>' cannot be used with '--token-file <FILE>'
    1 --token-file: file /no/such/file cannot be read (entity not found)
    1 weir stdio --connect: the token holds bytes that no header may
    1 weir stdio --connect: the URL must be one of http or https, such as http://127.0.0.1:8080/mcp, and hold no user name
    1 weir stdio --connect: the URL must be one of http or https, such as http://127.0.0.1:8080/mcp, and hold no user name
    1 weir stdio --connect: the URL must be one of http or https, such as http://127.0.0.1:8080/mcp, and hold no user name
    ");
}
