#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::gateway::snapshot::Snapshot;
use crate::upstream::starts::{Cause, Starts};

fn site_in(dir: &Path) -> Site {
    Site {
        shim: "/nonexistent".into(),
        state_dir: dir.into(),
        cache_dir: dir.into(),
        children: Arc::default(),
        starts: Arc::new(Starts::new(4)),
        subscriptions: Arc::default(),
    }
}

/// A server with one tool, which can be deaf: it hangs up on whoever asks.
struct Server {
    url: String,
    deaf: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Server {
    async fn start(tool: &'static str) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let (deaf, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_deaf, counted) = (deaf.clone(), asked.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (deaf, asked) = (is_deaf.clone(), counted.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let (deaf, asked) = (deaf.clone(), asked.clone());
                        async move { answer(tool, request, &deaf, &asked).await }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Server { url, deaf, asked }
    }

    fn deafen(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Relaxed);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn answer(
    tool: &str,
    request: Request<Incoming>,
    deaf: &AtomicBool,
    asked: &AtomicUsize,
) -> Result<Response<Full<bytes::Bytes>>, &'static str> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    let method = message["method"].as_str().unwrap_or_default();
    asked.fetch_add(1, Ordering::Relaxed);
    let refused = |status: u16| {
        let mut out = Response::new(Full::default());
        *out.status_mut() = hyper::StatusCode::from_u16(status).unwrap();
        Ok(out)
    };
    let result = match method {
        _ if deaf.load(Ordering::Relaxed) => return Err("deaf"),
        "initialize" => json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
            "serverInfo": {"name": "s", "version": "1"}}),
        "tools/list" => json!({"tools": [{"name": tool, "inputSchema": {"type": "object"}}]}),
        "" => return refused(405),
        _ if message["id"].is_null() => return refused(202),
        _ => return refused(400),
    };
    let text = json!({"jsonrpc": "2.0", "id": message["id"], "result": result}).to_string();
    let mut out = Response::new(Full::from(text));
    let json = hyper::header::HeaderValue::from_static("application/json");
    out.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    Ok(out)
}

/// A writer with a gateway, and the text that it reads.
struct Rig {
    gateway: Arc<Gateway>,
    orders: mpsc::Sender<Order>,
    text: Arc<Mutex<String>>,
    starts: Arc<Starts>,
    dir: tempfile::TempDir,
}

const FILE: &str = "/etc/weir/upstreams.toml";

fn parsed(text: &str) -> Result<Config, String> {
    let none = |_: &str| Err(std::io::ErrorKind::NotFound.into());
    crate::config::parse(text, "t", &|_| None, &none).map_err(|e| e.to_string())
}

impl Rig {
    fn start(upstreams: &str) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let text = Arc::new(Mutex::new(whole(dir.path(), "", upstreams)));
        let config = Arc::new(parsed(&text.lock().unwrap()).unwrap());
        let site = site_in(dir.path());
        let observe = Arc::new(Observe::quiet());
        let (mut control, events) = Control::new(site.clone(), observe.clone());
        control.keep_good(good::Place::of(dir.path(), Path::new(FILE)));
        let first = control.first(config);
        let gateway = Arc::new(Gateway::new(first, observe, site.subscriptions));
        let (orders, orders_rx) = mpsc::channel(4);
        let read = text.clone();
        let load: Load = Box::new(move || parsed(&read.lock().unwrap()));
        tokio::spawn(control.run(gateway.clone(), events, orders_rx, load));
        Rig { gateway, orders, text, starts: site.starts, dir }
    }

    fn now(&self) -> Arc<Snapshot> {
        self.gateway.current.load()
    }

    async fn until(&self, what: &str, ok: impl Fn(&Snapshot) -> bool) {
        // Longer than the longest pause between two tries.
        for _ in 0..6000 {
            if ok(&self.now()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not seen: {what}");
    }

    async fn ready(&self) {
        self.until("ready", |s| s.upstreams["crm"].is_ready()).await;
    }

    async fn reload(&self, gateway: &str, upstreams: &str) -> Result<String, String> {
        *self.text.lock().unwrap() = whole(self.dir.path(), gateway, upstreams);
        self.again().await
    }

    async fn again(&self) -> Result<String, String> {
        let (tx, rx) = oneshot::channel();
        self.orders.send(Order::Reload(Why::Signal, Some(tx))).await.unwrap();
        rx.await.unwrap()
    }

    fn incarnation(&self) -> u64 {
        self.now().upstreams["crm"].incarnation
    }

    fn tools(&self) -> Vec<String> {
        let names = self.now().catalog.exposed_names("crm", ListKind::Tools);
        names.iter().map(ToString::to_string).collect()
    }

    fn metric(&self, name: &str) -> String {
        let all =
            self.gateway.observe.metrics.render(&crate::observe::metrics::Gathered::default());
        all.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned()
    }

    async fn kept(&self) -> Option<String> {
        // The disk is another thread's business.
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(50)))
            .await
            .unwrap();
        good::Place::of(self.dir.path(), Path::new(FILE)).load().ok()
    }
}

fn whole(dir: &Path, gateway: &str, upstreams: &str) -> String {
    let state = dir.display();
    format!("[gateway]\nstate_dir = \"{state}\"\nbuiltin = false\n{gateway}\n{upstreams}")
}

fn crm(url: &str) -> String {
    format!("[upstreams.crm]\nurl = {url:?}\n")
}

/// Nobody listens there.
async fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}/mcp", listener.local_addr().unwrap())
}

const TRIAL: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn what_never_gets_ready_is_given_up_and_the_rest_stays() {
    let (old, bad) = (Server::start("a").await, closed().await);
    let rig = Rig::start(&crm(&old.url));
    rig.ready().await;
    let first = rig.incarnation();
    let before = rig.kept().await.unwrap();

    let changed = format!("{}[views.v]\nallow = [\"x*\"]\n", crm(&bad));
    let said = rig.reload("page_size = 7", &changed).await.unwrap();
    assert_eq!(said, "upstreams kept none; changed crm; views changed: v");
    let tried = rig.now().successors["crm"].clone();
    tokio::time::sleep(TRIAL - Duration::from_millis(10)).await;
    assert!(rig.now().successors.contains_key("crm"), "not before its time");
    assert!(rig.gateway.standing.load().rolled_back.is_empty());
    tokio::time::sleep(Duration::from_millis(20)).await;

    // The old one serves, the successor is stopped, the rest is in force.
    let now = rig.now();
    assert!(now.successors.is_empty());
    assert_eq!((rig.incarnation(), rig.tools()), (first, vec!["crm__a".to_owned()]));
    assert!(now.upstreams["crm"].is_ready());
    assert_eq!((now.config.gateway.page_size, now.views.len()), (7, 2));
    rig.until("stopped", |_| tried.condition().state == crate::upstream::condition::State::Retired)
        .await;
    let standing = rig.gateway.standing.load();
    let told = &standing.rolled_back["crm"];
    assert_eq!(told.trouble, Trouble::RolledBack);
    assert!(told.text.starts_with("the new instance was not ready within 30s: "), "{}", told.text);
    assert_eq!(rig.metric("weir_config_troubles_total{reason=\"rolled_back\"}"), "1");
    assert_eq!(rig.metric("weir_config_last_reload_successful"), "0");
    // What was not good is not kept as such.
    assert_eq!(rig.kept().await.unwrap(), before);

    // Each reload tries it again, and set back there is nothing to try.
    assert_eq!(rig.again().await.unwrap(), "upstreams kept none; changed crm");
    assert!(rig.now().successors.contains_key("crm"));
    assert!(rig.gateway.standing.load().rolled_back.is_empty());
    assert_eq!(
        rig.reload("", &crm(&old.url)).await.unwrap(),
        "upstreams kept crm; views changed: v"
    );
    assert!(rig.now().successors.is_empty());
    tokio::time::sleep(2 * TRIAL).await;
    assert!(rig.gateway.standing.load().rolled_back.is_empty());
    assert_eq!(
        (rig.incarnation(), rig.metric("weir_config_last_reload_successful")),
        (first, "1".into())
    );
}

#[tokio::test(start_paused = true)]
async fn the_trial_is_as_long_as_configured_and_what_is_ready_in_time_takes_over() {
    let (old, new) = (Server::start("a").await, Server::start("b").await);
    let rig = Rig::start(&crm(&old.url));
    rig.ready().await;
    new.deafen(true);
    rig.reload("rollback_after = \"2m\"", &crm(&new.url)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(80)).await;
    assert_eq!(rig.tools(), ["crm__a"]);
    assert!(new.asked() > 1, "it is tried again and again");
    new.deafen(false);
    rig.until("taken over", |s| s.successors.is_empty()).await;
    assert_eq!(rig.tools(), ["crm__b"]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(rig.gateway.standing.load().rolled_back.is_empty());
    assert!(rig.kept().await.unwrap().contains(&new.url), "it proved good");
}

#[tokio::test(start_paused = true)]
async fn one_that_would_be_ready_after_it_was_given_up_changes_nothing() {
    let (old, new) = (Server::start("a").await, Server::start("b").await);
    let rig = Rig::start(&crm(&old.url));
    rig.ready().await;
    let first = rig.incarnation();
    new.deafen(true);
    rig.reload("", &crm(&new.url)).await.unwrap();
    tokio::time::sleep(TRIAL + Duration::from_millis(10)).await;
    assert!(rig.now().successors.is_empty());
    let asked = new.asked();
    new.deafen(false);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!((rig.incarnation(), rig.tools()), (first, vec!["crm__a".to_owned()]));
    assert_eq!(new.asked(), asked, "it is left alone");
    // Now it would do, and a reload of the same file is all it takes.
    rig.again().await.unwrap();
    rig.until("taken over", |s| s.successors.is_empty()).await;
    assert_eq!(rig.tools(), ["crm__b"]);
}

#[tokio::test(start_paused = true)]
async fn a_second_reload_meanwhile_goes_on_with_the_trial_or_begins_another() {
    let (old, new) = (Server::start("a").await, Server::start("b").await);
    let (bad, worse) = (closed().await, closed().await);
    let rig = Rig::start(&crm(&old.url));
    rig.ready().await;
    let first = rig.incarnation();
    rig.reload("", &crm(&bad)).await.unwrap();
    let tried = rig.now().successors["crm"].incarnation;
    tokio::time::sleep(Duration::from_secs(20)).await;
    // Other settings of the same: its time goes on, and both get them.
    let calmer = format!("{}call_timeout = \"7s\"\n", crm(&bad));
    assert_eq!(rig.reload("", &calmer).await.unwrap(), "upstreams kept crm; settings of crm");
    let now = rig.now();
    assert_eq!(now.successors["crm"].incarnation, tried);
    for one in [&now.successors["crm"], &now.upstreams["crm"]] {
        assert_eq!(one.config().call_timeout, Duration::from_secs(7));
    }
    // Yet another place: that one has all the time there is.
    rig.reload("", &crm(&worse)).await.unwrap();
    assert_ne!(rig.now().successors["crm"].incarnation, tried);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(rig.now().successors.contains_key("crm"), "its own time is not over");
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(rig.now().successors.is_empty());
    assert_eq!(rig.incarnation(), first);
    assert_eq!(rig.metric("weir_config_troubles_total{reason=\"rolled_back\"}"), "1");
    // And one that works takes over from the same old one.
    rig.reload("", &crm(&new.url)).await.unwrap();
    rig.until("taken over", |s| s.successors.is_empty()).await;
    assert_eq!(rig.tools(), ["crm__b"]);
    // Taken out while on trial: nothing is left of either.
    rig.reload("", &crm(&bad)).await.unwrap();
    rig.reload("", "").await.unwrap();
    tokio::time::sleep(2 * TRIAL).await;
    assert!(rig.now().upstreams.is_empty() && rig.now().successors.is_empty());
    assert!(rig.gateway.standing.load().rolled_back.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_for_its_turn_to_start_has_all_its_time_from_then_on() {
    let old = Server::start("a").await;
    let rig = Rig::start(&crm(&old.url));
    rig.ready().await;
    let first = rig.incarnation();
    // Another child takes its time: the only place is taken.
    let place = rig.starts.enter(Cause::Configured, 1000 * TRIAL).await;
    rig.reload("max_starting = 1", "[upstreams.crm]\ncommand = \"/bin/cat\"\n").await.unwrap();
    rig.until("in line", |s| s.successors.get("crm").is_some_and(|new| new.is_in_line())).await;
    for _ in 0..10 {
        tokio::time::sleep(TRIAL - Duration::from_millis(1)).await;
        let now = rig.now();
        assert!(now.successors["crm"].is_in_line(), "it has not been tried yet");
        assert!(rig.gateway.standing.load().rolled_back.is_empty());
    }
    drop(place);
    rig.until("its turn", |s| !s.successors["crm"].is_in_line()).await;
    tokio::time::sleep(TRIAL - Duration::from_millis(100)).await;
    assert!(rig.now().successors.contains_key("crm"), "waiting was none of its time");
    // It does not start, and had its chance.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(rig.now().successors.is_empty());
    assert!(rig.gateway.standing.load().rolled_back.contains_key("crm"));
    assert_eq!((rig.incarnation(), rig.tools()), (first, vec!["crm__a".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn where_the_old_one_does_not_serve_either_nothing_is_given_up() {
    let (old, new) = (Server::start("a").await, Server::start("b").await);
    let often = |url: &str| format!("{}refresh = \"1s\"\n", crm(url));
    let rig = Rig::start(&often(&old.url));
    rig.ready().await;
    new.deafen(true);
    rig.reload("", &often(&new.url)).await.unwrap();
    // The endpoint moves: the old one goes before the new one is there.
    old.deafen(true);
    rig.until("down", |s| !s.upstreams["crm"].is_ready()).await;
    tokio::time::sleep(4 * TRIAL).await;
    assert!(rig.now().successors.contains_key("crm"));
    new.deafen(false);
    rig.until("taken over", |s| s.successors.is_empty()).await;
    assert_eq!(rig.tools(), ["crm__b"]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_file_is_told_until_one_is_taken() {
    let old = Server::start("a").await;
    let rig = Rig::start(&crm(&old.url));
    rig.ready().await;
    let reason = || rig.gateway.standing.load().refused.as_ref().map(|r| r.trouble);
    rig.reload("page_size = 0", &crm(&old.url)).await.unwrap_err();
    assert_eq!(reason(), Some(Trouble::Invalid));
    rig.reload("listen = \"127.0.0.1:1\"", &crm(&old.url)).await.unwrap_err();
    assert_eq!(reason(), Some(Trouble::NeedsRestart));
    assert_eq!(rig.reload("", &crm(&old.url)).await.unwrap(), "unchanged");
    assert_eq!(reason(), None);
    for reason in ["config_invalid", "needs_restart"] {
        assert_eq!(rig.metric(&format!("weir_config_troubles_total{{reason=\"{reason}\"}}")), "1");
    }
}

fn one_upstream_at(port: u16) -> Config {
    let dir = std::env::temp_dir().join("no-such-folder-of-weirkeeper");
    let text = format!(
        "[gateway]\nstate_dir = \"{0}\"\ncache_dir = \"{0}\"\n\
         [upstreams.up]\nurl = \"http://127.0.0.1:{port}/mcp\"\n",
        dir.display()
    );
    crate::config::parse(&text, "t", &|_| None, &|_| unreachable!()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_has_just_taken_over_is_kept_until_the_next_one_is_ready() {
    let first = one_upstream_at(1);
    let site = site_in(&first.gateway.state_dir);
    let observe = Arc::new(Observe::quiet());
    let (mut control, _events) = Control::new(site, observe.clone());
    let gateway = Gateway::new(control.first(Arc::new(first)), observe, Arc::default());
    let old = gateway.current.load().upstreams["up"].clone();
    // Its lists are shown; that they are, it does not know yet.
    let (done, _waits) = oneshot::channel();
    let event = Event::Fresh(builtin::slice());
    let told =
        Told { name: old.name.clone(), incarnation: old.incarnation, event, done: Some(done) };
    let mut shown = Vec::new();
    assert!(control.take(&gateway, told, &mut shown));
    control.republish(&gateway);
    assert!(!old.is_ready());

    let load: Load = Box::new(|| Ok(one_upstream_at(2)));
    control.reload(&gateway, Why::Signal, &load).unwrap();
    let now = gateway.current.load();
    assert!(Arc::ptr_eq(&now.upstreams["up"], &old), "it serves on");
    assert!(control.successors.contains_key("up"));
    assert!(!now.catalog.exposed_names("up", ListKind::Tools).is_empty());
}
