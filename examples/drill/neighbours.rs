//! Six upstreams of which one is bad: the others keep their throughput and their times, and so do
//! handshakes and lists.
//!
//! Two gateways are up, one of them with a bad sixth upstream. They are measured in turn, and the
//! one whose turn it is not is stopped, with its bad upstream: so a drift of the machine hits both,
//! and neither measures the other. The bad upstream takes only processor time that nobody else
//! wants, so what is measured is what it costs the gateway.
//!
//! Throughput is compared by the clock, turn by turn. Where others use the machine, the gateway
//! waits for its processor, which says nothing about it; then calls per second of processor time
//! are compared, and the line says so.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use crate::client;
use crate::faulty::Peer;
use crate::gate::{self, Gate, Running, Setup, command, free_port, section, url};
use crate::load::{Ask, Wave, closed, median, paced};
use crate::options::Options;
use crate::promise::Promises;

/// The name of the story.
pub const NAME: &str = "neighbours";

/// What is wrong with the sixth.
#[derive(Clone, Copy)]
struct Bad {
    what: &'static str,
    wire: &'static str,
    /// Before it is bad, so that it is connected.
    before: &'static str,
    table: &'static str,
    /// In ms.
    lives: Option<u64>,
    /// The metric and the label by which the gateway noticed, and what it says at least: else
    /// nothing was measured.
    seen: (&'static str, &'static str, f64),
}

impl Bad {
    const fn new(
        what: &'static str,
        wire: &'static str,
        table: &'static str,
        seen: (&'static str, &'static str, f64),
    ) -> Bad {
        Bad { what, wire, before: "* => fine", table, lives: None, seen }
    }
}

const BYTES: &str = "weir_received_bytes_total";
const CALLS: &str = "weir_calls_total";

const BAD: [Bad; 7] = [
    Bad::new("hangs", "http", "* => stall", (CALLS, "deadline_exceeded", 5.0)),
    Bad::new("crawls", "http", "* => crawl 50", (CALLS, "deadline_exceeded", 5.0)),
    Bad::new("floods", "stdio", "GET => flood 10000", (BYTES, "sixth", 1e6)),
    Bad::new("sends 100 MB", "stdio", "tools/call => line 100000000", (BYTES, "sixth", 3e7)),
    Bad::new("is garbage", "http", "* => garble", (CALLS, "garbled", 5.0)),
    Bad {
        lives: Some(1000),
        ..Bad::new("dies", "stdio", "* => fine", ("weir_upstream_restarts_total", "sixth", 2.0))
    },
    // Who has no stream to offer is not asked for one again.
    Bad {
        before: "GET => flood 0\n* => fine",
        ..Bad::new("floods, http", "http", "GET => flood 10000", (BYTES, "sixth", 1e6))
    },
];
/// Of the sixth: it is not spared by a breaker.
const SIXTH: &str = "call_timeout = \"1s\"\nbreaker = { enabled = false }";

/// Connections of the closed loop.
const CLOSED: usize = 16;
/// Connections of the paced load, and its share of what the closed loop did.
const PACED: usize = 32;
/// See [`PACED`].
const SHARE: f64 = 0.4;
/// Handshakes and lists a second.
const ASKS: f64 = 150.0;
/// Calls of the bad upstream a second, which count for nothing.
const BAD_CALLS: f64 = 5.0;
/// The closed loop's turns are told in so many parts, of which the middle one counts.
const SLICES: u32 = 4;
/// A gateway that waits for more than this share of its time is on a busy machine.
const BUSY: f64 = 0.02;
/// Of the undisturbed throughput.
const KEPT: f64 = 0.95;
/// Of the undisturbed p99.
const SLOWER: f64 = 1.5;

/// The story.
pub async fn run(options: &Options, promises: &mut Promises) -> Result<(), String> {
    let mut peer = Peer::new("http");
    peer.ports = (0..6).map(|_| free_port()).collect();
    let ports = peer.ports.clone();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    // Where there are two processors, the gateway has one and everything else the other.
    let (own, others) = if cpus >= 2 { (vec![0], vec![1]) } else { (vec![], vec![]) };
    peer.cpu = others.first().copied();
    let _peer = Running::start(peer)?;
    if !others.is_empty() {
        gate::pin(std::process::id(), &others);
    }
    for bad in BAD {
        let told = one(options, &ports, bad, (&own, &others), promises).await;
        if let Err(e) = told {
            promises.fail(NAME, &format!("{}: {e}", bad.what));
        }
    }
    if !others.is_empty() {
        gate::pin(std::process::id(), &(0..cpus).collect::<Vec<_>>());
    }
    Ok(())
}

struct Side {
    gate: Gate,
    bad: Option<Running>,
    closed: Vec<Wave>,
    // Of the closed loop: processor time that the gateway had, and that it waited for.
    had: f64,
    waited: f64,
    paced: Vec<Wave>,
    asks: Vec<Wave>,
}

async fn one(
    options: &Options,
    ports: &[u16],
    Bad { what, wire, before, table, lives, seen }: Bad,
    (own, others): (&[usize], &[usize]),
    promises: &mut Promises,
) -> Result<(), String> {
    let good: Vec<String> = (1..=5).map(|n| format!("good{n}")).collect();
    let sections: String = good.iter().zip(ports).map(|(u, p)| section(u, &url(*p), "")).collect();
    let dir = options.dir.join(format!("{NAME}-{}", what.replace([' ', ','], "-")));
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let path: PathBuf = dir.join("table");
    std::fs::write(&path, format!("{before}\n")).map_err(|e| e.to_string())?;

    let mut peer = Peer::new(wire);
    (peer.table, peer.lives, peer.nice) = (Some(path.clone()), lives, 19);
    peer.cpu = others.first().copied();
    let (place, bad) = if wire == "http" {
        peer.ports = vec![free_port()];
        (url(peer.ports[0]), Some(Running::start(peer)?))
    } else {
        (command(&peer), None)
    };
    let side = |name: &str, place: &str, bad| -> Result<Side, String> {
        let gate = Gate::start(Setup {
            dir: dir.join(name),
            rest: sections.clone() + &section("sixth", place, SIXTH),
            cpus: own.to_vec(),
            ..Setup::default()
        })?;
        Ok(Side { gate, bad, closed: vec![], had: 0.0, waited: 0.0, paced: vec![], asks: vec![] })
    };
    let mut calm = side("calm", &url(ports[5]), None)?;
    let mut struck = side("struck", &place, bad)?;
    let names: Vec<&str> = good.iter().map(String::as_str).chain(["sixth"]).collect();
    calm.gate.ready(&names).await?;
    struck.gate.ready(if lives.is_some() { &names[..5] } else { &names }).await?;
    std::fs::write(&path, format!("{table}\n")).map_err(|e| e.to_string())?;
    calm.pause(&dir);
    struck.pause(&dir);

    let (rounds, time) = if options.short { (3, 600) } else { (9, 1500) };
    let time = Duration::from_millis(time);
    // Once for nothing: connections, caches, and how much there is.
    calm.resume(&dir).await;
    let most = closed(calm.gate.at, Ask::echo(&good), CLOSED, time).await.rate();
    calm.pause(&dir);
    for round in 0..rounds {
        let mut both = [&mut calm, &mut struck];
        if round % 2 == 1 {
            both.reverse();
        }
        for side in both {
            side.resume(&dir).await;
            side.measure(&good, most * SHARE, time).await;
            side.pause(&dir);
        }
    }
    struck.resume(&dir).await;
    let (metric, with, least) = seen;
    let noticed = struck.gate.metric(metric, with).await;
    promises.keep(
        NAME,
        &format!("one {what}: and does so"),
        &format!("{metric} {noticed}"),
        noticed >= least,
    );
    tell(what, &calm, &struck, promises);
    Ok(())
}

// Of whatever gateway: only one has any.
fn children(dir: &Path) -> Vec<u32> {
    gate::processes(&dir.display().to_string())
}

impl Side {
    fn pause(&self, dir: &Path) {
        self.gate.signal(Signal::STOP);
        let bad = self.bad.iter().map(Running::pid).chain(children(dir));
        bad.for_each(|pid| gate::signal_to(pid, Signal::STOP));
    }

    async fn resume(&self, dir: &Path) {
        if self.gate.dir.ends_with("struck") {
            let bad = self.bad.iter().map(Running::pid).chain(children(dir));
            bad.for_each(|pid| gate::signal_to(pid, Signal::CONT));
        }
        self.gate.signal(Signal::CONT);
        // What was due meanwhile happens first.
        tokio::time::sleep(Duration::from_millis(400)).await;
    }

    async fn measure(&mut self, good: &[String], rate: f64, time: Duration) {
        let at = self.gate.at;
        let sixth = Ask::Calls(Arc::new(vec!["sixth__echo".into()]));
        // What hangs is let go at the end of the round.
        let bad = tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            for n in 0.. {
                let sixth = sixth.clone();
                all.spawn(async move { sixth.once(&mut client::Client::new(at), n).await });
                tokio::time::sleep(Duration::from_secs_f64(1.0 / BAD_CALLS)).await;
            }
        });
        for _ in 0..SLICES {
            let before = gate::processor(self.gate.pid());
            self.closed.push(closed(at, Ask::echo(good), CLOSED, time / SLICES).await);
            let after = gate::processor(self.gate.pid());
            self.had += after.0 - before.0;
            self.waited += after.1 - before.1;
        }
        let asks = Ask::Say(Arc::new(vec![
            (client::hello(at), "\"serverInfo\""),
            (client::modern(at, "server/discover", "", ""), "\"capabilities\""),
            (client::modern(at, "tools/list", "", ""), "good5__echo"),
            (client::modern(at, "prompts/list", "", ""), "\"prompts\""),
            (client::modern(at, "resources/list", "", ""), "\"resources\""),
        ]));
        let (calls, asked) = tokio::join!(
            paced(at, Ask::echo(good), PACED, rate, time),
            paced(at, asks, 4, ASKS, time)
        );
        self.paced.push(calls);
        self.asks.push(asked);
        bad.abort();
    }
}

fn tell(what: &str, calm: &Side, struck: &Side, promises: &mut Promises) {
    let rate = |s: &Side| median(s.closed.iter().map(Wave::rate));
    let p99 = |waves: &[Wave]| median(waves.iter().map(|w| w.quantile(0.99)));
    let errors: Vec<&String> = struck
        .closed
        .iter()
        .chain(&struck.paced)
        .chain(&struck.asks)
        .flat_map(|w| &w.errors)
        .collect();
    let example = errors.first().map_or(String::new(), |e| format!(": {e}"));
    promises.keep(
        NAME,
        &format!("one {what}: nobody else fails"),
        &format!("{} failed{example}", errors.len()),
        errors.is_empty(),
    );
    let calls = |s: &Side| s.closed.iter().map(|w| w.calls as f64).sum::<f64>();
    let by_clock = rate(struck) / rate(calm);
    let by_processor = (calls(struck) / struck.had) / (calls(calm) / calm.had);
    let waited = [calm, struck].map(|s| s.waited / (s.waited + s.had));
    let busy = waited[0].max(waited[1]) > BUSY;
    promises.keep(
        NAME,
        &format!("one {what}: the others keep 95 % of their throughput"),
        &format!(
            "{:.1} % of {:.0} calls/s by the clock, {:.1} % by processor time{}",
            by_clock * 100.0,
            rate(calm),
            by_processor * 100.0,
            if busy {
                format!(
                    " (which counts: it waited {:.0} and {:.0} % of it)",
                    waited[0] * 100.0,
                    waited[1] * 100.0
                )
            } else {
                String::new()
            }
        ),
        if busy { by_processor } else { by_clock } >= KEPT,
    );
    for (name, calm, struck) in [
        ("the others' p99 stays within 1.5x", &calm.paced, &struck.paced),
        ("handshakes' and lists' p99 stays within 1.5x", &calm.asks, &struck.asks),
    ] {
        let (before, now) = (p99(calm), p99(struck));
        promises.keep(
            NAME,
            &format!("one {what}: {name}"),
            &format!("{:.2}x ({now:.2} ms against {before:.2} ms)", now / before),
            now <= before * SLOWER,
        );
    }
}
