//! Everything at once, for a long time: mixed load, a reload every 5 s, a child killed every 3 s,
//! an upstream cut every 7 s. What fails must have a reason that fits, and nothing may grow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::{self, Client};
use crate::faulty::Peer;
use crate::gate::{self, Gate, Running, Setup, command, free_port, section, url};
use crate::load::{Ask, median};
use crate::options::Options;
use crate::promise::Promises;
use crate::reloads::{Held, held};

/// The name of the story.
pub const NAME: &str = "soak";

/// How often the file changes.
const RELOAD: Duration = Duration::from_secs(5);
/// How often a child is killed.
const KILL: Duration = Duration::from_secs(3);
/// How often the upstream over HTTP is killed, and for how long it is gone.
const CUT: Duration = Duration::from_secs(7);
/// See [`CUT`].
const GONE: Duration = Duration::from_millis(700);
/// How often it is looked at what the gateway holds.
const LOOK: Duration = Duration::from_secs(1);
/// Calls a second, over all upstreams.
const RATE: f64 = 400.0;
/// What may come of a call of an upstream that is being killed.
const EXPECTED: [&str; 5] =
    ["connection_lost", "connect_failed", "upstream_down", "breaker_open", "queue_full"];
/// Each handshake opens a session that nobody ends. Forgotten after a minute, they are no more in the
/// second half than in the first.
const GATEWAY: &str = "session_idle = \"1m\"";
/// Memory that may be added in an hour, in KiB; less cannot be told from noise in a short soak.
const SLOPE_KIB: f64 = 8.0 * 1024.0;

/// The story.
pub async fn run(options: &Options, promises: &mut Promises) -> Result<(), String> {
    let minutes = options.soak.unwrap_or(20.0);
    let dir = options.dir.join(NAME);
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    std::fs::write(dir.join("table"), "* => fine\n").map_err(|e| e.to_string())?;
    let mut steady = Peer::new("http");
    steady.ports = vec![free_port(), free_port()];
    let mut cut = Peer::new("http");
    (cut.ports, cut.log) = (vec![free_port()], Some(dir.join("arrivals")));
    let ports = [steady.ports.clone(), cut.ports.clone()].concat();
    let _steady = Running::start(steady)?;
    let mut cut = Running::start(cut)?;
    let rest = |n: usize| file(n, &ports, &dir);
    let gateway = GATEWAY.to_owned();
    let gate =
        Gate::start(Setup { dir: dir.join("weir"), gateway, rest: rest(0), ..Setup::default() })?;
    gate.ready(&["steady", "cut", "child1", "child2", "child3"]).await?;
    let mark = dir.display().to_string();

    let over = Arc::new(AtomicBool::new(false));
    let lanes: Vec<_> =
        (0..32).map(|lane| tokio::spawn(call(gate.at, lane, over.clone()))).collect();
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(minutes * 60.0);
    let (mut reload, mut kill, mut die, mut look) =
        (begun + RELOAD, begun + KILL, begun + CUT, begun);
    let mut back = None;
    let (mut reloads, mut kills, mut cuts) = (0, 0, 0);
    let mut seen: Vec<(f64, Held)> = Vec::new();
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = Instant::now();
        if now >= reload {
            reload += RELOAD;
            reloads += 1;
            gate.rewrite(GATEWAY, &rest(reloads))?;
        }
        if now >= kill {
            kill += KILL;
            // The supervisor of a child is ours; the child is what stands behind it.
            let all = gate::processes(&mark);
            if let Some(pid) = all.get(kills % all.len().max(1)) {
                gate::signal_to(*pid, Signal::KILL);
                kills += 1;
            }
        }
        if now >= die {
            die += CUT;
            cuts += 1;
            cut.kill();
            back = Some(now + GONE);
        }
        if back.is_some_and(|at| now >= at) {
            back = None;
            cut.again()?;
        }
        if now >= look {
            look += LOOK;
            seen.push((begun.elapsed().as_secs_f64(), held(&gate, &mark).await));
        }
    }
    over.store(true, Ordering::Relaxed);
    let (mut calls, mut failed, mut wrong) = (0u64, BTreeMap::<String, u64>::new(), Vec::new());
    for lane in lanes {
        let told = lane.await.map_err(|e| e.to_string())?;
        calls += told.calls;
        told.failed.into_iter().for_each(|(k, n)| *failed.entry(k).or_default() += n);
        wrong.extend(told.wrong);
    }
    let example = wrong.first().map_or(String::new(), |e| format!(": {e}"));
    promises.keep(
        NAME,
        &format!(
            "{minutes} min, {reloads} reloads, {kills} kills, {cuts} cuts: no unexplained error"
        ),
        &format!("{} of {calls}; explained: {failed:?}{example}", wrong.len()),
        wrong.is_empty() && calls > 0,
    );
    grown(&seen, promises);
    let twice = twice(&dir.join("arrivals"));
    promises.keep(NAME, "no write arrived twice", &format!("{twice}"), twice == 0);
    Ok(())
}

fn file(n: usize, ports: &[u16], dir: &std::path::Path) -> String {
    let mut child = Peer::new("stdio");
    child.table = Some(dir.join("table"));
    let quick = "restart_backoff = \"50ms\"\nrestart_backoff_max = \"200ms\"";
    let mut text =
        section("steady", &url(ports[0]), &format!("call_timeout = \"{}s\"", 20 + n % 3));
    text += &section("cut", &url(ports[2]), "");
    for at in 1..=3 {
        // One of them is built anew by each reload.
        child.tools = if n % 3 + 1 == at { 2 + n % 2 } else { 2 };
        text += &section(&format!("child{at}"), &command(&child), quick);
    }
    if n.is_multiple_of(2) {
        text += &section("guest", &url(ports[1]), "");
    }
    text
}

#[derive(Default)]
struct Told {
    calls: u64,
    failed: BTreeMap<String, u64>,
    wrong: Vec<String>,
}

async fn call(at: std::net::SocketAddr, lane: usize, over: Arc<AtomicBool>) -> Told {
    let mut told = Told::default();
    let mut client = Client::new(at);
    let pause = Duration::from_secs_f64(32.0 / RATE);
    let hurt = ["cut", "child1", "child2", "child3"];
    let lists = Ask::Say(Arc::new(vec![
        (client::modern(at, "tools/list", "", ""), "steady__echo"),
        (client::hello(at), "\"serverInfo\""),
        (client::modern(at, "server/discover", "", ""), "\"capabilities\""),
    ]));
    for n in 0u64.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        tokio::time::sleep(pause).await;
        told.calls += 1;
        let kind = (n + lane as u64) % 8;
        if kind == 0 {
            told.wrong.extend(lists.once(&mut client, n).await);
            continue;
        }
        let upstream = if kind < 4 { "steady" } else { hurt[kind as usize - 4] };
        let tool = if n.is_multiple_of(2) { "echo" } else { "pay" };
        let id = format!("s{lane}-{n}");
        let answer = client.ask(&client::call(at, &format!("{upstream}__{tool}"), &id)).await;
        let message = match answer {
            Ok(answer) => answer.message(),
            Err(e) => {
                told.wrong.push(format!("{upstream}: no answer: {e}"));
                continue;
            }
        };
        if client::text(&message) == Some(&id) {
            continue;
        }
        match client::failure(&message) {
            Some((reason, outcome)) if upstream != "steady" && EXPECTED.contains(&reason) => {
                *told.failed.entry(format!("{reason}, {outcome}")).or_default() += 1;
            }
            _ => told.wrong.push(format!("{upstream}: {message}")),
        }
    }
    told
}

// The third quarter against the last: before, the allocator is still finding out what it needs.
fn grown(seen: &[(f64, Held)], promises: &mut Promises) {
    let quarter = seen.len() / 4;
    let (early, late) = (&seen[quarter * 2..quarter * 3], &seen[quarter * 3..]);
    let of =
        |part: &[(f64, Held)], what: fn(&Held) -> f64| median(part.iter().map(|(_, h)| what(h)));
    let (rss, fds, tasks, children) = (
        |h: &Held| h.rss as f64,
        |h: &Held| h.fds as f64,
        |h: &Held| h.tasks as f64,
        |h: &Held| h.children as f64,
    );
    let slope = slope(&seen[quarter * 2..]) * 3600.0;
    let (before, now) = (of(early, rss), of(late, rss));
    promises.keep(
        NAME,
        "memory does not grow",
        &format!(
            "{:.1} MiB -> {:.1} MiB, slope {:.0} KiB an hour",
            before / 1024.0,
            now / 1024.0,
            slope
        ),
        now - before <= (SLOPE_KIB / 8.0).max(before * 0.05) && slope <= SLOPE_KIB,
    );
    promises.keep(
        NAME,
        "descriptors, tasks and processes are flat",
        &format!(
            "descriptors {} -> {}, tasks {} -> {}, processes {} -> {}",
            of(early, fds),
            of(late, fds),
            of(early, tasks),
            of(late, tasks),
            of(early, children),
            of(late, children)
        ),
        of(late, tasks) > 0.0
            && of(late, fds) <= of(early, fds) + 8.0
            && of(late, tasks) <= of(early, tasks) + 8.0
            && of(late, children) <= of(early, children) + 1.0,
    );
}

// Of the line through it, in KiB a second.
fn slope(seen: &[(f64, Held)]) -> f64 {
    let n = seen.len().max(1) as f64;
    let x = seen.iter().map(|(t, _)| t).sum::<f64>() / n;
    let y = seen.iter().map(|(_, h)| h.rss as f64).sum::<f64>() / n;
    let over: f64 = seen.iter().map(|(t, h)| (t - x) * (h.rss as f64 - y)).sum();
    let under: f64 = seen.iter().map(|(t, _)| (t - x).powi(2)).sum();
    over / under.max(1e-9)
}

fn twice(log: &std::path::Path) -> usize {
    // Without a log nothing is proved.
    let Ok(text) = std::fs::read_to_string(log) else { return usize::MAX };
    let mut seen = std::collections::HashSet::new();
    text.lines()
        .filter(|l| l.contains(" tools/call pay "))
        .filter(|l| !seen.insert(l.rsplit(' ').next().unwrap_or("")))
        .count()
}
