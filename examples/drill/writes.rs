//! Writes, cut at each possible byte: none arrives twice, and whoever sent one knows what became of
//! it, or that nobody knows. Where there are several replicas, none arrives at two of them either;
//! and one that carries an idempotency key may come again, but under the same key, and is carried
//! out once.

use std::collections::{BTreeSet, HashMap};
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

/// How long a caller waits whose write could not be sent.
const START: Duration = Duration::from_millis(100);

/// Where the writes go.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// What it is called.
    pub name: &'static str,
    wire: &'static str,
    replicas: usize,
    keyed: bool,
}

/// Each of them; of the last ones fewer bytes are cut at, since they fail at the same places.
const WAYS: [Way; 5] = [
    Way { name: "http", wire: "http", replicas: 1, keyed: false },
    Way { name: "stdio", wire: "stdio", replicas: 1, keyed: false },
    Way { name: "replicas", wire: "http", replicas: 2, keyed: false },
    Way { name: "keyed", wire: "http", replicas: 1, keyed: true },
    Way { name: "keyed-stdio", wire: "stdio", replicas: 1, keyed: true },
];

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

impl Way {
    // One that may come again fails once: it is known again by its key.
    fn write(self, fault: String, large: bool) -> Write {
        let fault = if self.keyed { format!("{fault}, first") } else { fault };
        Write { fault, large }
    }
}

impl Extent {
    fn of(options: &Options, way: Way) -> Extent {
        let plain = way.replicas == 1 && !way.keyed;
        match (options.short, plain) {
            (true, true) => Extent { stride: 7, callers: 16, kill_stride: 61 },
            (true, false) => Extent { stride: 29, callers: 16, kill_stride: 97 },
            (false, true) => Extent { stride: 1, callers: 16, kill_stride: 5 },
            (false, false) => Extent { stride: 3, callers: 16, kill_stride: 13 },
        }
    }
}

/// The story.
pub async fn run(options: &Options, promises: &mut Promises) -> Result<(), String> {
    for way in WAYS {
        over(options, way, &Extent::of(options, way), promises).await?;
    }
    Ok(())
}

/// The story on one way.
pub async fn over(
    options: &Options,
    way: Way,
    extent: &Extent,
    promises: &mut Promises,
) -> Result<(), String> {
    let dir = options.dir.join(format!("writes-{}", way.name));
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let table = dir.join("table");
    std::fs::write(&table, "tools/call pay => as-asked\n* => fine\n").map_err(|e| e.to_string())?;
    let log = |n: usize| dir.join(format!("arrivals{n}"));
    let peers: Vec<Peer> = (0..way.replicas)
        .map(|n| {
            let ports = if way.wire == "http" { vec![free_port()] } else { vec![] };
            Peer { ports, table: Some(table.clone()), log: Some(log(n)), ..Peer::new(way.wire) }
        })
        .collect();
    let rest = sections(way, &peers);
    let mut minders = Vec::new();
    for peer in peers.into_iter().filter(|_| way.wire == "http") {
        minders.push(mind(Running::start(peer)?));
    }
    let gate = Gate::start(Setup {
        dir: dir.join("weir"),
        rest,
        gateway: "max_body = \"8MiB\"".into(),
        ..Setup::default()
    })?;
    gate.ready(&["up"]).await?;
    let mut told = HashMap::new();
    say(&gate, cuts(way, extent), extent.callers, "c", &mut told).await?;
    // What kills the process takes the others' with it, who were told nothing to expect.
    say(&gate, kills(way, extent), extent.callers.min(4), "k", &mut told).await?;
    for minder in minders {
        minder.abort();
    }
    let mut text = String::new();
    for n in 0..way.replicas {
        text += &std::fs::read_to_string(log(n)).map_err(|e| e.to_string())?;
    }
    let arrivals = Arrivals::of(&text);
    if way.keyed {
        judge_keyed(way, &told, &arrivals, promises);
    } else {
        judge(way, &told, &arrivals, promises);
    }
    Ok(())
}

fn sections(way: Way, peers: &[Peer]) -> String {
    // Retries are wanted, so that one too many would show; nothing else may stand in the way.
    // What goes to a process again has to wait until there is one.
    let slowly = way.keyed && way.wire == "stdio";
    let [first, most] = if slowly { ["200ms", "1s"] } else { ["1ms", "5ms"] };
    let mut more = format!(
        "breaker = {{ enabled = false }}\nconcurrency = {{ max = 64, queue = 256 }}\n\
         call_timeout = \"10s\"\nretry = {{ attempts = 3, budget = 1.0, \
         backoff = \"{first}\", backoff_max = \"{most}\" }}\n"
    );
    if way.wire == "stdio" {
        more += "restart_backoff = \"10ms\"\nrestart_backoff_max = \"10ms\"\n";
    }
    if way.keyed {
        more += "idempotency = { argument = \"key\" }\n";
    }
    let place = match peers {
        [peer] if way.wire == "stdio" => command(peer),
        [peer] => url(peer.ports[0]),
        _ => {
            more += "ejection = { consecutive = 100000 }\n";
            let urls: Vec<_> =
                peers.iter().map(|p| format!("http://127.0.0.1:{}/mcp", p.ports[0])).collect();
            format!("urls = {urls:?}")
        }
    };
    section("up", &place, &more)
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
fn cuts(way: Way, extent: &Extent) -> Vec<Write> {
    let mut all = Vec::new();
    let mut add = |fault: String, large: bool| all.push(way.write(fault, large));
    if way.wire == "http" {
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
fn kills(way: Way, extent: &Extent) -> Vec<Write> {
    let mut all = Vec::new();
    let mut add = |fault: String, large: bool| all.push(way.write(fault, large));
    // A line over stdio has no head.
    let (request, answer) = if way.wire == "http" { (REQUEST, ANSWER) } else { (1, 100) };
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
    for at in (ANSWER..BEHIND).step_by(extent.stride).filter(|_| way.wire == "http") {
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
    told: &mut AllTold,
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
                // Somebody is being started; writes that are refused meanwhile show nothing.
                if matches!(told_now, Told::NoEffect(_)) {
                    tokio::time::sleep(START).await;
                }
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

/// What the peers wrote down.
#[derive(Default)]
struct Arrivals<'a> {
    // Of each write: how often it came, and under which keys; how often it was carried out.
    came: HashMap<&'a str, Vec<&'a str>>,
    done: HashMap<&'a str, usize>,
}

impl Arrivals<'_> {
    fn of(text: &str) -> Arrivals<'_> {
        let mut out = Arrivals::default();
        for line in text.lines() {
            let mut words = line.split(' ').skip(1);
            let (what, _tool, id) = (words.next(), words.next(), words.next().unwrap_or(""));
            match what {
                Some("tools/call") => {
                    out.came.entry(id).or_default().push(words.next().unwrap_or(""));
                }
                Some("done") => *out.done.entry(id).or_default() += 1,
                _ => {}
            }
        }
        out
    }

    fn times(&self, id: &str) -> usize {
        self.came.get(id).map_or(0, Vec::len)
    }

    fn done(&self, id: &str) -> usize {
        self.done.get(id).copied().unwrap_or(0)
    }

    fn keys(&self, id: &str) -> BTreeSet<&str> {
        self.came.get(id).into_iter().flatten().copied().collect()
    }
}

type AllTold = HashMap<String, (Told, String)>;

// Those of which something is so, in the order of their names.
fn those(told: &AllTold, wrong: impl Fn(&str, &Told) -> bool) -> Vec<&str> {
    let mut all: Vec<_> =
        told.iter().filter(|(id, (t, _))| wrong(id, t)).map(|(id, _)| id.as_str()).collect();
    all.sort_unstable();
    all
}

fn example(told: &AllTold, arrivals: &Arrivals<'_>, wrong: &[&str]) -> String {
    let Some(id) = wrong.first() else { return String::new() };
    let (times, done) = (arrivals.times(id), arrivals.done(id));
    format!("; {id}: {:?}, arrived {times}, done {done}", told[*id])
}

fn judge(way: Way, told: &AllTold, arrivals: &Arrivals<'_>, promises: &mut Promises) {
    let (name, total) = (way.name, told.len());
    let example = |wrong: &[&str]| example(told, arrivals, wrong);
    let twice = those(told, |id, _| arrivals.times(id) > 1);
    let replicas = if way.replicas > 1 { ", nor at two replicas" } else { "" };
    promises.keep(
        NAME,
        &format!("{name}: no write arrives twice{replicas}"),
        &format!("{} of {total}{}", twice.len(), example(&twice)),
        twice.is_empty() && total > 0,
    );
    judge_told(name, told, arrivals, promises);
    let lies = those(told, |id, t| match t {
        Told::NoEffect(_) => arrivals.times(id) > 0,
        Told::Result | Told::Error => arrivals.times(id) != 1,
        _ => false,
    });
    promises.keep(
        NAME,
        &format!("{name}: «no effect» and «done» are true"),
        &format!("{} lies{}", lies.len(), example(&lies)),
        lies.is_empty(),
    );
    // A process that ends takes with it what was under way beside.
    if way.wire != "http" {
        return;
    }
    let spoilt =
        those(told, |id, t| told[id].1 == "fine" && id.starts_with('c') && *t != Told::Result);
    promises.keep(
        NAME,
        &format!("{name}: a cut costs only the write that it cuts"),
        &format!("{} others{}", spoilt.len(), example(&spoilt)),
        spoilt.is_empty(),
    );
}

fn judge_keyed(way: Way, told: &AllTold, arrivals: &Arrivals<'_>, promises: &mut Promises) {
    let (name, total) = (way.name, told.len());
    let example = |wrong: &[&str]| example(told, arrivals, wrong);
    let mut owners: HashMap<&str, BTreeSet<&str>> = HashMap::new();
    for (id, keys) in &arrivals.came {
        keys.iter().filter(|key| !key.is_empty()).for_each(|key| {
            owners.entry(key).or_default().insert(id);
        });
    }
    // Of some that were cut early not even the name is known.
    let several = those(told, |id, _| {
        let keys = arrivals.keys(id);
        keys.len() > 1 || keys.iter().any(|key| owners.get(key).is_none_or(|ids| ids.len() > 1))
    });
    let again = those(told, |id, _| arrivals.times(id) > 1);
    promises.keep(
        NAME,
        &format!("{name}: a write comes under one key of its own, however often"),
        &format!("{} of {total}, {} came again{}", several.len(), again.len(), example(&several)),
        several.is_empty() && (!again.is_empty() || way.wire == "stdio"),
    );
    let twice = those(told, |id, _| arrivals.done(id) > 1);
    promises.keep(
        NAME,
        &format!("{name}: and is carried out once"),
        &format!("{} twice{}", twice.len(), example(&twice)),
        twice.is_empty(),
    );
    judge_told(name, told, arrivals, promises);
    let lies = those(told, |id, t| match t {
        Told::NoEffect(_) => arrivals.done(id) > 0,
        Told::Result => arrivals.done(id) != 1,
        _ => false,
    });
    promises.keep(
        NAME,
        &format!("{name}: «no effect» and «done» are true"),
        &format!("{} lies{}", lies.len(), example(&lies)),
        lies.is_empty(),
    );
    // Over stdio what is no message is passed over, and an error is an answer.
    if way.wire != "http" {
        return;
    }
    let lost = those(told, |id, t| id.starts_with('c') && *t != Told::Result);
    promises.keep(
        NAME,
        &format!("{name}: what fails once has its result all the same"),
        &format!("{} have none{}", lost.len(), example(&lost)),
        lost.is_empty(),
    );
}

fn judge_told(name: &str, told: &AllTold, arrivals: &Arrivals<'_>, promises: &mut Promises) {
    let count = |which: fn(&Told) -> bool| told.values().filter(|(t, _)| which(t)).count();
    let nothing = those(told, |_, t| matches!(t, Told::Nothing(_)));
    promises.keep(
        NAME,
        &format!("{name}: each caller has the result or knows what is known"),
        &format!(
            "{} results, {} without effect, {} unknown, {} left alone{}",
            count(|t| matches!(t, Told::Result | Told::Error)),
            count(|t| matches!(t, Told::NoEffect(_))),
            count(|t| matches!(t, Told::Unknown(_))),
            nothing.len(),
            example(told, arrivals, &nothing)
        ),
        nothing.is_empty(),
    );
}
