//! What operators see, and where.

use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::scripted::Scripted;
use crate::harness::{Weir, call, modern};
use crate::until;

/// A gateway started by hand: the harness always has an admin listener.
fn bare(
    dir: &std::path::Path,
    rest: &str,
    args: &[&str],
) -> (std::process::Child, Arc<Mutex<String>>) {
    let path = dir.join("upstreams.toml");
    let text = format!(
        "[gateway]\nlisten = \"127.0.0.1:0\"\nstate_dir = \"{0}/s\"\ncache_dir = \"{0}/c\"\n{rest}\n",
        dir.display()
    );
    std::fs::write(&path, text).unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(args)
        .arg("--config")
        .arg(&path)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let log = Arc::new(Mutex::new(String::new()));
    let sink = log.clone();
    let mut stderr = child.stderr.take().unwrap();
    std::thread::spawn(move || {
        use std::io::Read as _;
        let mut chunk = [0u8; 4096];
        while let Ok(n) = stderr.read(&mut chunk) {
            if n == 0 {
                return;
            }
            sink.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..n]));
        }
    });
    (child, log)
}

struct Stop(std::process::Child);

impl Drop for Stop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_can_be_off() {
    for (listen, there) in [("off", false), ("127.0.0.1:0", true)] {
        let dir = tempfile::tempdir().unwrap();
        let (child, log) = bare(dir.path(), &format!("[admin]\nlisten = \"{listen}\""), &[]);
        let _stop = Stop(child);
        until("started", || log.lock().unwrap().contains("Paste into")).await;
        assert_eq!(log.lock().unwrap().contains("with metrics and state at"), there, "{listen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_format_is_text_or_json() {
    for (format, args, json) in
        [("text", &[][..], false), ("json", &[], true), ("json", &["--log-format", "text"], false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let rest = format!(
            "[admin]\nlisten = \"off\"\n[log]\nformat = \"{format}\"\n[upstreams.dead]\nurl = \"http://127.0.0.1:9/mcp\"\n"
        );
        let (child, log) = bare(dir.path(), &rest, args);
        let _stop = Stop(child);
        until("a line", || log.lock().unwrap().contains("upstream is down")).await;
        let log = log.lock().unwrap().clone();
        let line = log.lines().find(|l| l.contains("upstream is down")).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(line).is_ok(), json, "{line}");
    }
}

/// A collector that keeps what it is sent.
async fn collector() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
    let sink = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sink = sink.clone();
            tokio::spawn(async move {
                let mut chunk = vec![0u8; 64 << 10];
                while let Ok(n) = stream.read(&mut chunk).await {
                    if n == 0 {
                        return;
                    }
                    sink.lock().unwrap().extend_from_slice(&chunk[..n]);
                    let ok = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
                    let _ = stream.write_all(ok).await;
                }
            });
        }
    });
    (url, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_go_to_the_endpoint_sampled_and_named() {
    for (sample, comes) in [("1.0", true), ("0.0", false)] {
        let (url, seen) = collector().await;
        let up = Scripted::fine(&["a"]).await;
        let trace = format!(
            "[trace]\notlp_endpoint = {url:?}\nsample = {sample}\nservice_name = \"the-weir-of-px\"\n"
        );
        let mut weir = Weir::start("", &(up.section("up", "") + &trace));
        weir.ready(&["up"]).await;
        call(&weir.url, "up__a", json!({})).await;
        tokio::task::spawn_blocking(move || weir.stop()).await.unwrap();
        let has = |what: &[u8]| memchr::memmem::find(&seen.lock().unwrap(), what).is_some();
        assert_eq!((has(b"the-weir-of-px"), has(b"up__a")), (comes, comes), "{sample}");
        assert_eq!(has(b"POST /v1/traces"), comes);
    }
    // Without an endpoint nothing is sent, and calls work all the same.
    let weir = Weir::start("", "[trace]\nsample = 1.0\n");
    assert_eq!(modern(&weir.url, None, "tools/list", json!({})).await.status, 200);
}
