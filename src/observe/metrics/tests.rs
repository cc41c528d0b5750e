//! A scrape after everything that can happen, and after what must not.

// Counts are whole numbers, which f64 holds exactly.
#![allow(clippy::unwrap_used, clippy::float_cmp)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::observe::record::{Outcome, Record};
use crate::observe::{Observe, trace::Tracer};

use super::*;

fn name(text: &str) -> Arc<str> {
    text.into()
}

fn names(texts: &[&str]) -> Vec<Arc<str>> {
    texts.iter().map(|t| name(t)).collect()
}

/// The value of each sample, by its line up to the value.
fn samples(page: &str) -> BTreeMap<&str, f64> {
    page.lines()
        .filter(|l| !l.starts_with('#'))
        .map(|l| l.rsplit_once(' ').unwrap())
        .map(|(series, value)| (series, value.parse().unwrap()))
        .collect()
}

fn facts() -> UpstreamFacts {
    UpstreamFacts {
        name: name("stripe"),
        up: Some(true),
        in_flight: 3,
        queued: 2,
        breaker: BreakerState::Open,
        upkeep: Some(crate::config::upkeep::UpkeepState::Draining),
        catalog: vec![CatalogFacts { kind: "tools", entries: 7, bytes: 900 }],
        catalog_age: Some(Duration::from_millis(1500)),
        catalog_dropped: 4,
        incarnation: 1,
        totals: Totals {
            restarts: 1,
            cpu_ms: 1500,
            memory_restarts: 2,
            stdout_noise: 2,
            stderr_dropped_bytes: 3,
            unmatched_answers: 4,
            received_bytes: 5,
            sent_bytes: 6,
            dropped: [1, 2, 3, 4, 5],
            hedges: [3, 1],
            breaker_to: [7, 8, 9],
        },
        child: Some(ChildFacts {
            children: 1,
            processes: 2,
            resident: 3,
            uptime: Some(Duration::from_secs(4)),
            idle: Some(true),
        }),
        replicas: vec![ReplicaFacts {
            number: 2,
            up: true,
            ejected: true,
            in_flight: 1,
            calls: 9,
            failures: 4,
            ejections: 1,
        }],
    }
}

/// Does everything that any series counts.
fn everything(observe: &Arc<Observe>) -> String {
    let metrics = &observe.metrics;
    let series = metrics.upstream(&name("stripe"), &names(&["stripe__create_refund"]));
    for outcome in Outcome::all() {
        let mut record =
            Record::open(observe, &name("sales"), "tools/call", "http", "2026-07-28", None);
        record.route(&series, Some("stripe__create_refund"));
        record.spent(Duration::ZERO, Duration::from_millis(500), 2);
        if outcome == Outcome::Fault(Reason::ConnectionLost) {
            record.unknown();
        }
        record.finish(outcome);
    }
    metrics.refused(Reason::Unauthenticated);
    metrics.unread_dropped(2);
    metrics.reloaded(true);
    metrics.reloaded(false);
    for why in ConnectionRefusal::ALL {
        metrics.connection_refused(why);
    }
    for trouble in Trouble::ALL {
        metrics.config_trouble(trouble);
    }
    metrics.notices_dropped(5);
    metrics.render(&Gathered {
        tasks: 6,
        rolled_back: 1,
        on_last_good: true,
        upstreams: vec![facts()],
        sessions: 1,
        streams: 2,
        connections: 3,
        log_lines_dropped: 4,
        spans_dropped: 5,
    })
}

fn quiet() -> Arc<Observe> {
    Arc::new(Observe::quiet())
}

#[test]
fn places_follow_the_order_of_the_lists() {
    for (at, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, at);
    }
    for (at, outcome) in Outcome::all().enumerate() {
        assert_eq!(outcome.index(), at);
    }
    assert_eq!(Outcome::all().count(), Outcome::COUNT);
    for (at, why) in ConnectionRefusal::ALL.into_iter().enumerate() {
        assert_eq!(why as usize, at);
    }
    for (at, trouble) in Trouble::ALL.into_iter().enumerate() {
        assert_eq!(trouble as usize, at);
        assert!(Reason::ALL.iter().all(|reason| reason.as_str() != trouble.as_str()));
    }
}

#[test]
fn every_series_is_moved_by_something() {
    let observe = quiet();
    let before = observe.metrics.render(&Gathered::default());
    let after = everything(&observe);
    let (before, after) = (samples(&before), samples(&after));
    // These are what they are from the first scrape on.
    let constant =
        ["weir_build_info", "weir_process_resident_memory_bytes", "weir_process_open_fds"];
    for family in Metrics::families() {
        for series in family.names() {
            let of = |page: &BTreeMap<&str, f64>| -> Vec<(String, f64)> {
                page.iter()
                    .filter(|(k, _)| k.split('{').next() == Some(&series))
                    .map(|(k, v)| ((*k).to_owned(), *v))
                    .collect()
            };
            assert!(
                of(&after).iter().any(|(_, v)| *v != 0.0) || series.contains("successful"),
                "{series} has no value"
            );
            // The time of the last reload has whole seconds and may fall into that of the start.
            if !constant.contains(&&*series) && !series.ends_with("timestamp_seconds") {
                assert_ne!(of(&before), of(&after), "nothing moves {series}");
            }
        }
    }
}

#[test]
fn names_are_declared_once_and_well_formed() {
    let mut seen = BTreeSet::new();
    for family in Metrics::families() {
        assert!(seen.insert(family.name), "{} stands twice", family.name);
        assert!(family.name.starts_with("weir_"));
        assert!(family.help.trim().ends_with('.'), "{}", family.name);
        assert_eq!(
            family.name.ends_with("_total"),
            family.kind == Kind::Counter,
            "{}",
            family.name
        );
    }
}

#[test]
fn all_series_as_a_scrape_sees_them() {
    let page = everything(&quiet());
    let heads: Vec<_> = page
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE ").or_else(|| l.strip_prefix("# HELP ")))
        .collect();
    insta::assert_snapshot!(heads.join("\n"), @r"
    weir_breaker_state The breaker: 0 closed, 1 probing, 2 open.
    weir_breaker_state gauge
    weir_breaker_transitions_total Times the breaker went into a state.
    weir_breaker_transitions_total counter
    weir_build_info Always 1; the version is in the label.
    weir_build_info gauge
    weir_call_duration_seconds Time from a call's arrival to its end, waiting included. Refused calls are not in it: they end at once and would hide the others.
    weir_call_duration_seconds histogram
    weir_calls_in_flight Calls under way.
    weir_calls_in_flight gauge
    weir_calls_total Calls that ended, by upstream, method, outcome and, unless all went well, the reason.
    weir_calls_total counter
    weir_catalog_age_seconds Time since the upstream last confirmed what it offers.
    weir_catalog_age_seconds gauge
    weir_catalog_bytes Bytes of the catalog's entries.
    weir_catalog_bytes gauge
    weir_catalog_dropped_entries Entries that the upstream offers and the catalog leaves out: too many, or a name that is taken.
    weir_catalog_dropped_entries gauge
    weir_catalog_entries Entries of the catalog.
    weir_catalog_entries gauge
    weir_config_last_reload_success_timestamp_seconds Unix time of the last reload that took effect, or of the start.
    weir_config_last_reload_success_timestamp_seconds gauge
    weir_config_last_reload_successful Whether the last reload took effect; 1 from the start on.
    weir_config_last_reload_successful gauge
    weir_config_on_last_good Whether the last good configuration is in force because the file was broken at the start.
    weir_config_on_last_good gauge
    weir_config_reloads_total Reloads of the configuration that took effect (`ok`) or were refused (`failed`).
    weir_config_reloads_total counter
    weir_config_rolled_back_upstreams Upstreams whose changed form did not start and was given up: their old form serves on.
    weir_config_rolled_back_upstreams gauge
    weir_config_troubles_total Times that the file was not taken as it stands, by the reason that the log line and `/status` have too.
    weir_config_troubles_total counter
    weir_connections Open connections of clients.
    weir_connections gauge
    weir_connections_refused_total Connections that were closed on accept.
    weir_connections_refused_total counter
    weir_hedges_total Second attempts beside a slow first one (`hedge_after`) whose call ended: their answer was the first (`won`) or not (`lost`).
    weir_hedges_total counter
    weir_limiter_wait_seconds_total Time that calls waited for the rate limit.
    weir_limiter_wait_seconds_total counter
    weir_limiter_waits_total Calls that waited for the rate limit.
    weir_limiter_waits_total counter
    weir_log_lines_dropped_total Log lines that were dropped because stderr was not read fast enough.
    weir_log_lines_dropped_total counter
    weir_notices_dropped_total Notices for clients that did not read them fast enough.
    weir_notices_dropped_total counter
    weir_process_open_fds Open file descriptors of the gateway's process.
    weir_process_open_fds gauge
    weir_process_resident_memory_bytes Memory of the gateway's process that is in RAM, children not included.
    weir_process_resident_memory_bytes gauge
    weir_process_tasks Tasks of the gateway that have not ended: connections, streams, upstreams and what they do.
    weir_process_tasks gauge
    weir_queue_depth Calls that wait because as many as allowed are under way.
    weir_queue_depth gauge
    weir_received_bytes_total Bytes received from an upstream.
    weir_received_bytes_total counter
    weir_refusals_total Calls that the gateway itself said no to. The upstream never saw them.
    weir_refusals_total counter
    weir_replica_calls_in_flight Calls under way at the replica.
    weir_replica_calls_in_flight gauge
    weir_replica_calls_total Attempts of calls that were made at the replica.
    weir_replica_calls_total counter
    weir_replica_ejected Whether the replica gets no calls for a while, because it failed.
    weir_replica_ejected gauge
    weir_replica_ejections_total Times the replica was left out for a while.
    weir_replica_ejections_total counter
    weir_replica_failures_total Of these, those in which the replica failed.
    weir_replica_failures_total counter
    weir_replica_up Whether the replica is connected. Replicas are numbered from 1, in the order of `urls`.
    weir_replica_up gauge
    weir_retries_total Attempts besides the first, of calls that may be repeated.
    weir_retries_total counter
    weir_sent_bytes_total Bytes sent to an upstream.
    weir_sent_bytes_total counter
    weir_sessions Sessions of clients of the older revisions.
    weir_sessions gauge
    weir_spans_dropped_total Spans that were dropped because the collector was slow or gone.
    weir_spans_dropped_total counter
    weir_streams Open notification streams.
    weir_streams gauge
    weir_tool_call_duration_seconds The same, by tool as the agents see it; `_other` for tools beyond 2000 of one upstream.
    weir_tool_call_duration_seconds histogram
    weir_unknown_outcomes_total Calls that may have taken effect although they have no answer: of each the agent was told so.
    weir_unknown_outcomes_total counter
    weir_unread_responses_total Answers and streams that were given up because the client did not read them.
    weir_unread_responses_total counter
    weir_upstream_children Child processes that run for an upstream: one, and one for each conversation that can ask back.
    weir_upstream_children gauge
    weir_upstream_cpu_seconds_total Processor time of these processes and of those before them, as last seen of each.
    weir_upstream_cpu_seconds_total counter
    weir_upstream_dropped_messages_total Messages from or to an upstream that were dropped, and why.
    weir_upstream_dropped_messages_total counter
    weir_upstream_idle Whether the upstream's process is stopped because nobody uses it; only where idle_stop is set.
    weir_upstream_idle gauge
    weir_upstream_memory_restarts_total Children that were ended because they used more memory than memory_max.
    weir_upstream_memory_restarts_total counter
    weir_upstream_processes Processes of an upstream's children: the programs and all that they started.
    weir_upstream_processes gauge
    weir_upstream_resident_memory_bytes Memory of these processes that is in RAM. What they share counts in each.
    weir_upstream_resident_memory_bytes gauge
    weir_upstream_restarts_total Times the upstream's process was started again, or its endpoint connected to again. A session that it ended and that was renewed does not count.
    weir_upstream_restarts_total counter
    weir_upstream_stderr_dropped_bytes_total Bytes of an upstream's stderr that were not relayed to the log.
    weir_upstream_stderr_dropped_bytes_total counter
    weir_upstream_stdout_noise_total Lines on an upstream's stdout, frames and events that were no message.
    weir_upstream_stdout_noise_total counter
    weir_upstream_unmatched_answers_total Answers of an upstream to no request that was waiting.
    weir_upstream_unmatched_answers_total counter
    weir_upstream_up Whether the upstream is connected. One without a credential, or stopped while nobody uses it, is not meant to be, and absent.
    weir_upstream_up gauge
    weir_upstream_upkeep Whether the upstream's operators let no calls through (`state` in the file): none that are new (`draining`), or none at all (`maintenance`).
    weir_upstream_upkeep gauge
    weir_upstream_uptime_seconds How long the oldest child of an upstream has been running.
    weir_upstream_uptime_seconds gauge
    ");
}

#[test]
fn one_call_as_a_scrape_sees_it() {
    let metrics = Metrics::new();
    let series = metrics.upstream(&name("stripe"), &names(&["stripe__get_balance"]));
    series.ended("tools/call", Outcome::Ok, Duration::from_millis(20));
    series.ended("tools/call", Outcome::Fault(Reason::TooLarge), Duration::from_millis(700));
    series.tool("stripe__get_balance").ended(Duration::from_millis(20));
    let page = metrics.render(&Gathered::default());
    let lines: Vec<_> = page
        .lines()
        .filter(|l| l.starts_with("weir_calls_total") || l.starts_with("weir_tool"))
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    weir_calls_total{upstream="stripe",method="tools/call",outcome="ok",reason=""} 1
    weir_calls_total{upstream="stripe",method="tools/call",outcome="fault",reason="too_large"} 1
    weir_tool_call_duration_seconds_bucket{upstream="stripe",tool="stripe__get_balance",le="0.05"} 1
    weir_tool_call_duration_seconds_bucket{upstream="stripe",tool="stripe__get_balance",le="0.25"} 1
    weir_tool_call_duration_seconds_bucket{upstream="stripe",tool="stripe__get_balance",le="1"} 1
    weir_tool_call_duration_seconds_bucket{upstream="stripe",tool="stripe__get_balance",le="5"} 1
    weir_tool_call_duration_seconds_bucket{upstream="stripe",tool="stripe__get_balance",le="30"} 1
    weir_tool_call_duration_seconds_bucket{upstream="stripe",tool="stripe__get_balance",le="+Inf"} 1
    weir_tool_call_duration_seconds_sum{upstream="stripe",tool="stripe__get_balance"} 0.02
    weir_tool_call_duration_seconds_count{upstream="stripe",tool="stripe__get_balance"} 1
    "#);
}

#[test]
fn what_left_the_catalog_leaves_the_metrics() {
    let metrics = Metrics::new();
    let up = name("stripe");
    let series = metrics.upstream(&up, &names(&["a", "b"]));
    let held = series.tool("b");
    held.ended(Duration::from_millis(1));
    series.tool("a").ended(Duration::from_millis(1));
    // The names change; what stays keeps its count, and an old handle brings nothing back.
    let again = metrics.upstream(&up, &names(&["a", "c"]));
    assert!(Arc::ptr_eq(&series, &again));
    held.ended(Duration::from_millis(1));
    let page = metrics.render(&Gathered::default());
    let counts = samples(&page);
    assert_eq!(counts[r#"weir_tool_call_duration_seconds_count{upstream="stripe",tool="a"}"#], 1.0);
    assert!(!page.contains(r#"tool="b""#));

    metrics.retain_upstreams(&names(&["twilio"]));
    series.ended("tools/call", Outcome::Ok, Duration::from_millis(1));
    assert!(
        !metrics
            .render(&Gathered { upstreams: vec![facts()], ..Gathered::default() })
            .contains("stripe")
    );
}

#[test]
fn tool_labels_come_from_the_catalog_only_and_are_bounded() {
    let metrics = Metrics::new();
    let many: Vec<Arc<str>> = (0..TOOLS_MAX + 5).map(|n| format!("t{n}").into()).collect();
    let series = metrics.upstream(&name("big"), &many);
    for tool in &many {
        series.tool(tool).ended(Duration::from_millis(1));
    }
    series.tool("invented \"by\" a client").ended(Duration::from_millis(1));
    let page = metrics.render(&Gathered::default());
    let counts = samples(&page);
    let tools = counts.keys().filter(|k| k.starts_with("weir_tool_call_duration_seconds_count"));
    assert_eq!(tools.count(), TOOLS_MAX + 1);
    assert_eq!(
        counts[r#"weir_tool_call_duration_seconds_count{upstream="big",tool="_other"}"#],
        6.0
    );
    assert!(!page.contains("invented"));
}

#[test]
fn methods_beyond_the_table_share_a_label() {
    let metrics = Metrics::new();
    metrics.nobody().ended(OTHER, Outcome::Refused(Reason::UnknownMethod), Duration::ZERO);
    metrics.nobody().ended("made/up", Outcome::Refused(Reason::UnknownMethod), Duration::ZERO);
    let page = metrics.render(&Gathered::default());
    let line = r#"weir_calls_total{upstream="_none",method="_other",outcome="refused",reason="unknown_method"}"#;
    assert_eq!(samples(&page)[line], 2.0);
    // Refused calls have no duration to speak of.
    assert!(!page.contains("weir_call_duration_seconds_count"));
}

#[test]
fn totals_go_on_when_an_upstream_is_made_anew() {
    let metrics = Metrics::new();
    metrics.upstream(&name("stripe"), &[]);
    let mut seen = facts();
    let mut restarts = |incarnation, count| {
        seen.incarnation = incarnation;
        seen.totals.restarts = count;
        let gathered = Gathered { upstreams: vec![seen.clone()], ..Gathered::default() };
        samples(&metrics.render(&gathered))[r#"weir_upstream_restarts_total{upstream="stripe"}"#]
    };
    assert_eq!(restarts(1, 5), 5.0);
    assert_eq!(restarts(2, 0), 5.0);
    assert_eq!(restarts(2, 9), 14.0);
    assert_eq!(restarts(1, 5), 14.0);
    metrics.settle("stripe", 2, Totals { restarts: 10, ..Totals::default() });
    let gathered = Gathered {
        upstreams: vec![UpstreamFacts { incarnation: 3, totals: Totals::default(), ..facts() }],
        ..Gathered::default()
    };
    let page = metrics.render(&gathered);
    assert_eq!(samples(&page)[r#"weir_upstream_restarts_total{upstream="stripe"}"#], 15.0);
}

#[test]
fn a_dormant_upstream_is_not_down() {
    let metrics = Metrics::new();
    metrics.upstream(&name("stripe"), &[]);
    for (up, told) in [(None, None), (Some(false), Some(&0.0)), (Some(true), Some(&1.0))] {
        let upstreams = vec![UpstreamFacts { up, ..facts() }];
        let page = metrics.render(&Gathered { upstreams, ..Gathered::default() });
        assert_eq!(samples(&page).get(r#"weir_upstream_up{upstream="stripe"}"#), told);
    }
}

#[test]
fn a_refused_reload_shows_and_the_next_good_one_clears_it() {
    let metrics = Metrics::new();
    let ok =
        || samples(&metrics.render(&Gathered::default()))["weir_config_last_reload_successful"];
    assert_eq!(ok(), 1.0);
    metrics.reloaded(false);
    assert_eq!(ok(), 0.0);
    metrics.reloaded(true);
    assert_eq!(ok(), 1.0);
}

#[test]
fn what_log_and_tracer_dropped_is_put_in() {
    let observe = Observe::new(Tracer::off(), None);
    let page = observe.render(Gathered { log_lines_dropped: 99, ..Gathered::default() });
    assert_eq!(samples(&page)["weir_log_lines_dropped_total"], 0.0);
    assert_eq!(samples(&page)["weir_spans_dropped_total"], 0.0);
}

#[test]
fn a_label_value_cannot_break_out_of_its_quotes() {
    let metrics = Metrics::new();
    let odd = "a\"b\\c\nd";
    metrics.upstream(&name("up"), &names(&[odd])).tool(odd).ended(Duration::ZERO);
    let page = metrics.render(&Gathered::default());
    assert!(page.contains(r#"tool="a\"b\\c\nd""#));
}
