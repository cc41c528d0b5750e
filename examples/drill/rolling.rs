//! Two gateways behind one address are replaced one after the other, under load: no call fails.
//!
//! The address is a socket that the drill holds and hands to both, as a socket unit of systemd does.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::{self, Client};
use crate::faulty::Peer;
use crate::gate::{Gate, Running, Setup, free_port, section, url};
use crate::load::{Ask, Wave, closed, paced};
use crate::options::Options;
use crate::promise::Promises;

/// The name of the story.
pub const NAME: &str = "rolling";

/// Calls that take their time, so that some are under way at each stop.
const SLOW: &str = "tools/call t2 => delay 700ms\n* => fine\n";
/// How long a stop may take: notice, drain, children.
const STOP: Duration = Duration::from_secs(20);

/// The story.
pub async fn run(options: &Options, promises: &mut Promises) -> Result<(), String> {
    let dir = options.dir.join(NAME);
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let mut peer = Peer::new("http");
    (peer.ports, peer.tools, peer.table) = (vec![free_port()], 3, Some(dir.join("table")));
    std::fs::write(dir.join("table"), SLOW).map_err(|e| e.to_string())?;
    let rest = section("up", &url(peer.ports[0]), "concurrency = { max = 256, queue = 256 }");
    let _peer = Running::start(peer)?;

    let socket = TcpListener::bind(("127.0.0.1", free_port())).map_err(|e| e.to_string())?;
    let at = socket.local_addr().map_err(|e| e.to_string())?;
    let start = |n: usize| -> Result<Gate, String> {
        let socket = socket.try_clone().map_err(|e| e.to_string())?;
        Gate::start(Setup {
            dir: dir.join(format!("weir-{n}")),
            gateway: format!(
                "listen = \"{at}\"\ndrain_notice = \"2s\"\nsealing_key = \"{}\"",
                "0123456789abcdef".repeat(2)
            ),
            rest: rest.clone(),
            socket: Some(OwnedFd::from(socket)),
            ..Setup::default()
        })
    };
    let mut gates = vec![start(0)?, start(1)?];
    for gate in &gates {
        gate.ready(&["up"]).await?;
    }

    let over = Arc::new(AtomicBool::new(false));
    let load = [
        tokio::spawn(until(over.clone(), move |t| closed(at, calls("echo"), 8, t))),
        tokio::spawn(until(over.clone(), move |t| paced(at, calls("pay"), 32, 300.0, t))),
        tokio::spawn(until(over.clone(), move |t| closed(at, calls("t2"), 8, t))),
    ];
    // A connection for each call, and sessions that go from gateway to gateway.
    let fresh = tokio::spawn(fresh(at, over.clone()));
    let sessions = tokio::spawn(sessions(at, over.clone()));
    let ends = Arc::new(AtomicUsize::new(0));
    let breaks = Arc::new(AtomicUsize::new(0));
    let listeners: Vec<_> = (0..20)
        .map(|_| tokio::spawn(listen(at, over.clone(), ends.clone(), breaks.clone())))
        .collect();

    let rounds = if options.short { 2 } else { 20 };
    let mut longest = Duration::ZERO;
    let mut bad_ends = 0;
    for round in 0..rounds {
        tokio::time::sleep(Duration::from_millis(800)).await;
        let old = round % 2;
        let begun = Instant::now();
        gates[old].signal(Signal::TERM);
        let mut gone = gates.swap_remove(old);
        let status = tokio::task::spawn_blocking(move || gone.wait(STOP)).await;
        longest = longest.max(begun.elapsed());
        bad_ends += usize::from(!matches!(status, Ok(Ok(s)) if s.success()));
        let fresh = start(old)?;
        fresh.ready(&["up"]).await?;
        gates.insert(old.min(gates.len()), fresh);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    over.store(true, Ordering::Relaxed);
    let mut sum = Wave::default();
    for one in load {
        sum.add(one.await.map_err(|e| e.to_string())?);
    }
    sum.add(fresh.await.map_err(|e| e.to_string())?);
    let example = sum.errors.first().map_or(String::new(), |e| format!(": {e}"));
    promises.keep(
        NAME,
        &format!("{rounds} stops of one of two gateways: no call fails"),
        &format!("{} of {} failed{example}", sum.errors.len(), sum.calls),
        sum.errors.is_empty() && sum.calls > 0,
    );
    let moved = sessions.await.map_err(|e| e.to_string())?;
    let example = moved.errors.first().map_or(String::new(), |e| format!(": {e}"));
    promises.keep(
        NAME,
        "sessions go on at the other gateway",
        &format!("{} of {} failed{example}", moved.errors.len(), moved.calls),
        moved.errors.is_empty() && moved.calls > 0,
    );
    listeners.iter().for_each(tokio::task::JoinHandle::abort);
    let (ends, breaks) = (ends.load(Ordering::Relaxed), breaks.load(Ordering::Relaxed));
    promises.keep(
        NAME,
        "listeners' streams are ended, not broken",
        &format!("{ends} ended, {breaks} broken"),
        breaks == 0 && ends > 0,
    );
    promises.keep(
        NAME,
        "each stop is orderly and in time",
        &format!("the longest took {:.1} s, {bad_ends} did not end well", longest.as_secs_f64()),
        bad_ends == 0,
    );
    Ok(())
}

fn calls(tool: &str) -> Ask {
    Ask::Calls(Arc::new(vec![format!("up__{tool}")]))
}

async fn until<F: Future<Output = Wave>>(
    over: Arc<AtomicBool>,
    load: impl Fn(Duration) -> F,
) -> Wave {
    let mut sum = Wave::default();
    while !over.load(Ordering::Relaxed) {
        sum.add(load(Duration::from_secs(4)).await);
    }
    sum
}

async fn fresh(at: std::net::SocketAddr, over: Arc<AtomicBool>) -> Wave {
    let mut sum = Wave::default();
    while !over.load(Ordering::Relaxed) {
        match calls("echo").once(&mut Client::new(at), sum.calls).await {
            None => sum.calls += 1,
            Some(e) => sum.errors.push(format!("on a connection of its own: {e}")),
        }
    }
    sum
}

// Sessions of old clients, each of which makes a connection for each call.
async fn sessions(at: std::net::SocketAddr, over: Arc<AtomicBool>) -> Wave {
    let mut sum = Wave::default();
    let mut ids = Vec::new();
    for _ in 0..10 {
        let answer = Client::new(at).ask(&client::hello(at)).await;
        ids.extend(answer.ok().and_then(|a| a.header("mcp-session-id").map(str::to_owned)));
    }
    let body = "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"tools/call\",\"params\":{\"name\":\
                \"up__echo\",\"arguments\":{\"id\":\"mine\"}}}";
    while !over.load(Ordering::Relaxed) {
        for id in &ids {
            match Client::new(at).ask(&client::old(at, id, body)).await {
                Ok(a) if client::text(&a.message()) == Some("mine") => sum.calls += 1,
                Ok(a) => sum.errors.push(format!("{} {}", a.status, a.message())),
                Err(e) => sum.errors.push(e.to_string()),
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sum
}

// A listener of 2026-07-28, which comes back when its stream ends.
async fn listen(
    at: std::net::SocketAddr,
    over: Arc<AtomicBool>,
    ends: Arc<AtomicUsize>,
    breaks: Arc<AtomicUsize>,
) {
    let wish = client::listen(at);
    while !over.load(Ordering::Relaxed) {
        let heard = async {
            let mut stream = tokio::net::TcpStream::connect(at).await?;
            stream.write_all(&wish).await?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            Ok::<_, std::io::Error>(all)
        };
        match heard.await {
            // The last chunk says that nothing is missing.
            Ok(all) if all.ends_with(b"0\r\n\r\n") => ends.fetch_add(1, Ordering::Relaxed),
            _ => breaks.fetch_add(1, Ordering::Relaxed),
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
