//! An upstream that gets no calls for a while.

use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, call, reason, tool_names, upstream};
use crate::{acting, over, reasons, text, until};

fn in_seconds(seconds: u64) -> String {
    let at = SystemTime::now() + Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(at).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_takes_no_new_calls_and_maintenance_none_that_has_not_left() {
    let up = Scripted::start(&[tool("slow", false), tool("ok", false)], |a| {
        let late = || Reply::After(Duration::from_secs(6), Box::new(a.text("done")));
        (a.tool()? == "slow").then(late)
    })
    .await;
    for (state, word, waiter) in
        [("draining", "upstream_draining", ""), ("maintenance", "maintenance", "maintenance")]
    {
        let more = "concurrency = { max = 1, queue = 9 }\n";
        let weir = over(&up, "", more).await;
        let before = upstream(&weir.status().await, "up").clone();
        let arrived = up.arrived("slow");
        let url = weir.url.clone();
        let under_way = tokio::spawn(async move { call(&url, "up__slow", json!({})).await });
        until("under way", || up.arrived("slow") > arrived).await;
        let url = weir.url.clone();
        let in_line = tokio::spawn(async move { call(&url, "up__ok", json!({})).await });
        weir.until("one waits", |s| upstream(s, "up")["queued"] == 1).await;
        weir.rewrite("", &up.section("up", &format!("{more}state = \"{state}\"\n")));
        let status = weir.until("taken", |s| upstream(s, "up")["state"] == state).await;
        assert_eq!(reasons(&weir, &["ok"]).await, [word]);
        // Who has left gets its answer; who waits in line does while draining.
        assert_eq!(text(&under_way.await.unwrap()), "done", "{state}");
        assert_eq!(reason(&in_line.await.unwrap()), waiter, "{state}");
        // The connection is the one that was there, and so are the tools.
        let now = upstream(&status, "up");
        assert_eq!((&now["connection"], &now["restarts"]), (&json!("ready"), &before["restarts"]));
        assert!(tool_names(&weir.url, None).await.contains(&"up__ok".to_owned()));
        assert_eq!(now["breaker"], "closed");
        let metrics = weir.metrics().await;
        for (other, on) in [("draining", state == "draining"), ("maintenance", state != "draining")]
        {
            let line = format!("weir_upstream_upkeep{{upstream=\"up\",state=\"{other}\"}}");
            assert!(metrics.contains(&format!("{line} {}\n", u8::from(on))), "{metrics}");
        }
        weir.rewrite("", &up.section("up", &format!("{more}state = \"active\"\n")));
        weir.until("active again", |s| upstream(s, "up")["state"] == "ready").await;
        assert_eq!(reasons(&weir, &["ok"]).await, [""]);
        weir.logged("up takes calls again").await;
    }
    assert_eq!(up.asked("initialize"), 2, "one connection for each gateway");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_message_reaches_agents_and_operators() {
    let up = acting().await;
    for message in [None, Some("the vendor moves our site")] {
        let line = message.map(|m| format!("message = {m:?}\n")).unwrap_or_default();
        let weir = Weir::start("", &up.section("up", &format!("state = \"maintenance\"\n{line}")));
        weir.until("there", |s| upstream(s, "up")["connection"] == "ready").await;
        let answer = call(&weir.url, "up__ok", json!({})).await;
        assert_eq!(reason(&answer), "maintenance", "{answer}");
        let told = text(&answer).to_owned();
        let wanted = match message {
            None => "up: it is under maintenance (reason: maintenance)",
            Some(_) => {
                "up: it is under maintenance: the vendor moves our site (reason: maintenance)"
            }
        };
        assert_eq!(told, wanted);
        assert_eq!(upstream(&weir.status().await, "up")["message"], json!(message));
        let own = call(&weir.url, "weir__status", json!({})).await;
        assert_eq!(text(&own).contains("the vendor moves our site"), message.is_some());
        // No process was asked, and nothing counts as a failure of it.
        assert_eq!(up.arrived("ok"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn until_ends_it_and_is_told() {
    let up = acting().await;
    let far = in_seconds(7200);
    // As a string and as TOML's own.
    for written in [format!("{far:?}"), far.clone()] {
        let section = format!("state = \"maintenance\"\nuntil = {written}\n");
        let weir = Weir::start("", &up.section("up", &section));
        weir.until("there", |s| upstream(s, "up")["connection"] == "ready").await;
        let answer = call(&weir.url, "up__ok", json!({})).await;
        let data = &answer["result"]["_meta"]["io.weirkeeper/failure"];
        assert_eq!((data["until"].as_str(), &data["retryable"]), (Some(&*far), &json!(true)));
        let after = data["retryAfterMs"].as_u64().unwrap();
        assert!((7_000_000..=7_200_000).contains(&after), "{after}");
        assert!(text(&answer).contains(&format!("until {far}")), "{answer}");
        assert_eq!(upstream(&weir.status().await, "up")["until"], *far);
    }
    // It passes by itself, and one that has passed already never begins.
    let soon = format!("state = \"draining\"\nuntil = {}\n", in_seconds(3));
    let weir = Weir::start("", &up.section("up", &soon));
    assert_eq!(reasons(&weir, &["ok"]).await, ["upstream_draining"]);
    weir.ready(&["up"]).await;
    assert_eq!(reasons(&weir, &["ok"]).await, [""]);
    weir.logged("up takes calls again: the time until which it was not to has passed").await;
    let past = "state = \"maintenance\"\nuntil = 2020-01-01T00:00:00+02:00\n";
    let weir = over(&up, "", past).await;
    assert_eq!(reasons(&weir, &["ok"]).await, [""]);
}
