//! The samples in deploy/ name only what exists.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use serde_json::Value;
use weirkeeper::config::{Config, LogFormat};
use weirkeeper::failure::Reason;
use weirkeeper::observe::metrics::{Kind, Metrics};
use weirkeeper::shim;
use yaml_rust2::{Yaml, YamlLoader};

const DASHBOARD: &str = include_str!("../deploy/grafana/weir.json");
const ALERTS: &str = include_str!("../deploy/prometheus/alerts.yaml");
const PROMETHEUS: &str = include_str!("../deploy/prometheus/prometheus.yaml");
const COMPOSE: &str = include_str!("../deploy/compose.yaml");
const KUBERNETES: &str = include_str!("../deploy/kubernetes.yaml");
const DOCKERFILE: &str = include_str!("../deploy/Dockerfile");
const SERVICE: &str = include_str!("../deploy/weir.service");
const SOCKET: &str = include_str!("../deploy/weir.socket");

/// Every series with the labels that it may be selected by.
fn labels(series: &str) -> Option<BTreeSet<&'static str>> {
    let family =
        Metrics::families().iter().find(|f| f.names().iter().any(|name| name == series))?;
    let mut labels: BTreeSet<_> = family.labels.iter().copied().collect();
    if family.kind == Kind::Histogram {
        labels.insert("le");
    }
    Some(labels)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The words of a query that begin with `weir_`, each with the text behind it.
fn series(query: &str) -> Vec<(&str, &str)> {
    let mut out = Vec::new();
    for (at, _) in query.match_indices("weir_") {
        if query[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let rest = &query[at..];
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        out.push((&rest[..end], &rest[end..]));
    }
    out
}

/// The matchers of a selector's text: label and value.
fn matchers(behind: &str) -> Vec<(&str, &str)> {
    let Some(inner) = behind.strip_prefix('{').and_then(|b| b.split('}').next()) else {
        return Vec::new();
    };
    let mut out = Vec::new();
    let mut rest = inner.trim();
    while !rest.is_empty() {
        let end = rest.find(|c| !is_word(c)).unwrap();
        let (label, tail) = rest.split_at(end);
        let (_operator, tail) = tail.split_once('"').unwrap();
        let (value, tail) = tail.split_once('"').unwrap();
        out.push((label, value));
        rest = tail.trim_start_matches([',', ' ']);
    }
    out
}

/// Everything wrong with a query.
fn wrong(query: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (name, behind) in series(query) {
        let Some(labels) = labels(name) else {
            out.push(format!("{name} is not declared in metrics.rs"));
            continue;
        };
        for (label, value) in matchers(behind) {
            if !labels.contains(label) {
                out.push(format!("{name} has no label {label}"));
            }
            let reasons: Vec<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
            for word in value.split('|').filter(|_| label == "reason") {
                if !word.is_empty() && !reasons.contains(&word) {
                    out.push(format!("{word} is no reason"));
                }
            }
        }
    }
    out
}

fn dashboard_queries() -> Vec<String> {
    fn walk(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    if let (true, Value::String(text)) =
                        (["expr", "definition", "query"].contains(&key.as_str()), value)
                    {
                        out.push(text.clone());
                    }
                    walk(value, out);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, out)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk(&serde_json::from_str(DASHBOARD).unwrap(), &mut out);
    out
}

fn rules() -> Vec<Yaml> {
    let mut docs = YamlLoader::load_from_str(ALERTS).unwrap();
    let groups = docs.remove(0)["groups"].clone().into_vec().unwrap();
    groups.into_iter().flat_map(|g| g["rules"].clone().into_vec().unwrap()).collect()
}

#[test]
fn the_check_sees_what_is_wrong() {
    assert_eq!(
        wrong("rate(weir_call_total[5m])"),
        ["weir_call_total is not declared in metrics.rs"]
    );
    // A histogram has no series of its own name.
    assert_eq!(wrong("weir_call_duration_seconds").len(), 1);
    assert_eq!(wrong(r#"weir_calls_total{who="x"}"#), ["weir_calls_total has no label who"]);
    assert_eq!(wrong(r#"weir_calls_total{a="x", reason=~"garbled|tired"}"#).len(), 2);
    assert!(wrong(r#"weir_call_duration_seconds_bucket{upstream=~"$u", le="1"}"#).is_empty());
}

#[test]
fn the_dashboard_names_only_declared_series() {
    let queries = dashboard_queries();
    assert!(queries.len() > 40, "{} queries found", queries.len());
    for query in queries {
        assert_eq!(wrong(&query), Vec::<String>::new(), "{query}");
    }
}

#[test]
fn every_series_is_on_the_dashboard() {
    let all = dashboard_queries().join("\n");
    for family in Metrics::families() {
        assert!(
            series(&all).iter().any(|(name, _)| family.names().iter().any(|n| n == name)),
            "{} is on no panel",
            family.name
        );
    }
}

#[test]
fn alerts_name_only_declared_series_and_say_what_to_do() {
    let rules = rules();
    assert!(rules.len() > 10);
    let mut names = BTreeSet::new();
    for rule in &rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name), "{name} stands twice");
        let query = rule["expr"].as_str().unwrap();
        assert_eq!(wrong(query), Vec::<String>::new(), "{name}");
        assert!(!series(query).is_empty() || name == "WeirDown", "{name} is about nothing of ours");
        assert!(["page", "ticket"].contains(&rule["labels"]["severity"].as_str().unwrap()));
        let texts = &rule["annotations"];
        assert!(texts["summary"].as_str().is_some_and(|s| s.ends_with('.')), "{name}");
        let runbook = texts["runbook"].as_str().unwrap();
        assert!(runbook.len() > 80, "{name} says too little");
        // What a runbook names besides alerts must exist as well.
        assert_eq!(wrong(runbook), Vec::<String>::new(), "{name}");
    }
    for rule in &rules {
        let runbook = rule["annotations"]["runbook"].as_str().unwrap();
        for word in runbook.split(|c| !is_word(c)).filter(|w| w.starts_with("Weir")) {
            assert!(names.contains(word), "{word} is no alert");
        }
    }
}

fn kubernetes(kind: &str) -> Yaml {
    let docs = YamlLoader::load_from_str(KUBERNETES).unwrap();
    docs.into_iter().find(|d| d["kind"].as_str() == Some(kind)).unwrap()
}

#[test]
fn kubernetes_mounts_the_folder_and_probes_the_admin_port() {
    let pod = &kubernetes("Deployment")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let mounts = container["volumeMounts"].as_vec().unwrap();
    let config = mounts.iter().find(|m| m["mountPath"].as_str() == Some("/etc/weir")).unwrap();
    assert!(config["subPath"].is_badvalue());
    for (probe, path) in
        [("livenessProbe", "/livez"), ("readinessProbe", "/readyz"), ("startupProbe", "/livez")]
    {
        assert_eq!(container[probe]["httpGet"]["path"].as_str(), Some(path));
        assert_eq!(container[probe]["httpGet"]["port"].as_str(), Some("admin"));
    }
    assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true));
    let user = pod["securityContext"]["runAsUser"].as_i64().unwrap();
    assert!(DOCKERFILE.contains(&format!("USER {user}:{user}")));
}

fn sample_config() -> Config {
    let text = kubernetes("ConfigMap")["data"]["upstreams.toml"].as_str().unwrap().to_owned();
    let env = |name: &str| (name == "STRIPE_KEY").then(|| "sk_test_sample".to_owned());
    let no_file = |_: &str| Err(std::io::ErrorKind::NotFound.into());
    match weirkeeper::config::parse(&text, "the ConfigMap's upstreams.toml", &env, &no_file) {
        Ok(config) => config,
        Err(problems) => panic!("{problems}"),
    }
}

#[test]
fn the_sample_configuration_is_valid_and_reachable_from_outside_its_pod() {
    let config = sample_config();
    assert!(config.upstreams.iter().all(|u| u.dormant.is_none()));
    assert!(config.gateway.listen.ip().is_unspecified());
    assert!(config.admin.listen.unwrap().ip().is_unspecified());
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn the_samples_wait_longer_than_stopping_takes() {
    // Calls get the drain timeout; then each child its end of input, SIGTERM and SIGKILL.
    let drain = sample_config().gateway.drain_timeout.as_secs() as i64;
    let children = (shim::EOF_GRACE + shim::TERM_GRACE + shim::KILL_GRACE).as_secs() as i64;
    let grace =
        &kubernetes("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
    assert!(grace.as_i64().unwrap() > drain + children + 5);
    let seconds = |text: &str, before: &str| -> i64 {
        let tail = text.split_once(before).unwrap().1;
        tail.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    assert!(seconds(SERVICE, "TimeoutStopSec=") > drain + children);
    assert!(seconds(COMPOSE, "stop_grace_period: ") > drain + children);
}

#[test]
fn ports_agree_everywhere() {
    let config = sample_config();
    let port = |section: &str| -> i64 {
        match section {
            "gateway" => config.gateway.listen.port().into(),
            _ => config.admin.listen.unwrap().port().into(),
        }
    };
    let deployment = kubernetes("Deployment");
    let ports = &deployment["spec"]["template"]["spec"]["containers"][0]["ports"];
    for (at, section) in ["gateway", "admin"].into_iter().enumerate() {
        assert_eq!(ports[at]["containerPort"].as_i64(), Some(port(section)));
    }
    let compose = &YamlLoader::load_from_str(COMPOSE).unwrap()[0]["services"]["weir"]["ports"];
    for (at, section) in ["gateway", "admin"].into_iter().enumerate() {
        assert!(compose[at].as_str().unwrap().ends_with(&format!(":{}", port(section))));
    }
    assert!(DOCKERFILE.contains(&format!("EXPOSE {} {}", port("gateway"), port("admin"))));
    assert!(PROMETHEUS.contains(&format!("weir:{}", port("admin"))));
    // One socket: the gateway takes no more than that.
    assert_eq!(SOCKET.matches("\nListenStream=").count(), 1);
    assert!(SOCKET.contains(&format!("\nListenStream=127.0.0.1:{}\n", port("gateway"))));
}

#[test]
fn nothing_runs_as_root_and_every_sample_uses_the_same_places() {
    assert!(SERVICE.contains("DynamicUser=yes") && SERVICE.contains("NoNewPrivileges=yes"));
    for sample in [SERVICE, DOCKERFILE] {
        assert!(sample.contains("XDG_STATE_HOME=/var/lib XDG_CACHE_HOME=/var/cache"));
    }
    for sample in [KUBERNETES, COMPOSE, DOCKERFILE] {
        for place in ["/etc/weir", "/var/lib/weir", "/var/cache/weir"] {
            assert!(sample.contains(place), "{place}");
        }
    }
}
