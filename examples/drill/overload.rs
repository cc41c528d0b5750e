//! More than the gateway may carry: what is too much is refused early and clearly, what is admitted
//! takes as long as ever, and memory has a ceiling. And ten thousand sessions that only listen.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::client::{self, Client};
use crate::faulty::Peer;
use crate::gate::{Gate, Running, Setup, free_port, section, url};
use crate::load::{Ask, Wave, paced};
use crate::options::Options;
use crate::promise::Promises;

/// The name of the story.
pub const NAME: &str = "overload";

/// Calls that the gateway may carry at once.
const MAX_CALLS: usize = 200;
/// How long each takes upstream.
const EACH: Duration = Duration::from_millis(500);
/// What the gateway can do, a second.
const CAPACITY: f64 = MAX_CALLS as f64 / 0.5;
/// Callers of the overload: enough that those whose call is admitted do not hold up the rest.
const CALLERS: usize = 1500;
/// A refusal is told at once: its p99, in milliseconds, is a small share of what a call takes.
const EARLY: f64 = 100.0;
/// Memory that the overload may cost, in KiB: for each call that is carried or refused at once.
const EACH_KIB: u64 = 64;
/// `max_memory`, what may come between two looks at it, and calls that would take far more.
const CEILING_MIB: f64 = 128.0;
/// See [`CEILING_MIB`].
const OVER: f64 = 1.5;
/// See [`CEILING_MIB`].
const LARGE: usize = 2 << 20;
/// See [`CEILING_MIB`].
const LARGE_CALLERS: usize = 200;
/// What a session with an open stream may cost, in KiB.
const SESSION_KIB: f64 = 20.0;

/// The story.
pub async fn run(options: &Options, promises: &mut Promises) -> Result<(), String> {
    calls(options, promises).await?;
    memory(options, promises).await?;
    sessions(options, promises).await
}

// A gateway with these settings over an upstream that takes `EACH` for a call.
async fn slow(dir: &Path, gateway: String) -> Result<(Running, Gate), String> {
    std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    let mut peer = Peer::new("http");
    (peer.ports, peer.table) = (vec![free_port()], Some(dir.join("table")));
    std::fs::write(dir.join("table"), format!("tools/call => delay {}ms\n", EACH.as_millis()))
        .map_err(|e| e.to_string())?;
    let rest = section("up", &url(peer.ports[0]), "concurrency = { max = 400, queue = 400 }");
    let peer = Running::start(peer)?;
    let gate = Gate::start(Setup { dir: dir.join("weir"), gateway, rest, ..Setup::default() })?;
    gate.ready(&["up"]).await?;
    Ok((peer, gate))
}

async fn calls(options: &Options, promises: &mut Promises) -> Result<(), String> {
    let gateway = format!("max_calls = {MAX_CALLS}");
    let (_peer, gate) = slow(&options.dir.join(NAME), gateway).await?;
    let at = gate.at;
    let time = Duration::from_secs(if options.short { 4 } else { 20 });
    let ask = Ask::Calls(Arc::new(vec!["up__echo".into()]));
    // All connections are there before, so that what the overload costs is seen.
    let under = paced(at, ask.clone(), CALLERS, CAPACITY * 0.5, time).await;
    let before = gate.rss();
    let watch = tokio::spawn(highest(gate.pid(), time));
    let refused_before = gate.metric("weir_refusals_total", "overloaded").await;
    let (over, refused) = both(at, CAPACITY * 3.0, time).await;
    let refused_after = gate.metric("weir_refusals_total", "overloaded").await;
    let highest = watch.await.map_err(|e| e.to_string())?;

    let unclear: Vec<&String> = over.errors.iter().chain(&under.errors).collect();
    let example = unclear.first().map_or(String::new(), |e| format!(": {e}"));
    promises.keep(
        NAME,
        "what is too much is refused with reason and time",
        &format!("{} refused, {} otherwise{example}", refused.calls, unclear.len()),
        unclear.is_empty() && refused.calls > 0,
    );
    promises.keep(
        NAME,
        "the metric has the same reason",
        &format!("{} of {}", refused_after - refused_before, refused.calls),
        refused_after - refused_before >= refused.calls as f64,
    );
    promises.keep(
        NAME,
        "it is refused early",
        &format!(
            "p99 {:.1} ms, where a call takes {} ms",
            refused.quantile(0.99),
            EACH.as_millis()
        ),
        refused.quantile(0.99) < EARLY,
    );
    promises.keep(
        NAME,
        "what is admitted takes as long as ever",
        &format!(
            "p99 {:.0} ms against {:.0} ms; {:.0} of {CAPACITY:.0} calls/s",
            over.quantile(0.99),
            under.quantile(0.99),
            over.rate()
        ),
        over.quantile(0.99) <= under.quantile(0.99) * 1.5 && over.rate() > CAPACITY * 0.8,
    );
    let grown = highest.saturating_sub(before);
    promises.keep(
        NAME,
        "memory has a ceiling",
        &format!("{:.1} MiB more than {:.1} MiB", grown as f64 / 1024.0, before as f64 / 1024.0),
        grown <= EACH_KIB * CALLERS as u64,
    );
    Ok(())
}

// Large calls, far more of them at once than there is memory for.
async fn memory(options: &Options, promises: &mut Promises) -> Result<(), String> {
    let gateway = format!("max_memory = \"{CEILING_MIB}MiB\"");
    let (_peer, gate) = slow(&options.dir.join("memory"), gateway).await?;
    let (at, time) = (gate.at, Duration::from_secs(if options.short { 3 } else { 10 }));
    let padding = Arc::new("x".repeat(LARGE));
    let watch = tokio::spawn(highest(gate.pid(), time));
    let begun = Instant::now();
    let lanes: Vec<_> = (0..LARGE_CALLERS)
        .map(|lane| {
            let padding = padding.clone();
            tokio::spawn(async move {
                let mut client = Client::new(at);
                let (mut good, mut refused, mut wrong) = (0, 0, Vec::new());
                while begun.elapsed() < time {
                    let id = format!("m{lane}");
                    let arguments = format!("{{\"id\":\"{id}\",\"p\":\"{padding}\"}}");
                    let request = client::modern(at, "tools/call", "up__pay", &arguments);
                    match client.ask(&request).await.map(|a| a.message()) {
                        Ok(m) if client::text(&m) == Some(&id) => good += 1,
                        Ok(m) if is_clear(&m) => {
                            refused += 1;
                            tokio::time::sleep(Duration::from_millis(500)).await;
                        }
                        Ok(m) => wrong.push(m.to_string()),
                        Err(e) => wrong.push(e.to_string()),
                    }
                }
                (good, refused, wrong)
            })
        })
        .collect();
    let (mut good, mut refused, mut wrong) = (0, 0, Vec::new());
    for lane in lanes {
        let (g, r, w) = lane.await.map_err(|e| e.to_string())?;
        (good, refused) = (good + g, refused + r);
        wrong.extend(w);
    }
    let most = watch.await.map_err(|e| e.to_string())? as f64 / 1024.0;
    let example = wrong.first().map_or(String::new(), |e| format!(": {e}"));
    promises.keep(
        NAME,
        &format!("memory stays near max_memory, {CEILING_MIB} MiB"),
        &format!(
            "{most:.0} MiB; {good} done, {refused} refused, {} otherwise{example}",
            wrong.len()
        ),
        most <= CEILING_MIB * OVER && good > 0 && refused > 0 && wrong.is_empty(),
    );
    Ok(())
}

// The most memory that a process has for so long.
async fn highest(pid: u32, time: Duration) -> u64 {
    let begun = Instant::now();
    let mut most = 0;
    while begun.elapsed() < time {
        most = most.max(crate::gate::rss(pid));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    most
}

// Calls at this rate: those that were answered, and those that were refused as they should be.
async fn both(at: SocketAddr, rate: f64, time: Duration) -> (Wave, Wave) {
    let begun = Instant::now();
    let lanes: Vec<_> = (0..CALLERS)
        .map(|lane| {
            tokio::spawn(async move {
                let (mut good, mut refused) = (Wave::default(), Wave::default());
                let mut client = Client::new(at);
                for n in 0.. {
                    let number = n * CALLERS + lane;
                    let due = begun + Duration::from_secs_f64(number as f64 / rate);
                    if due > begun + time {
                        break;
                    }
                    tokio::time::sleep_until(due.into()).await;
                    let since = Instant::now();
                    let id = format!("o{number}");
                    let answer = client.ask(&client::call(at, "up__echo", &id)).await;
                    let wave = match answer.as_ref().map(client::Answer::message) {
                        Ok(m) if client::text(&m) == Some(&id) => &mut good,
                        Ok(m) if is_clear(&m) => &mut refused,
                        Ok(m) => {
                            good.errors.push(m.to_string());
                            continue;
                        }
                        Err(e) => {
                            good.errors.push(e.to_string());
                            continue;
                        }
                    };
                    wave.calls += 1;
                    wave.times.push(since.elapsed().as_micros() as u32);
                }
                (good, refused)
            })
        })
        .collect();
    let (mut good, mut refused) = (Wave::default(), Wave::default());
    for lane in lanes {
        if let Ok((g, r)) = lane.await {
            good.add(g);
            refused.add(r);
        }
    }
    good.seconds = time.as_secs_f64();
    (good, refused)
}

fn is_clear(message: &serde_json::Value) -> bool {
    let data = match message.get("error") {
        Some(error) => &error["data"],
        None => &message["result"]["_meta"]["io.weirkeeper/failure"],
    };
    client::failure(message) == Some(("overloaded", "no_effect")) && data["retryAfterMs"].is_u64()
}

async fn sessions(options: &Options, promises: &mut Promises) -> Result<(), String> {
    let wanted = if options.short { 2_000 } else { 10_000 };
    let gate = Gate::start(Setup {
        dir: options.dir.join("sessions"),
        gateway: format!("max_sessions = {}", wanted + 100),
        rest: section("up", &url(free_port()), ""),
        ..Setup::default()
    })?;
    let at = gate.at;
    // What the first ones need is not what one costs.
    let first = open(at, 50).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = gate.rss();
    let streams = open(at, wanted).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let each = (gate.rss().saturating_sub(before)) as f64 / streams.len().max(1) as f64;
    let counted = gate.metric("weir_streams", "").await;
    promises.keep(
        NAME,
        &format!("{wanted} idle sessions with streams cost 20 KiB each at most"),
        &format!("{each:.1} KiB each of {}", streams.len()),
        each <= SESSION_KIB && streams.len() == wanted && counted as usize >= wanted,
    );
    let mut fresh = Client::new(at);
    let begun = Instant::now();
    let served =
        fresh.ask(&client::modern(at, "tools/list", "", "")).await.is_ok_and(|a| a.status == 200);
    promises.keep(
        NAME,
        "and somebody else is served beside them",
        &format!("in {:.1} ms", begun.elapsed().as_secs_f64() * 1000.0),
        served,
    );
    drop((first, streams));
    Ok(())
}

async fn open(at: SocketAddr, wanted: usize) -> Vec<TcpStream> {
    let places = Arc::new(Semaphore::new(32));
    let all: Vec<_> = (0..wanted)
        .map(|_| {
            let places = places.clone();
            tokio::spawn(async move {
                let _place = places.acquire().await.ok()?;
                stream_of(at).await.ok()
            })
        })
        .collect();
    let mut open = Vec::new();
    for one in all {
        open.extend(one.await.ok().flatten());
    }
    open
}

async fn stream_of(at: SocketAddr) -> std::io::Result<TcpStream> {
    let mut client = Client::new(at);
    let answer = client.ask(&client::hello(at)).await?;
    let id = answer.header("mcp-session-id").unwrap_or_default();
    let mut stream = client.into_stream().ok_or(std::io::ErrorKind::NotConnected)?;
    let request = format!(
        "GET /mcp HTTP/1.1\r\nhost: {at}\r\nmcp-session-id: {id}\r\n\
         mcp-protocol-version: 2025-06-18\r\naccept: text/event-stream\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while memchr::memmem::find(&head, b"\r\n\r\n").is_none() {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    if head.starts_with(b"HTTP/1.1 200") {
        Ok(stream)
    } else {
        Err(std::io::ErrorKind::Other.into())
    }
}
