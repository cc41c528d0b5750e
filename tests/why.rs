//! Why a call is refused: `weir why`, the caller's own tool and the admin listener say before what
//! the error, the log line and the metric say after; and looking changes nothing.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::scripted::{Reply, Scripted, tool};
use harness::{Weir, get, modern, reason, upstream};
use serde_json::{Value, json};
use weirkeeper::config::secret::{ConsumerKey, new_key};

struct Who {
    name: &'static str,
    key: String,
}

impl Who {
    fn new(name: &'static str) -> Who {
        Who { name, key: new_key().expose().to_owned() }
    }

    fn section(&self, more: &str) -> String {
        let digest = ConsumerKey::of(&self.key).to_text();
        format!("[consumers.{}]\nkey = {digest:?}\n{more}\n", self.name)
    }

    async fn call(&self, weir: &Weir, tool: &str, arguments: Value) -> Value {
        let params = json!({"name": tool, "arguments": arguments});
        modern(&weir.url, Some(&self.key), "tools/call", params).await.answer()
    }

    /// What the gateway's own tool says.
    async fn ask(&self, weir: &Weir, tool: &str) -> String {
        let answer = self.call(weir, "weir__why", json!({"tool": tool})).await;
        let text = answer["result"]["content"][0]["text"].as_str();
        text.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }
}

async fn why(weir: &Weir, consumer: &str, tool: &str) -> Value {
    let (status, body) = get(&format!("{}/why?consumer={consumer}&tool={tool}", weir.admin)).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn refusals(metrics: &str, reason: &str) -> f64 {
    let word = format!("reason=\"{reason}\"}} ");
    let of = metrics.lines().filter(|l| l.starts_with("weir_refusals_total{"));
    of.filter_map(|l| l.split_once(&word)).map(|(_, n)| n.parse::<f64>().unwrap()).sum()
}

fn lines(weir: &Weir, reason: &str) -> usize {
    weir.log().matches(&format!("\"reason\":\"{reason}\"")).count()
}

/// The same, when what was said so far is there: lines come a moment after what they tell of.
async fn settled(weir: &Weir, reason: &str) -> usize {
    loop {
        let before = lines(weir, reason);
        tokio::time::sleep(Duration::from_millis(50)).await;
        if lines(weir, reason) == before {
            return before;
        }
    }
}

/// What decides, and whether the tool is seen nevertheless.
struct Wanted {
    tool: &'static str,
    reason: &'static str,
    layer: &'static str,
    visible: bool,
}

/// Ask in both ways, twice; call; and compare the word in the answer, the log and the metric.
async fn agree(weir: &Weir, who: &Who, wanted: &Wanted) -> Value {
    let Wanted { tool, reason: word, layer, visible } = *wanted;
    let (metric, logged) = (refusals(&weir.metrics().await, word), settled(weir, word).await);
    let said = why(weir, who.name, tool).await;
    let refused = &said["refused"];
    let got = (refused["reason"].as_str(), refused["layer"].as_str());
    assert_eq!(got, (Some(word), Some(layer)), "{tool}: {said:#}");
    assert_eq!((&said["visible"], &said["callable"]), (&json!(visible), &json!(false)), "{tool}");
    assert!(!refused["remedy"].as_str().unwrap().is_empty(), "{tool}: {said:#}");
    let own: Value = serde_json::from_str(&who.ask(weir, tool).await).unwrap();
    assert_eq!(own["refused"]["reason"], word, "{tool}: {own:#}");
    // Nothing was counted, written or used up by that.
    assert_eq!(refusals(&weir.metrics().await, word), metric, "{tool}: counted by looking");
    assert_eq!(settled(weir, word).await, logged, "{tool}: logged by looking");
    let answer = who.call(weir, tool, json!({})).await;
    assert_eq!(reason(&answer), word, "{tool}: {answer}");
    assert_eq!(refusals(&weir.metrics().await, word), metric + 1.0, "{tool}");
    weir.until("logged", |_| lines(weir, word) > logged).await;
    let again = why(weir, who.name, tool).await;
    assert_eq!(again["refused"]["reason"], word, "{tool}: {again:#}");
    said
}

async fn fine(weir: &Weir, who: &Who, tool: &str) {
    let answer = who.call(weir, tool, json!({})).await;
    assert_eq!(reason(&answer), "", "{tool}: {answer}");
}

const CLOSED: &str = "rate = { per_second = 0.001, burst = 1, max_wait = \"0s\" }";

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines)]
async fn every_layer_says_before_what_a_call_meets() {
    let names = ["ok", "fail", "busy", "secret", "filtered", "slow"];
    let tools: Vec<_> = names.iter().map(|n| tool(n, false)).collect();
    let up = Scripted::start(&tools, |a| {
        Some(match a.tool()? {
            "fail" => Reply::Http(500, vec![], String::new()),
            "busy" => Reply::Http(429, vec![("retry-after", "60".into())], String::new()),
            "slow" => Reply::Hang(vec![]),
            _ => return None,
        })
    })
    .await;
    let bare = Scripted::start(
        &[tool("up__taken", false), tool("twice", false), json!({"name": "bad"})],
        |_| None,
    )
    .await;
    let mute = Scripted::start(&[], |a| (a.verb == "POST").then(|| Reply::Hang(vec![]))).await;
    let (all, narrow, poor) = (Who::new("all"), Who::new("narrow"), Who::new("poor"));
    let file = [
        up.section("up", "deny = [\"filtered\"]"),
        up.section("other", ""),
        bare.section("bare", "prefix = \"\""),
        up.section("off", "enabled = false"),
        "[upstreams.later]\nurl = \"http://127.0.0.1:9/\"\nbearer = \"${NOT_SET_ANYWHERE}\"\n"
            .into(),
        "[upstreams.gone]\nurl = \"http://127.0.0.1:9/mcp\"\n".into(),
        mute.section("mute", "connect_timeout = \"5m\""),
        up.section("broke", "breaker = { consecutive = 1, open_for = \"1h\" }"),
        up.section("dry", CLOSED),
        up.section("own", &format!("[upstreams.own.tools.\"o*\"]\n{CLOSED}")),
        up.section("busy", ""),
        up.section("full", "concurrency = { max = 1, queue = 0 }\ncall_timeout = \"5m\""),
        up.section("drain", "state = \"draining\""),
        up.section(
            "moves",
            "state = \"maintenance\"\nmessage = \"it moves\"\nuntil = 2999-01-01T00:00:00Z",
        ),
        "[views.narrow]\nupstreams = [\"up\", \"weir\"]\ndeny = [\"*__secret\"]\n".into(),
        all.section(""),
        narrow.section("view = \"narrow\""),
        poor.section("rate = { per_second = 0.001, burst = 1 }"),
    ];
    let weir = Weir::start("", &file.concat());
    weir.ready(&["up", "other", "bare", "broke", "dry", "own", "busy", "full"]).await;
    for name in ["drain", "moves"] {
        weir.until("listed", |s| upstream(s, name)["connection"] == "ready").await;
    }
    weir.until("given up", |s| upstream(s, "gone")["state"] == "down").await;

    // What lets a call through says so, with its limits.
    let open = why(&weir, "all", "dry__ok").await;
    assert_eq!((&open["visible"], &open["callable"]), (&json!(true), &json!(true)), "{open:#}");
    let bucket = |answer: &Value| {
        let limits = answer["limits"].as_array().unwrap().clone();
        limits.into_iter().find(|l| l["key"] == "upstreams.dry.rate").unwrap()["used"].clone()
    };
    assert_eq!(bucket(&open), 0.0, "looking takes no token");

    // What each of these takes to refuse.
    fine(&weir, &all, "dry__ok").await;
    fine(&weir, &all, "own__ok").await;
    fine(&weir, &poor, "up__ok").await;
    all.call(&weir, "broke__fail", json!({})).await;
    all.call(&weir, "busy__busy", json!({})).await;
    assert!(bucket(&why(&weir, "all", "dry__ok").await).as_f64().unwrap() > 0.9);
    let (url, key) = (weir.url.clone(), all.key.clone());
    let before = up.arrived("slow");
    let slow = tokio::spawn(async move {
        modern(&url, Some(&key), "tools/call", json!({"name": "full__slow", "arguments": {}})).await
    });
    while up.arrived("slow") == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let hidden = |tool, layer| Wanted { tool, reason: "unknown_name", layer, visible: false };
    let seen = |tool, reason, layer| Wanted { tool, reason, layer, visible: true };
    let absent = |tool, reason, layer| Wanted { tool, reason, layer, visible: false };
    let mut said = Vec::new();
    for (who, wanted) in [
        (&narrow, hidden("other__ok", "view")),
        (&narrow, hidden("up__secret", "view")),
        (&all, hidden("up__filtered", "filter")),
        (&all, hidden("up__taken", "collision")),
        (&all, hidden("bad", "entry")),
        (&all, hidden("off__ok", "disabled")),
        (&all, hidden("up__none", "name")),
        (&all, hidden("nobody__ok", "name")),
        (&poor, seen("up__ok", "quota_exceeded", "quota")),
        (&all, seen("moves__ok", "maintenance", "maintenance")),
        (&all, seen("drain__ok", "upstream_draining", "maintenance")),
        (&all, absent("later__ok", "dormant", "credential")),
        (&all, absent("gone__ok", "upstream_down", "connection")),
        (&all, absent("mute__ok", "upstream_down", "catalog")),
        (&all, seen("broke__ok", "breaker_open", "breaker")),
        (&all, seen("full__ok", "queue_full", "concurrency")),
        (&all, seen("own__ok", "rate_limited", "tool_rate")),
        (&all, seen("dry__ok", "rate_limited", "rate")),
        (&all, seen("busy__ok", "throttled", "throttle")),
    ] {
        let answer = agree(&weir, who, &wanted).await;
        let refused = &answer["refused"];
        let times: Vec<_> =
            ["since", "opens_at"].into_iter().filter(|key| refused[*key].is_string()).collect();
        let key = refused["key"].as_str().unwrap_or("-");
        let line = format!("{} {}: {key} {}", wanted.tool, wanted.layer, times.join(" "));
        said.push(line.trim_end().to_owned());
    }
    slow.abort();
    insta::assert_snapshot!(said.join("\n"), @r#"
    other__ok view: views.narrow.upstreams since
    up__secret view: views.narrow.deny since
    up__filtered filter: upstreams.up.deny since
    up__taken collision: upstreams.bare.prefix
    bad entry: -
    off__ok disabled: upstreams.off.enabled since
    up__none name: -
    nobody__ok name: upstreams.nobody
    up__ok quota: consumers.poor.rate opens_at
    moves__ok maintenance: upstreams.moves.state since opens_at
    drain__ok maintenance: upstreams.drain.state since
    later__ok credential: upstreams.later since
    gone__ok connection: upstreams.gone.url since opens_at
    mute__ok catalog: - since
    broke__ok breaker: upstreams.broke.breaker.open_for since opens_at
    full__ok concurrency: upstreams.full.concurrency
    own__ok tool_rate: upstreams.own.tools."o*".rate opens_at
    dry__ok rate: upstreams.dry.rate opens_at
    busy__ok throttle: upstreams.busy.throttle.pause_max since opens_at
    "#);

    // What the system said is for operators.
    let gone = why(&weir, "all", "gone__ok").await;
    let cause = gone["refused"]["cause"].as_str().unwrap();
    assert!(cause.contains("Connection refused"), "{gone:#}");
    let told = all.ask(&weir, "gone__ok").await;
    assert!(!told.contains("cause") && !told.contains("Connection refused"), "{told}");

    // A key that is nobody's.
    let stranger = Who::new("stranger");
    let metric = refusals(&weir.metrics().await, "unauthenticated");
    let said = why(&weir, "stranger", "up__ok").await;
    assert_eq!(said["refused"]["reason"], "unauthenticated", "{said:#}");
    assert_eq!(said["refused"]["layer"], "consumer");
    let answer = stranger.call(&weir, "up__ok", json!({})).await;
    assert_eq!(reason(&answer), "unauthenticated");
    assert_eq!(refusals(&weir.metrics().await, "unauthenticated"), metric + 1.0);
    weir.logged("\"reason\":\"unauthenticated\"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_full_or_stops_says_so() {
    let up = Scripted::start(&[tool("slow", false), tool("ok", false)], |a| {
        let late = || Reply::After(Duration::from_secs(4), Box::new(a.text("done")));
        (a.tool()? == "slow").then(late)
    })
    .await;
    let who = Who::new("all");
    let file = up.section("up", "") + &who.section("");
    let mut weir = Weir::start("max_calls = 1\ndrain_timeout = \"30s\"", &file);
    weir.ready(&["up"]).await;
    let (url, key) = (weir.url.clone(), who.key.clone());
    let slow = tokio::spawn(async move {
        modern(&url, Some(&key), "tools/call", json!({"name": "up__slow", "arguments": {}})).await
    });
    while up.arrived("slow") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let wanted = Wanted { tool: "up__ok", reason: "overloaded", layer: "capacity", visible: true };
    let said = agree(&weir, &who, &wanted).await;
    assert_eq!(said["refused"]["key"], "gateway.max_calls");

    let (url, admin) = (weir.url.clone(), weir.admin.clone());
    let stopping = tokio::task::spawn_blocking(move || {
        weir.stop();
        weir
    });
    while get(&format!("{admin}/readyz")).await.0 != 503 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let body = get(&format!("{admin}/why?consumer=all&tool=up__ok")).await.1;
    let said: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(said["refused"]["reason"], "draining", "{said:#}");
    assert_eq!((&said["refused"]["layer"], &said["visible"]), (&json!("gateway"), &json!(true)));
    assert!(said["refused"]["since"].is_string(), "{said:#}");
    let metric = refusals(&get(&format!("{admin}/metrics")).await.1, "draining");
    let params = json!({"name": "up__ok", "arguments": {}});
    let answer = modern(&url, Some(&who.key), "tools/call", params).await.answer();
    assert_eq!(reason(&answer), "draining", "{answer}");
    assert_eq!(refusals(&get(&format!("{admin}/metrics")).await.1, "draining"), metric + 1.0);
    assert_eq!(reason(&slow.await.unwrap().answer()), "");
    let weir = stopping.await.unwrap();
    assert!(lines(&weir, "draining") > 0, "{}", weir.log());
}

/// Whether a file in the folder has this text.
fn holds(dir: &std::path::Path, text: &str) -> bool {
    std::fs::read_dir(dir).is_ok_and(|files| {
        files.flatten().map(|f| f.path()).any(|path| {
            if path.is_dir() {
                holds(&path, text)
            } else {
                std::fs::read_to_string(path).is_ok_and(|file| file.contains(text))
            }
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_was_seen_before_is_called_what_it_is() {
    let away = Arc::new(AtomicBool::new(false));
    let gone = away.clone();
    let up = Scripted::start(&[tool("ok", false)], move |_| {
        gone.load(Ordering::Relaxed).then(|| Reply::Http(500, vec![], String::new()))
    })
    .await;
    let who = Who::new("all");
    let file = up.section("up", "") + &who.section("");
    let weir = Weir::start("", &file);
    weir.ready(&["up"]).await;
    let kept = weir.dir.path().join("state");
    let end = std::time::Instant::now() + harness::PATIENCE;
    while !holds(&kept, "readOnlyHint") {
        assert!(std::time::Instant::now() < end, "no catalog is kept");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    away.store(true, Ordering::Relaxed);
    let weir = weir.again("", &file, &[]);
    weir.until("given up", |s| upstream(s, "up")["state"] == "down").await;
    let wanted =
        Wanted { tool: "up__ok", reason: "upstream_down", layer: "connection", visible: true };
    let said = agree(&weir, &who, &wanted).await;
    let note = said["notes"][0].as_str().unwrap();
    assert!(note.starts_with("up is listed as it was last seen, since "), "{said:#}");
    assert_eq!(said["refused"]["key"], "upstreams.up.url");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_cannot_tell_what_is_hidden_from_what_is_not_there() {
    let up = Scripted::fine(&["seen", "hide", "deny"]).await;
    let other = Scripted::fine(&["tool"]).await;
    let who = Who::new("narrow");
    let file = [
        up.section("up", "deny = [\"deny\"]"),
        other.section("far", ""),
        other.section("off", "enabled = false"),
        "[upstreams.dead]\nurl = \"http://127.0.0.1:9/mcp\"\n".into(),
        "[views.narrow]\nupstreams = [\"up\", \"weir\"]\ndeny = [\"*__hide\"]\n".into(),
        who.section("view = \"narrow\""),
    ];
    let weir = Weir::start("", &file.concat());
    weir.ready(&["up", "far"]).await;
    let known = who.ask(&weir, "up__seen").await;
    assert!(known.contains("\"callable\": true"), "{known}");
    let unknown = who.ask(&weir, "up__none").await;
    for hidden in ["up__hide", "up__deny", "far__tool", "off__tool", "dead__tool", "none__tool"] {
        let said = who.ask(&weir, hidden).await;
        assert_eq!(said.replace(hidden, "up__none"), unknown, "{hidden}");
    }
    for told in ["far", "narrow.deny", "views.", "filter", "disabled"] {
        assert!(!unknown.contains(told), "{unknown}");
    }
    // Without the argument it says what it needs.
    let answer = who.call(&weir, "weir__why", json!({})).await;
    assert_eq!(answer["result"]["isError"], true, "{answer}");
}

async fn command(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(args).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_asks_the_gateway_that_runs() {
    let up = Scripted::fine(&["find"]).await;
    let section = up.section(
        "crm",
        "state = \"maintenance\"\nmessage = \"it moves\"\nuntil = 2999-01-01T00:00:00Z",
    );
    let weir = Weir::start("", &section);
    weir.until("listed", |s| upstream(s, "crm")["connection"] == "ready").await;
    let admin = weir.admin.trim_start_matches("http://").to_owned();
    let run = async |args: &[&str]| {
        let args: Vec<_> =
            ["why", "--admin", &admin].into_iter().chain(args.iter().copied()).collect();
        let output = command(&args).await;
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text, String::from_utf8(output.stderr).unwrap())
    };
    let (code, text, _) = run(&["anonymous", "crm__find"]).await;
    assert_eq!(code, Some(1));
    let since: Vec<_> = text.lines().filter(|l| l.trim().starts_with("since")).collect();
    assert_eq!(since.len(), 1, "{text}");
    insta::assert_snapshot!(text.replace(since[0], "  since    NOW"), @r#"
    anonymous sees crm__find and cannot call it
      reason   maintenance (decided by: maintenance)
      why      it is under maintenance: it moves
      since    NOW
      opens    2999-01-01T00:00:00Z
      key      upstreams.crm.state
      remedy   wait; or set upstreams.crm.state = "active"
      tool     "find" of crm, may write: repeated only under an idempotency key, if it has one
      time     60 s for a call
      limits   gateway.max_calls                    0 of 4096 calls under way
               upstreams.crm.breaker.consecutive    0 of 5 failures in a row
               upstreams.crm.breaker.failure_share  0 of 0 calls failed in 30s; opens at 0.5 of at least 10
               upstreams.crm.breaker.slow_share     0 of 0 calls were slow in 30s; opens at 0.8 of at least 10
               upstreams.crm.concurrency.max        0 of 16 places taken
               upstreams.crm.concurrency.queue      0 of 64 wait for a place
    "#);
    let (_, body, _) = run(&["anonymous", "crm__find", "--json"]).await;
    let said: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(said["refused"]["reason"], "maintenance");
    let (code, text, _) = run(&["anonymous", "weir__status"]).await;
    assert_eq!((code, text.starts_with("anonymous can call weir__status\n")), (Some(0), true));
    let (code, text, _) = run(&["nobody", "crm__find"]).await;
    assert_eq!(code, Some(1));
    insta::assert_snapshot!(text.lines().filter(|l| !l.contains("since")).collect::<Vec<_>>().join("\n"), @r#"
    nobody does not see crm__find
      reason   unauthenticated (decided by: consumer)
      why      there is no consumer "nobody"; there are: anonymous
      key      consumers.nobody
      remedy   ask for "anonymous", who everybody is while no consumers are configured
    "#);
    let (_, text, _) = run(&["anonymous", "find"]).await;
    assert!(text.contains("did you mean crm__find?"), "{text}");

    // Where the file says that the gateway listens; and where nobody does.
    let path = weir.dir.path().join("asked.toml");
    let file = std::fs::read_to_string(weir.config_path()).unwrap();
    let told = file
        .replace("[admin]\nlisten = \"127.0.0.1:0\"", &format!("[admin]\nlisten = \"{admin}\""));
    std::fs::write(&path, &told).unwrap();
    let by_file = |path: &std::path::Path| {
        let path = path.display().to_string();
        async move { command(&["why", "anonymous", "crm__find", "--config", &path]).await }
    };
    let output = by_file(&path).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    std::fs::write(&path, told.replace(&admin, "127.0.0.1:9")).unwrap();
    let output = by_file(&path).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("no gateway answers at 127.0.0.1:9"), "{said}");
    std::fs::write(&path, told.replace(&format!("\"{admin}\""), "\"off\"")).unwrap();
    let output = by_file(&path).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    // The listener says how it wants to be asked.
    let (status, said) = get(&format!("{}/why?tool=x", weir.admin)).await;
    assert_eq!((status, said.starts_with("ask with ?consumer=")), (400, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_may_be_called_weir_where_the_gateways_own_tools_are_off() {
    let up = Scripted::fine(&["why", "mine"]).await;
    let weir = Weir::start("builtin = false", &up.section("weir", ""));
    weir.ready(&["weir"]).await;
    for tool in ["weir__mine", "weir__why"] {
        let answer = harness::call(&weir.url, tool, json!({})).await;
        assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}");
        assert_eq!(why(&weir, "anonymous", tool).await["callable"], true);
    }
}
