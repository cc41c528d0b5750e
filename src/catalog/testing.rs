//! Upstreams and slices for the tests of this module.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::freshness::Freshness;
use super::merge::Part;
use super::slice::{About, Slice, SliceBuilder};
use crate::config::secret::Template;
use crate::config::{
    BreakerConfig, ConcurrencyConfig, EraChoice, GuardConfig, HttpConfig, Patterns, Program,
    RetryConfig, StdioConfig, ThrottleConfig, TransportConfig, UpstreamConfig, UrlTransport,
};
use crate::protocol::method::ListKind;
use crate::protocol::revision::Revision;

/// An upstream that says it has everything.
pub fn about() -> About {
    About {
        revision: Revision::R2025_11_25,
        capabilities: Bytes::from_static(br#"{"tools":{},"prompts":{},"resources":{}}"#),
        server_info: Some(Bytes::from_static(br#"{"name":"n","version":"1.0"}"#)),
        instructions: None,
        sse: false,
    }
}

/// A slice from raw arrays.
pub fn slice(lists: &[(ListKind, &str)]) -> Arc<Slice> {
    let mut builder = SliceBuilder::new(about(), 100_000);
    for (kind, array) in lists {
        builder.add_items(*kind, &Bytes::copy_from_slice(array.as_bytes())).expect("an array");
    }
    Arc::new(builder.finish())
}

/// A slice of tools with these names.
pub fn tools<S: AsRef<str>>(names: &[S]) -> Arc<Slice> {
    let items: Vec<_> = names
        .iter()
        .map(|n| serde_json::json!({"name": n.as_ref(), "inputSchema": {}}).to_string())
        .collect();
    slice(&[(ListKind::Tools, &format!("[{}]", items.join(",")))])
}

/// A live part of an upstream.
pub fn part(name: &str, slice: &Arc<Slice>) -> Part {
    let config = Arc::new(upstream(name, 0));
    Part { config, slice: Some(slice.clone()), freshness: Freshness::Live }
}

/// A live part of an upstream whose configuration `change` has changed.
pub fn part_with(name: &str, slice: &Arc<Slice>, change: impl FnOnce(&mut UpstreamConfig)) -> Part {
    let mut config = upstream(name, 0);
    change(&mut config);
    Part { config: Arc::new(config), slice: Some(slice.clone()), freshness: Freshness::Live }
}

/// A way to an upstream over HTTP.
pub fn http() -> TransportConfig {
    TransportConfig::Http(HttpConfig {
        url: Template::literal("http://127.0.0.1:1/mcp"),
        replicas: Vec::new(),
        transport: UrlTransport::Auto,
        headers: Vec::new(),
        bearer: None,
        pool_idle: Duration::from_secs(1),
        dial_timeout: Duration::from_secs(1),
    })
}

/// The configuration of an upstream.
pub fn upstream(name: &str, order: usize) -> UpstreamConfig {
    let second = Duration::from_secs(1);
    let one = NonZeroU32::MIN;
    UpstreamConfig {
        name: name.into(),
        order,
        prefixed: true,
        enabled: true,
        upkeep: None,
        transport: TransportConfig::Stdio(StdioConfig {
            program: Program::Command("server".into()),
            args: Vec::new(),
            env: BTreeMap::new(),
            inherit_env: Vec::new(),
            cwd: None,
            stderr_per_minute: 0,
            restart_backoff: second,
            restart_backoff_max: second,
        }),
        child: crate::config::ChildConfig::default(),
        era: EraChoice::Auto,
        isolation: crate::config::Isolation::Shared,
        instructions: true,
        filter: Patterns::default(),
        dormant: None,
        connect_timeout: second,
        list_timeout: second,
        call_timeout: second,
        max_call_timeout: second,
        hedge_after: None,
        refresh: second,
        max_items: 100_000,
        max_pages: 10,
        max_message: 1 << 20,
        guard: GuardConfig {
            concurrency: ConcurrencyConfig { max: one, queue: 0 },
            rate: None,
            breaker: BreakerConfig {
                enabled: true,
                window: second,
                min_calls: one,
                failure_share: 0.5,
                slow_call: second,
                slow_share: 0.5,
                consecutive: one,
                open_for: second,
                probes: one,
            },
            retry: RetryConfig { attempts: 0, backoff: second, backoff_max: second, budget: 0.0 },
            throttle: ThrottleConfig { texts: Vec::new(), pause: second, pause_max: second },
        },
        ejection: crate::config::EjectionConfig::default(),
        idempotency: None,
        tools: Vec::new(),
    }
}
