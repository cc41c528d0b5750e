//! Writes, cut at each possible byte: none arrives twice, and whoever sent one knows what became of
//! it, or that nobody knows.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::client::{self, Client};
use crate::faulty::Peer;
use crate::gate::{Gate, Running, Setup, command, free_port, section, url};
use crate::options::Options;
use crate::promise::Promises;

/// The name of the story.
pub const NAME: &str = "writes";

/// Bytes of a request that are cut at, counted from its first; a request has some 500.
const REQUEST: usize = 640;
/// Bytes of an answer, its head too, of which the last is still to come.
const ANSWER: usize = 145;
/// More than an answer has: what ends there ends behind it.
const BEHIND: usize = 200;
/// A write that does not fit into what sockets and pipes hold by themselves.
const LARGE: usize = 3 << 20;

/// One write and how it is to fail.
struct Write {
    fault: String,
    large: bool,
}

/// What its caller was told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Result,
    // The upstream's own words.
    Error,
    NoEffect(String),
    Unknown(String),
    // Nothing that a caller can act on.
    Nothing(String),
}

/// How many, and how.
pub struct Extent {
    /// Each so-many-th byte is cut at.
    pub stride: usize,
    /// Writes that are under way at once.
    pub callers: usize,
    /// Whether the whole process dies at bytes, too, which takes longer.
    pub kill_stride: usize,
}

impl Extent {
    fn of(options: &Options) -> Extent {
        if options.short {
            Extent { stride: 7, callers: 16, kill_stride: 61 }
        } else {
            Extent { stride: 1, callers: 16, kill_stride: 5 }
        }
    }
}

/// The story.
pub async fn run(options: &Options, promises: &mut Promises) -> Result<(), String> {
    let extent = Extent::of(options);
    over(options, "http", &extent, promises).await?;
    over(options, "stdio", &extent, promises).await
}

/// The story over one wire.
pub async fn over(
    options: &Options,
    wire: &str,
    extent: &Extent,
    promises: &mut Promises,
) -> Result<(), String> {
    let dir = options.dir.join(format!("writes-{wire}"));
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let (table, log) = (dir.join("table"), dir.join("arrivals"));
    std::fs::write(&table, "tools/call pay => as-asked\n* => fine\n").map_err(|e| e.to_string())?;
    let mut peer = Peer::new(wire);
    (peer.table, peer.log) = (Some(table), Some(log.clone()));
    // Retries are wanted, so that one too many would show; nothing else may stand in the way.
    let more = "restart_backoff = \"10ms\"\nrestart_backoff_max = \"10ms\"\n";
    let common = "breaker = { enabled = false }\nconcurrency = { max = 64, queue = 256 }\n\
                  call_timeout = \"10s\"\n\
                  retry = { attempts = 3, budget = 1.0, backoff = \"1ms\", backoff_max = \"5ms\" }";
    let (place, more, running) = if wire == "http" {
        peer.ports = vec![free_port()];
        let place = url(peer.ports[0]);
        (place, common.to_owned(), Some(Running::start(peer)?))
    } else {
        (command(&peer), format!("{more}{common}"), None)
    };
    let rest = section("up", &place, &more);
    let gate = Gate::start(Setup {
        dir,
        rest,
        gateway: "max_body = \"8MiB\"".into(),
        ..Setup::default()
    })?;
    gate.ready(&["up"]).await?;

    let minder = running.map(mind);
    let mut told = HashMap::new();
    let cuts = cuts(wire, extent);
    let kills = kills(wire, extent);
    say(&gate, cuts, extent.callers, "c", &mut told).await?;
    // What kills the process takes the others' with it, who were told nothing to expect.
    say(&gate, kills, extent.callers.min(4), "k", &mut told).await?;
    if let Some(minder) = minder {
        minder.abort();
    }
    judge(wire, &told, &log, promises)
}

// A process that has ended is started again, where it was.
fn mind(mut running: Running) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            if running.has_ended() && running.again().is_err() {
                return;
            }
        }
    })
}

// Cuts of one connection; over stdio the process is the connection.
fn cuts(wire: &str, extent: &Extent) -> Vec<Write> {
    let mut all = Vec::new();
    let mut add = |fault: String, large: bool| all.push(Write { fault, large });
    if wire == "http" {
        for at in (0..REQUEST).step_by(extent.stride) {
            add(format!("cut-request {at}"), false);
            add(format!("cut-request {at}, reset"), false);
            add("fine".into(), false);
        }
        for at in (0..ANSWER).step_by(extent.stride) {
            add(format!("cut {at}"), false);
            add(format!("cut {at}, reset"), false);
            add("fine".into(), false);
        }
        for at in (0..LARGE).step_by((LARGE / 40) * extent.stride.min(4) + 1) {
            add(format!("cut-request {at}"), true);
        }
    }
    for fault in ["duplicate", "garble", "status 500", "status 502", "delay 20ms", "fine"] {
        for _ in 0..60 / extent.stride.min(6) {
            add(fault.into(), false);
        }
    }
    mixed(all)
}

// The process dies.
fn kills(wire: &str, extent: &Extent) -> Vec<Write> {
    let mut all = Vec::new();
    let mut add = |fault: String, large: bool| all.push(Write { fault, large });
    // A line over stdio has no head.
    let (request, answer) = if wire == "http" { (REQUEST, ANSWER) } else { (1, 100) };
    for at in (0..request).step_by(extent.kill_stride) {
        add(format!("cut-request {at}, crash"), false);
        add("fine".into(), false);
    }
    for at in (0..answer).step_by(extent.kill_stride) {
        add(format!("cut {at}, crash"), false);
        add("fine".into(), false);
    }
    // Behind the answer the connection ends although nobody said so; what is sent on it in this
    // moment is lost, and nobody can know.
    for at in (ANSWER..BEHIND).step_by(extent.stride).filter(|_| wire == "http") {
        add(format!("cut {at}"), false);
        add(format!("cut {at}, reset"), false);
        add("fine".into(), false);
    }
    for at in (0..LARGE).step_by((LARGE / 20) * extent.stride.min(4) + 1) {
        add(format!("cut-request {at}, crash"), true);
    }
    for _ in 0..20 {
        add("crash".into(), false);
        add("fine".into(), false);
    }
    mixed(all)
}

// Neighbours are of different kinds, in the same order each time.
fn mixed(all: Vec<Write>) -> Vec<Write> {
    let mut keyed: Vec<_> = all
        .into_iter()
        .enumerate()
        .map(|(n, write)| ((n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15), write))
        .collect();
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, write)| write).collect()
}

async fn say(
    gate: &Gate,
    writes: Vec<Write>,
    callers: usize,
    prefix: &str,
    told: &mut HashMap<String, (Told, String)>,
) -> Result<(), String> {
    let (at, next, writes) = (gate.at, Arc::new(AtomicUsize::new(0)), Arc::new(writes));
    let padding = Arc::new("x".repeat(LARGE));
    let mut all = Vec::new();
    for _ in 0..callers {
        let (next, writes, padding) = (next.clone(), writes.clone(), padding.clone());
        let prefix = prefix.to_owned();
        all.push(tokio::spawn(async move {
            let mut client = Client::new(at);
            let mut told = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(write) = writes.get(n) else { return told };
                let id = format!("{prefix}{n}");
                let padding = if write.large { padding.as_str() } else { "" };
                let arguments = format!(
                    "{{\"id\":\"{id}\",\"fault\":\"{}\",\"p\":\"{padding}\"}}",
                    write.fault
                );
                let request = client::modern(at, "tools/call", "up__pay", &arguments);
                let told_now = match client.ask(&request).await {
                    Err(e) => Told::Nothing(format!("no answer: {e}")),
                    Ok(answer) => heard(&answer.message(), &id),
                };
                told.push((id, (told_now, write.fault.clone())));
            }
        }));
    }
    for one in all {
        told.extend(one.await.map_err(|e| e.to_string())?);
    }
    Ok(())
}

fn heard(message: &serde_json::Value, id: &str) -> Told {
    match (client::text(message), client::failure(message)) {
        (Some(text), _) if text == id => Told::Result,
        (None, Some((reason, "no_effect"))) => Told::NoEffect(reason.to_owned()),
        (None, Some((reason, "unknown"))) => Told::Unknown(reason.to_owned()),
        (None, None) if message["error"]["message"] == "no" => Told::Error,
        _ => Told::Nothing(message.to_string()),
    }
}

fn judge(
    wire: &str,
    told: &HashMap<String, (Told, String)>,
    log: &Path,
    promises: &mut Promises,
) -> Result<(), String> {
    let text = std::fs::read_to_string(log).map_err(|e| e.to_string())?;
    let mut arrived: HashMap<&str, usize> = HashMap::new();
    for line in text.lines().filter(|l| l.contains(" tools/call ")) {
        *arrived.entry(line.rsplit(' ').next().unwrap_or("")).or_default() += 1;
    }
    let times = |id: &String| arrived.get(id.as_str()).copied().unwrap_or(0);
    let example = |wrong: &[&String]| match wrong.first() {
        Some(id) => format!("; {id}: {:?}, arrived {}", told[*id], times(id)),
        None => String::new(),
    };
    let total = told.len();
    let count = |which: fn(&Told) -> bool| told.values().filter(|(t, _)| which(t)).count();
    let of = |wrong: &dyn Fn(&String, &Told) -> bool| -> Vec<&String> {
        told.iter().filter(|(id, (t, _))| wrong(id, t)).map(|(id, _)| id).collect()
    };

    let twice = of(&|id, _| times(id) > 1);
    promises.keep(
        NAME,
        &format!("{wire}: no write arrives twice"),
        &format!("{} of {total}{}", twice.len(), example(&twice)),
        twice.is_empty() && total > 0,
    );
    let nothing = of(&|_, t| matches!(t, Told::Nothing(_)));
    promises.keep(
        NAME,
        &format!("{wire}: each caller has the result or knows what is known"),
        &format!(
            "{} results, {} without effect, {} unknown, {} left alone{}",
            count(|t| matches!(t, Told::Result | Told::Error)),
            count(|t| matches!(t, Told::NoEffect(_))),
            count(|t| matches!(t, Told::Unknown(_))),
            nothing.len(),
            example(&nothing)
        ),
        nothing.is_empty(),
    );
    let lies = of(&|id, t| match t {
        Told::NoEffect(_) => times(id) > 0,
        Told::Result | Told::Error => times(id) != 1,
        _ => false,
    });
    promises.keep(
        NAME,
        &format!("{wire}: «no effect» and «done» are true"),
        &format!("{} lies{}", lies.len(), example(&lies)),
        lies.is_empty(),
    );
    // A process that ends takes with it what was under way beside.
    if wire != "http" {
        return Ok(());
    }
    let spoilt = of(&|id, t| told[id].1 == "fine" && id.starts_with('c') && *t != Told::Result);
    promises.keep(
        NAME,
        &format!("{wire}: a cut costs only the write that it cuts"),
        &format!("{} others{}", spoilt.len(), example(&spoilt)),
        spoilt.is_empty(),
    );
    Ok(())
}
