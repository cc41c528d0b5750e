//! A saved file takes effect, however it was saved: what is unchanged stays as it is, what cannot
//! change is refused by name, and a client hears of what it can see and of nothing else.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use harness::scripted::{Reply, Scripted, tool};
use harness::{
    PID_SERVER, Weir, call, get, modern, modern_request, post, reason, send, tool_names, upstream,
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use weirkeeper::config::secret::{ConsumerKey, new_key};

/// Time in which a change would have been told: two looks at the file and the debounce, twice.
const QUIET: Duration = Duration::from_millis(2500);

/// The whole file again with one text exchanged, written in place.
fn edit(path: &Path, from: &str, to: &str) {
    let old = std::fs::read_to_string(path).unwrap();
    assert!(old.contains(from), "{from} is not in the file");
    std::fs::write(path, old.replace(from, to)).unwrap();
}

async fn names(weir: &Weir, wanted: &[&str]) {
    for _ in 0..1200 {
        if tool_names(&weir.url, None).await == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not seen: {wanted:?}\n{}", weir.log());
}

fn hangup(weir: &Weir) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(weir.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_of_saving_is_seen() {
    let (one, two) = (Scripted::fine(&["a"]).await, Scripted::fine(&["b"]).await);
    let quiet = "builtin = false";
    let weir = Weir::start(quiet, &one.section("one", ""));
    weir.ready(&["one"]).await;

    // Renamed over, as editors do.
    weir.rewrite(quiet, &(one.section("one", "") + &two.section("two", "")));
    names(&weir, &["one__a", "two__b"]).await;

    // Written in place.
    edit(&weir.config_path(), "[upstreams.two]", "[upstreams.three]");
    names(&weir, &["one__a", "three__b"]).await;

    // A ConfigMap: the file is a link through `..data`, a link that is swapped.
    let dir = weir.dir.path();
    let text = std::fs::read_to_string(weir.config_path()).unwrap();
    for (version, name) in [("v1", "four"), ("v2", "five")] {
        std::fs::create_dir(dir.join(version)).unwrap();
        let text = text.replace("[upstreams.three]", &format!("[upstreams.{name}]"));
        std::fs::write(dir.join(version).join("upstreams.toml"), text).unwrap();
    }
    symlink("v1", dir.join("..data")).unwrap();
    symlink("..data/upstreams.toml", dir.join("link")).unwrap();
    std::fs::rename(dir.join("link"), weir.config_path()).unwrap();
    names(&weir, &["one__a", "four__b"]).await;
    symlink("v2", dir.join("..data_tmp")).unwrap();
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    names(&weir, &["one__a", "five__b"]).await;

    // Gone for a while: no change, and a new one is seen.
    std::fs::remove_file(weir.config_path()).unwrap();
    tokio::time::sleep(QUIET).await;
    assert_eq!(tool_names(&weir.url, None).await, ["one__a", "five__b"]);
    let told = |what: &str| weir.log().matches(what).count();
    let gone = "the configuration file cannot be read; the configuration in force stays";
    assert_eq!((told(gone), told("the configuration file is back")), (1, 0), "{}", weir.log());
    std::fs::write(weir.config_path(), text).unwrap();
    names(&weir, &["one__a", "three__b"]).await;
    assert_eq!((told(gone), told("the configuration file is back")), (1, 1), "{}", weir.log());
    let metrics = weir.metrics().await;
    assert!(metrics.contains("weir_config_reloads_total{result=\"ok\"} 5"), "{metrics}");
    assert_eq!(one.asked("initialize"), 1, "the unchanged upstream was left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reads_the_file_again() {
    let one = Scripted::fine(&["a"]).await;
    let weir = Weir::start("", &one.section("one", ""));
    weir.ready(&["one"]).await;
    hangup(&weir);
    weir.logged("the configuration is unchanged").await;
    // A secret in a file of its own is read again too, although upstreams.toml is the same.
    let token = weir.dir.path().join("token");
    std::fs::write(&token, "first-token-1234").unwrap();
    weir.rewrite("", &one.section("one", &format!("bearer = \"file:{}\"", token.display())));
    weir.until("with the first", |_| {
        one.arrivals()
            .iter()
            .any(|a| a.headers.get("authorization").is_some_and(|v| v == "Bearer first-token-1234"))
    })
    .await;
    std::fs::write(&token, "second-token-5678").unwrap();
    hangup(&weir);
    weir.until("with the second", |_| {
        one.arrivals().iter().any(|a| {
            a.headers.get("authorization").is_some_and(|v| v == "Bearer second-token-5678")
        })
    })
    .await;
    weir.ready(&["one"]).await;
    assert!(!weir.log().contains("-token-"), "{}", weir.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_set_back_behind_a_hangup_is_seen() {
    let (one, two) = (Scripted::fine(&["a"]).await, Scripted::fine(&["b"]).await);
    let quiet = "builtin = false";
    let weir = Weir::start(quiet, &one.section("one", ""));
    weir.ready(&["one"]).await;
    // Between two looks of the watcher, which has seen nothing but the file as it was.
    weir.rewrite(quiet, &(one.section("one", "") + &two.section("two", "")));
    hangup(&weir);
    weir.logged("configuration reloaded").await;
    weir.rewrite(quiet, &one.section("one", ""));
    names(&weir, &["one__a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_instance_cuts_no_call_of_the_old_one_and_spends_what_it_left() {
    let tools = [tool("slow", false), tool("fine", false)];
    let up = Scripted::start(&tools, |a| {
        let slow = a.tool() == Some("slow");
        slow.then(|| Reply::After(Duration::from_secs(4), Box::new(a.text("slow"))))
    })
    .await;
    let gateway = "drain_timeout = \"1s\"";
    let settings = |header: &str| {
        let rate = "rate = { per_second = 0.001, burst = 2, max_wait = \"0s\" }";
        up.section("up", &format!("{rate}\nheaders = {{ X-Api-Version = \"{header}\" }}"))
    };
    let weir = Weir::start(gateway, &settings("1"));
    weir.ready(&["up"]).await;
    let url = weir.url.clone();
    let running = tokio::spawn(async move { call(&url, "up__slow", json!({})).await });
    weir.until("in flight", |_| up.arrived("slow") == 1).await;
    weir.rewrite(gateway, &settings("2"));
    weir.logged("the new instance has taken over").await;
    assert_eq!(
        call(&weir.url, "up__fine", json!({})).await["result"]["content"][0]["text"],
        "fine"
    );
    // The server counts both for itself.
    let refused = call(&weir.url, "up__fine", json!({})).await;
    assert_eq!(reason(&refused), "rate_limited", "{refused}");
    let answer = running.await.unwrap();
    assert_eq!(answer["result"]["content"][0]["text"], "slow", "{answer}\n{}", weir.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_change_is_refused_by_name_and_nothing_changes() {
    let one = Scripted::fine(&["a"]).await;
    let weir = Weir::start("max_body = \"1MiB\"", &one.section("one", ""));
    weir.ready(&["one"]).await;
    let path = weir.config_path();
    let good = std::fs::read_to_string(&path).unwrap();
    let both = good.replacen("listen = \"127.0.0.1:0\"", "listen = \"127.0.0.1:1\"", 1).replace(
        "max_body = \"1MiB\"",
        "max_body = \"2MiB\"\nmax_connections = 77\n[log]\nformat = \"text\"",
    );
    std::fs::write(&path, both).unwrap();
    weir.logged("gateway.listen, gateway.max_connections").await;
    assert!(weir.log().contains("restart the gateway, or set it back"));
    // The rest of that file is not applied either.
    let large = format!("{{\"x\":\"{}\"}}", "a".repeat(1_500_000));
    assert_eq!(post(&weir.url, &[], large.clone()).await.status, 413);
    let metrics = weir.metrics().await;
    assert!(metrics.contains("weir_config_reloads_total{result=\"failed\"} 1"), "{metrics}");
    assert!(metrics.contains("weir_config_last_reload_successful 0"), "{metrics}");

    // Broken in four ways: each is named with its line, and the gateway goes on.
    std::fs::write(
        &path,
        good.replace(
            "[upstreams.one]",
            "[upstreams.one]\nurll = 1\nrate = 5\ncall_timeout = \"soon\"",
        ),
    )
    .unwrap();
    weir.logged("urll").await;
    let log = weir.log();
    let line = 1 + good.lines().position(|l| l == "[upstreams.one]").unwrap();
    for (n, key) in [(1, "urll"), (2, "rate"), (3, "call_timeout")] {
        let place = format!("upstreams.toml:{}:", line + n);
        assert!(log.contains(&place) && log.contains(key), "{place} {key}: {log}");
    }
    // Who asked does not stand behind the last problem.
    let line = log.lines().find(|l| l.contains("urll")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["message"], "the new configuration is refused, nothing changed");
    assert_eq!(line["why"], "File");
    assert!(line["problems"].as_str().unwrap().contains("call_timeout: \"soon\""), "{line}");
    assert_eq!(call(&weir.url, "one__a", json!({})).await["result"]["content"][0]["text"], "fine");

    // Set back and mended: applied.
    std::fs::write(&path, good.replace("max_body = \"1MiB\"", "max_body = \"2MiB\"")).unwrap();
    weir.logged("configuration reloaded").await;
    assert_eq!(post(&weir.url, &[], large).await.status, 400);
    assert!(weir.metrics().await.contains("weir_config_last_reload_successful 1"));
    assert_eq!(one.asked("initialize"), 1);
}

/// A stdio upstream whose tool tells its process id.
fn pid_server(weir_dir: &str) -> String {
    let path = format!("{weir_dir}/pid.py");
    std::fs::write(&path, PID_SERVER).unwrap();
    format!("[upstreams.child]\ncommand = \"python3\"\nargs = [\"-u\", {path:?}]\n")
}

async fn child_pid(weir: &Weir) -> String {
    let answer = call(&weir.url, "child__pid", json!({})).await;
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_under_a_running_child_and_its_counters_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let section = pid_server(dir.path().to_str().unwrap());
    let weir = Weir::start("", &section);
    weir.ready(&["child"]).await;
    let pid = child_pid(&weir).await;

    // A limit appears, and holds, in the same process.
    weir.rewrite(
        "",
        &(section.clone() + "rate = { per_second = 0.001, burst = 1, max_wait = \"0s\" }\n"),
    );
    weir.logged("kept child").await;
    assert_eq!(child_pid(&weir).await, pid);
    assert_eq!(reason(&call(&weir.url, "child__pid", json!({})).await), "rate_limited");

    // And goes again. The counters never did.
    weir.rewrite("", &(section.clone() + "call_timeout = \"59s\"\n"));
    weir.until("no limit", |s| upstream(s, "child")["state"] == "ready").await;
    for _ in 0..200 {
        if weir.log().matches("kept child").count() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(child_pid(&weir).await, pid);
    let metrics = weir.metrics().await;
    let ok = metrics
        .lines()
        .find(|l| {
            l.starts_with("weir_calls_total{") && l.contains("\"child\"") && l.contains("\"ok\"")
        })
        .unwrap_or_else(|| panic!("{metrics}"));
    assert!(ok.ends_with(" 3"), "{ok}");

    // What the process is made of changes: a new one.
    weir.rewrite("", &section.replace("\"-u\", ", "\"-u\", \"-B\", "));
    weir.logged("the new instance has taken over").await;
    assert!(upstream(&weir.status().await, "child")["successor"].is_null());
    assert_ne!(child_pid(&weir).await, pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_comes_and_goes_over_a_child_that_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let section = pid_server(dir.path().to_str().unwrap());
    let weir = Weir::start("", &section);
    weir.ready(&["child"]).await;
    let pid = child_pid(&weir).await;
    weir.rewrite("", &(section.clone() + "state = \"maintenance\"\nmessage = \"it moves\"\n"));
    weir.logged("kept child; settings of child").await;
    let answer = call(&weir.url, "child__pid", json!({})).await;
    assert_eq!(reason(&answer), "maintenance", "{answer}");
    assert_eq!(upstream(&weir.status().await, "child")["connection"], "ready");
    weir.rewrite("", &section);
    weir.logged("child takes calls again").await;
    weir.ready(&["child"]).await;
    assert_eq!(child_pid(&weir).await, pid);
    assert_eq!(upstream(&weir.status().await, "child")["restarts"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_flight_finishes_on_what_it_started_with() {
    let slow = Scripted::start(&[tool("slow", false)], |arrival| {
        (arrival.tool()? == "slow")
            .then(|| Reply::After(Duration::from_secs(3), Box::new(arrival.text("done"))))
    })
    .await;
    let weir = Weir::start("drain_timeout = \"20s\"", &slow.section("slow", ""));
    weir.ready(&["slow"]).await;
    let url = weir.url.clone();
    let running = tokio::spawn(async move { call(&url, "slow__slow", json!({})).await });
    while slow.arrived("slow") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    weir.rewrite("drain_timeout = \"20s\"", "");
    weir.logged("retired slow").await;
    assert_eq!(reason(&call(&weir.url, "slow__slow", json!({})).await), "unknown_name");
    let answer = running.await.unwrap();
    assert_eq!(answer["result"]["content"][0]["text"], "done", "{answer}");
    assert_eq!(slow.arrived("slow"), 1);
}

/// A listener for changed tools: everything it has heard so far.
async fn listener(url: &str, key: &str) -> std::sync::Arc<std::sync::Mutex<String>> {
    let wish = json!({"notifications": {"toolsListChanged": true, "promptsListChanged": true}});
    let (headers, body) = modern_request(Some(key), "subscriptions/listen", wish);
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let response = send(url, &headers, body).await;
    assert_eq!(response.status(), 200);
    let heard = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let sink = heard.clone();
    tokio::spawn(async move {
        let mut body = response.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            if let Some(data) = frame.data_ref() {
                sink.lock().unwrap().push_str(std::str::from_utf8(data).unwrap());
            }
        }
    });
    heard
}

async fn old_session(url: &str, key: &str) -> String {
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
    let got = post(url, &[("x-api-key", key)], hello.to_string()).await;
    got.headers["mcp-session-id"].to_str().unwrap().to_owned()
}

async fn old_tools(url: &str, key: &str, session: &str) -> (u16, Vec<String>) {
    let list = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"});
    let got = post(url, &[("x-api-key", key), ("mcp-session-id", session)], list.to_string()).await;
    let answer = got.answer();
    let names = answer["result"]["tools"]
        .as_array()
        .map(|tools| tools.iter().map(|t| t["name"].as_str().unwrap().to_owned()).collect());
    (got.status, names.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn views_and_consumers_change_under_live_clients() {
    let up = Scripted::fine(&["a", "b", "c"]).await;
    let keys: Vec<_> = (0..3).map(|_| new_key()).collect();
    let digest = |n: usize| ConsumerKey::of(keys[n].expose()).to_text();
    let file = |px: &str, more: &str| {
        up.section("up", "")
            + &format!(
                "[views.px]\nupstreams = [\"up\"]\nallow = [{px}]\n[views.sales]\nupstreams = [\"up\"]\nallow = [\"up__c\"]\n\
                 [consumers.px]\nkey = {:?}\nview = \"px\"\n{more}\n[consumers.sales]\nkey = {:?}\nview = \"sales\"\n",
                digest(0),
                digest(1)
            )
    };
    let weir = Weir::start("", &file("\"up__a\"", ""));
    weir.ready(&["up"]).await;
    let (px, sales, new) = (keys[0].expose(), keys[1].expose(), keys[2].expose());
    assert_eq!(tool_names(&weir.url, Some(px)).await, ["up__a"]);
    let (px_hears, sales_hears) = (listener(&weir.url, px).await, listener(&weir.url, sales).await);
    let (px_old, sales_old) =
        (old_session(&weir.url, px).await, old_session(&weir.url, sales).await);
    assert_eq!(old_tools(&weir.url, px, &px_old).await.1, ["up__a"]);

    // px is given one more tool: px hears of it, in both eras sees it, sales hears nothing.
    weir.rewrite("", &file("\"up__a\", \"up__b\"", ""));
    let told = || px_hears.lock().unwrap().matches("notifications/tools/list_changed").count();
    weir.until("px is told", |_| told() == 1).await;
    assert_eq!(tool_names(&weir.url, Some(px)).await, ["up__a", "up__b"]);
    assert_eq!(old_tools(&weir.url, px, &px_old).await.1, ["up__a", "up__b"]);
    assert_eq!(old_tools(&weir.url, sales, &sales_old).await.1, ["up__c"]);
    let answer = modern(&weir.url, Some(px), "tools/call", json!({"name": "up__b"})).await.answer();
    assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}");

    // A quota for px, a new consumer, and another key for an old one: at once, without a word to
    // those whose view is the same.
    let more = format!(
        "keys = [{:?}]\nrate = {{ per_second = 0.001, burst = 1 }}\n[consumers.new]\nkey = {:?}\nview = \"sales\"\n",
        digest(0),
        digest(2)
    );
    let text = file("\"up__a\", \"up__b\"", &more);
    weir.rewrite(
        "",
        &text.replace(&format!("key = {:?}\nview = \"px\"", digest(0)), "view = \"px\""),
    );
    weir.until("the new one is known", |_| true).await;
    for _ in 0..200 {
        if modern(&weir.url, Some(new), "tools/list", json!({})).await.status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(tool_names(&weir.url, Some(new)).await, ["up__c"]);
    let call_px = || modern(&weir.url, Some(px), "tools/call", json!({"name": "up__a"}));
    let (first, second) = (call_px().await.answer(), call_px().await.answer());
    assert_eq!((reason(&first), reason(&second)), ("", "quota_exceeded"), "{first} {second}");
    tokio::time::sleep(QUIET).await;
    assert_eq!(told(), 1, "{}", px_hears.lock().unwrap());
    assert!(!sales_hears.lock().unwrap().contains("list_changed"));

    // A consumer that is taken out is out, with its session.
    let text = file("\"up__a\"", "");
    weir.rewrite("", text.split("[consumers.sales]").next().unwrap());
    for _ in 0..200 {
        if modern(&weir.url, Some(sales), "tools/list", json!({})).await.status == 401 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(old_tools(&weir.url, sales, &sales_old).await.0, 401);
    assert_eq!(old_tools(&weir.url, px, &px_old).await.1, ["up__a"]);
    assert_eq!(up.asked("initialize"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_changes_while_running() {
    let up = Scripted::fine(&["a"]).await;
    let weir = Weir::start("", &(up.section("up", "") + "[log]\nlevel = \"error\"\n"));
    weir.ready(&["up"]).await;
    call(&weir.url, "up__a", json!({})).await;
    assert!(!weir.log().contains("up__a"), "{}", weir.log());
    weir.rewrite("", &(up.section("up", "") + "[log]\nlevel = \"info\"\n"));
    weir.logged("configuration reloaded").await;
    call(&weir.url, "up__a", json!({})).await;
    weir.logged("up__a").await;
    let before = weir.log().len();
    weir.rewrite("", &(up.section("up", "") + "[log]\nlevel = \"warn\"\n"));
    weir.until("changed", |_| true).await;
    for _ in 0..100 {
        if get(&format!("{}/metrics", weir.admin))
            .await
            .1
            .contains("weir_config_reloads_total{result=\"ok\"} 2")
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    call(&weir.url, "up__a", json!({})).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after: Value = json!(weir.log()[before..].matches("up__a").count());
    assert_eq!(after, 0, "{}", weir.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_upstream_serves_until_its_successor_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let section = pid_server(dir.path().to_str().unwrap());
    let weir = Weir::start("builtin = false", &section);
    weir.ready(&["child"]).await;
    let first = child_pid(&weir).await;

    // The new program does not start: the old one goes on, and the log says so.
    let broken = section.replace(
        "\"-u\", ",
        "\"-u\", \"-c\", \"import sys; print('no such plan', file=sys.stderr); sys.exit(4)\", ",
    );
    weir.rewrite("builtin = false", &broken);
    weir.logged("the old one keeps serving").await;
    assert_eq!(child_pid(&weir).await, first);
    assert_eq!(tool_names(&weir.url, None).await, ["child__pid"]);
    let status = weir
        .until("the successor's trouble", |s| upstream(s, "child")["successor"]["state"] == "down")
        .await;
    let child = upstream(&status, "child");
    assert_eq!(child["state"], "ready");
    let told = |key: &str| child["successor"][key].as_str().unwrap().to_owned();
    assert!(told("why").contains("ended with code 4"), "{child}");
    assert!(told("cause").contains("stderr: no such plan"), "{child}");

    // The next one starts, slowly: no call fails and no list lacks anything meanwhile.
    let slow = section.replace("\"-u\", ", "\"-u\", \"-X\", \"dev\", ");
    let text = std::fs::read_to_string(dir.path().join("pid.py")).unwrap();
    std::fs::write(dir.path().join("pid.py"), format!("import time; time.sleep(1.5)\n{text}"))
        .unwrap();
    weir.rewrite("builtin = false", &slow);
    let mut calls = 0;
    let second = loop {
        assert_eq!(tool_names(&weir.url, None).await, ["child__pid"]);
        let pid = child_pid(&weir).await;
        calls += 1;
        if pid != first {
            break pid;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(calls > 20, "the old one served while the new one started: {calls}");
    weir.logged("the new instance has taken over").await;
    let old = format!("/proc/{first}");
    weir.until("the old one is gone", |_| !Path::new(&old).exists()).await;

    // Taken out while a successor is on its way: both end.
    weir.rewrite("builtin = false", &broken);
    weir.until("a third is tried", |_| weir.log().matches("the old one keeps serving").count() > 1)
        .await;
    weir.rewrite("builtin = false", "");
    let old = format!("/proc/{second}");
    weir.until("all gone", |_| !Path::new(&old).exists()).await;
    assert!(tool_names(&weir.url, None).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_stays_one_as_long_as_somebody_has_it() {
    // It prints its credential at every call, and the file goes through two others meanwhile.
    let dir = tempfile::tempdir().unwrap();
    let secret = |n: u32| format!("s3cret-value-number-{n}");
    for n in 1..4 {
        std::fs::write(dir.path().join(format!("k{n}")), secret(n)).unwrap();
    }
    let program = pid_server(dir.path().to_str().unwrap());
    let text = std::fs::read_to_string(dir.path().join("pid.py")).unwrap();
    let talking = r"
import os, sys, base64
K = os.environ['K']
if '-number-1' not in K: sys.exit(5)
def shout(): print(K, base64.b64encode(('user:' + K).encode()).decode(), file=sys.stderr, flush=True)
shout()
";
    let text = text.replace("str(os.getpid())", "(shout(), str(os.getpid()))[1]");
    std::fs::write(dir.path().join("pid.py"), format!("{talking}{text}")).unwrap();
    let section = |n: u32| {
        let file = dir.path().join(format!("k{n}"));
        format!("{program}env = {{ K = \"file:{}\" }}\n", file.display())
    };
    let weir = Weir::start("builtin = false", &section(1));
    weir.ready(&["child"]).await;
    for n in [2, 3] {
        let so_far = weir.log().matches("the old one keeps serving").count();
        weir.rewrite("builtin = false", &section(n));
        weir.until("the new one does not start", |_| {
            weir.log().matches("the old one keeps serving").count() > so_far
        })
        .await;
    }
    let lines = weir.log().matches("«secret»").count();
    child_pid(&weir).await;
    weir.until("it spoke", |_| weir.log().matches("«secret»").count() > lines).await;
    let log = weir.log();
    assert!(!log.contains("s3cret-value") && !log.contains("s3cret"), "{log}");
    use base64::Engine as _;
    let coded = base64::engine::general_purpose::STANDARD.encode(secret(1));
    assert!(!log.contains(&coded[4..20]), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_command_line_hides_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("upstreams.toml");
    let text = format!(
        "[gateway]\nlisten = \"127.0.0.1:1\"\nstate_dir = \"{0}/state\"\n[admin]\nlisten = \"off\"\n",
        dir.path().display()
    );
    std::fs::write(&path, &text).unwrap();
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["--listen", "127.0.0.1:0", "--log-format", "json", "--config"])
        .arg(&path)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let (tx, lines) = std::sync::mpsc::channel();
    let stderr = std::io::BufReader::new(child.0.stderr.take().unwrap());
    std::thread::spawn(move || {
        for line in std::io::BufRead::lines(stderr).map_while(Result::ok) {
            let _ = tx.send(line);
        }
    });
    let heard = |needle: &str| {
        let mut all = String::new();
        while let Ok(line) = lines.recv_timeout(harness::PATIENCE) {
            all.push_str(&line);
            if line.contains(needle) {
                return all;
            }
        }
        panic!("not heard: {needle}\n{all}");
    };
    heard("\"message\":\"serving\"");
    std::fs::write(&path, text.replace("127.0.0.1:1", "127.0.0.1:2")).unwrap();
    assert!(heard("it is overridden by --listen").contains("127.0.0.1:2"));
    // Told once: the next change is another one.
    std::fs::write(
        &path,
        text.replace("127.0.0.1:1", "127.0.0.1:2") + "[log]\nlevel = \"debug\"\n",
    )
    .unwrap();
    assert!(!heard("configuration reloaded").contains("overridden"));
}

/// A process that ends with its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
