//! Live, ready, metrics, status: on a listener of its own, for operators and their tools.

pub mod plan;
pub mod why;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::downstream::stall::Impatient;
use crate::downstream::{Edge, checks};
use crate::gateway::builtin;
use crate::guard::State;
use crate::observe::metrics::{
    BreakerState, CatalogFacts, ChildFacts, Gathered, ReplicaFacts, UpstreamFacts,
};
use crate::protocol::method::ListKind;
use crate::upstream::condition;
use crate::upstream::replicas::Standing;
use crate::upstream::transport::stdio::FamilyUsage;

use plan::Planner;

/// Most connections at once: a scraper, a probe and a few curious people.
const CONNECTIONS_MAX: usize = 64;
/// How long a look at the children may take before what was seen last is told instead.
const LOOK_TIME: Duration = Duration::from_secs(2);
/// Time for a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Serve until the edge has stopped. It goes on while the gateway drains, so that probes see it.
pub async fn run(edge: Arc<Edge>, listener: TcpListener, planner: Planner) {
    let planner = Arc::new(planner);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (edge, planner) = (edge.clone(), planner.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (edge, planner) = (edge.clone(), planner.clone());
                async move { Ok::<_, Infallible>(answer(&edge, &planner, &peer, request).await) }
            });
            let (read, write) = stream.into_split();
            let io = tokio::io::join(read, Impatient::new(write, Arc::default()));
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(io), service)
                .await;
            drop(place);
        });
    }
}

async fn answer(
    edge: &Edge,
    planner: &Arc<Planner>,
    peer: &SocketAddr,
    request: Request<Incoming>,
) -> Response<Body> {
    // A page in a browser on this machine must not read it by another name.
    let listen = edge.gateway.current.load().config.admin.listen;
    let authority = request.uri().authority().map(hyper::http::uri::Authority::as_str);
    if listen.is_some_and(|at| {
        at.ip().is_loopback()
            && !checks::host_at(&[], at.ip(), &request.headers().into(), authority)
    }) {
        return text(403, "this Host is not served here\n");
    }
    if request.uri().path() == "/plan" && *request.method() == Method::POST {
        // A plan reads the files that its text names.
        if !checks::is_local(peer) {
            return text(403, "/plan is served to this machine only\n");
        }
        return plan::answer(edge, planner, request).await;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(405, "only GET is served here, and POST at /plan\n");
    }
    match request.uri().path() {
        "/readyz" if edge.gateway.is_leaving() => text(503, "draining\n"),
        "/livez" | "/readyz" => text(200, "ok\n"),
        "/metrics" => {
            look_at_children(edge).await;
            let mut out = text(200, &edge.gateway.observe.render(gather(edge)));
            out.headers_mut().insert(
                CONTENT_TYPE,
                HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
            );
            out
        }
        "/status" => {
            look_at_children(edge).await;
            json(200, &status(edge))
        }
        "/why" => match why::answer(&edge.gateway, request.uri().query()) {
            Some(body) => json_text(200, &body),
            None => text(400, why::USAGE),
        },
        _ => text(404, "served here: /livez /readyz /metrics /status /why, and POST /plan\n"),
    }
}

// A walk over the system's processes takes milliseconds; the admin's answers are not for long waits.
async fn look_at_children(edge: &Edge) {
    let snapshot = edge.gateway.current.load();
    // One look is at the children of all.
    if let Some(any) = snapshot.upstreams.values().find(|u| u.children().is_some()) {
        let _ = tokio::time::timeout(LOOK_TIME, any.look_at_children()).await;
    }
}

type Body = Full<Bytes>;

fn json(status: u16, body: &impl serde::Serialize) -> Response<Body> {
    let body = serde_json::to_string_pretty(body).expect("our own values");
    json_text(status, &(body + "\n"))
}

fn text(status: u16, body: &str) -> Response<Body> {
    let mut out = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *out.status_mut() = StatusCode::from_u16(status).expect("a status of ours");
    out.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    out
}

fn json_text(status: u16, body: &str) -> Response<Body> {
    let mut out = text(status, body);
    out.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    out
}

/// The whole state as JSON.
pub fn status(edge: &Edge) -> Value {
    let snapshot = edge.gateway.current.load();
    let all = snapshot.views.get(&None).expect("the view of everything is always there");
    let mut out = builtin::status(&edge.gateway, &snapshot, all, true);
    let set = |out: &mut Value, key: &str, value: Value| {
        out.as_object_mut().expect("an object").insert(key.into(), value);
    };
    let standing = edge.gateway.standing.load();
    // What only operators may read, beside what agents read too.
    for told in out["upstreams"].as_array_mut().into_iter().flatten() {
        let Some(name) = told["upstream"].as_str().map(str::to_owned) else { continue };
        if let Some(cause) = snapshot.upstreams.get(&*name).and_then(|u| cause(&u.condition())) {
            set(told, "cause", cause);
        }
        let replicas = told["replicas"].as_array_mut().into_iter().flatten();
        let standings = snapshot.upstreams.get(&*name).map(|u| u.standings()).unwrap_or_default();
        for (replica, standing) in replicas.zip(standings) {
            set(replica, "at", standing.at.into());
            if let Some(cause) = cause(&standing.condition) {
                set(replica, "cause", cause);
            }
        }
        if let Some(used) = snapshot.upstreams.get(&*name).and_then(|u| u.children()) {
            set(told, "child", child(&used));
        }
        if let Some(given_up) = standing.rolled_back.get(&*name) {
            set(told, "rolled_back", given_up.to_json());
        }
        if let Some(successor) = snapshot.successors.get(&*name) {
            let now = successor.condition();
            let mut next =
                serde_json::json!({"state": now.state.as_str(), "since": now.since_text()});
            if !now.why.is_empty() {
                set(&mut next, "why", (*now.why).into());
            }
            if let Some(cause) = cause(&now) {
                set(&mut next, "cause", cause);
            }
            set(told, "successor", next);
        }
    }
    set(&mut out, "version", env!("CARGO_PKG_VERSION").into());
    set(&mut out, "config", standing.to_json());
    set(&mut out, "snapshot", snapshot.number.into());
    set(&mut out, "calls_in_flight", edge.gateway.in_flight().into());
    set(&mut out, "sessions", edge.sessions.len().into());
    // What leaks is seen here first: nothing that has ended leaves a task behind.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        set(&mut out, "tasks", runtime.metrics().num_alive_tasks().into());
    }
    let drops: Vec<Value> = snapshot
        .catalog
        .drops()
        .iter()
        .map(|d| {
            serde_json::json!({"upstream": d.upstream, "kind": d.kind.as_str(), "native": d.native,
                "exposed": d.exposed, "why": d.why.to_string()})
        })
        .collect();
    set(&mut out, "dropped_entries", drops.into());
    out
}

fn child(used: &FamilyUsage) -> Value {
    serde_json::json!({
        "children": used.children,
        "processes": used.usage.processes,
        "resident_bytes": used.usage.resident,
        "cpu_seconds": used.usage.cpu_ms as f64 / 1000.0,
        "uptime_seconds": used.uptime.map(|t| t.as_secs()),
    })
}

fn cause(now: &condition::Condition) -> Option<Value> {
    (!now.cause.is_empty()).then(|| (*now.cause).into())
}

fn replica_facts(replica: &Standing) -> ReplicaFacts {
    ReplicaFacts {
        number: replica.number,
        up: replica.condition.link.is_some(),
        ejected: replica.facts.ejected_for.is_some(),
        in_flight: replica.facts.in_flight.into(),
        calls: replica.facts.calls,
        failures: replica.facts.failures,
        ejections: replica.facts.ejections,
    }
}

fn gather(edge: &Edge) -> Gathered {
    use std::sync::atomic::Ordering::Relaxed;
    let snapshot = edge.gateway.current.load();
    let upstreams = snapshot
        .upstreams
        .values()
        .map(|u| {
            let guard = u.guard();
            let condition = u.condition();
            let catalog = &snapshot.catalog;
            UpstreamFacts {
                name: u.name.clone(),
                up: match condition.state {
                    condition::State::Dormant | condition::State::Idle => None,
                    _ => Some(condition.link.is_some()),
                },
                in_flight: guard.in_flight.into(),
                queued: guard.queued.into(),
                breaker: match guard.breaker.state {
                    State::Closed => BreakerState::Closed,
                    State::HalfOpen => BreakerState::Probing,
                    State::Open => BreakerState::Open,
                },
                upkeep: u.upkeep().map(|term| term.settings.state),
                catalog: ListKind::ALL
                    .map(|kind| {
                        let (entries, bytes) = catalog.facts(&u.name, kind);
                        CatalogFacts {
                            kind: kind.as_str(),
                            entries: entries as u64,
                            bytes: bytes as u64,
                        }
                    })
                    .to_vec(),
                catalog_age: u.lists_age(),
                catalog_dropped: catalog.drops().iter().filter(|d| d.upstream == u.name).count()
                    as u64,
                incarnation: u.incarnation,
                totals: u.totals(),
                child: u.children().map(|used| ChildFacts {
                    children: used.children,
                    processes: used.usage.processes,
                    resident: used.usage.resident,
                    uptime: used.uptime,
                    idle: u
                        .config()
                        .child
                        .idle_stop
                        .map(|_| condition.state == condition::State::Idle),
                }),
                replicas: u.standings().iter().map(replica_facts).collect(),
            }
        })
        .collect();
    let standing = edge.gateway.standing.load();
    Gathered {
        upstreams,
        tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks() as u64,
        rolled_back: standing.rolled_back.len() as u64,
        on_last_good: standing.last_good.is_some(),
        sessions: edge.sessions.len() as u64,
        streams: edge.streams.load(Relaxed) as u64,
        connections: edge.connections.load(Relaxed) as u64,
        ..Gathered::default()
    }
}
