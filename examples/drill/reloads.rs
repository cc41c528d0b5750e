//! Reloads, one after the other, under full load: no call fails, and nothing is left behind.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::faulty::Peer;
use crate::gate::{self, Gate, Running, Setup, command, free_port, section, url};
use crate::load::{Ask, Wave, closed, median};
use crate::options::Options;
use crate::promise::Promises;

/// The name of the story.
pub const NAME: &str = "reloads";

/// How long one reload may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Memory that may be left of all of them, in KiB.
const LEFT_KIB: u64 = 8 << 10;

/// What a gateway holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub rss: u64,
    pub fds: usize,
    pub tasks: u64,
    pub children: usize,
}

/// What it holds now.
pub async fn held(gate: &Gate, mark: &str) -> Held {
    let tasks = gate.metric("weir_process_tasks", "").await as u64;
    Held { rss: gate.rss(), fds: gate.fds(), tasks, children: gate::processes(mark).len() }
}

/// What `/status` shows of the `n`th file once it is in force, and of no other: a counter of
/// reloads would also count those that found nothing changed.
fn mark_of(n: usize) -> String {
    format!("file{n}")
}

/// The sections of one of a few files that differ in each way a reload can do: a limit, an upstream
/// that comes and goes, one that is built anew, a view; and in the [mark](mark_of).
pub fn file(n: usize, ports: &[u16], dir: &Path) -> String {
    let mut child = Peer::new("stdio");
    child.table = Some(dir.join("table"));
    child.tools = 2 + n % 2;
    let mut text =
        section("steady", &url(ports[0]), &format!("call_timeout = \"{}s\"", 20 + n % 3));
    text += &section("child", &command(&child), "");
    if n % 4 < 2 {
        text += &section("guest", &url(ports[1]), "");
    }
    if n.is_multiple_of(3) {
        text += "\n[views.some]\nupstreams = [\"steady\"]\n";
    }
    text + &section(&mark_of(n), &url(ports[0]), "enabled = false")
}

async fn is_in_force(gate: &Gate, n: usize) -> bool {
    let (status, mark) = (gate.status().await, mark_of(n));
    status["upstreams"].as_array().is_some_and(|all| all.iter().any(|u| u["upstream"] == *mark))
}

/// The story.
pub async fn run(options: &Options, promises: &mut Promises) -> Result<(), String> {
    let dir = options.dir.join(NAME);
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    std::fs::write(dir.join("table"), "* => fine\n").map_err(|e| e.to_string())?;
    let mut peer = Peer::new("http");
    peer.ports = vec![free_port(), free_port()];
    let ports = peer.ports.clone();
    let _peer = Running::start(peer)?;
    let rest = file(0, &ports, &dir);
    let gate = Gate::start(Setup { dir: dir.join("weir"), rest, ..Setup::default() })?;
    gate.ready(&["steady", "child", "guest"]).await?;
    let mark = dir.display().to_string();

    let over = Arc::new(AtomicBool::new(false));
    let (at, stop) = (gate.at, over.clone());
    let load = tokio::spawn(async move {
        let mut sum = Wave::default();
        let ask = Ask::echo(&["steady".to_owned(), "child".to_owned()]);
        while !stop.load(Ordering::Relaxed) {
            let mut wave = closed(at, ask.clone(), 16, Duration::from_secs(2)).await;
            // Only how many counts here.
            wave.times.clear();
            sum.add(wave);
        }
        sum
    });
    let wanted = options.reloads.unwrap_or(if options.short { 60 } else { 1000 });
    let begun = Instant::now();
    let mut early = held(&gate, &mark).await;
    for n in 1..=wanted {
        gate.rewrite("", &file(n, &ports, &dir))?;
        gate.signal(Signal::HUP);
        let end = Instant::now() + PATIENCE;
        while !is_in_force(&gate, n).await {
            if Instant::now() > end {
                return Err(format!("reload {n} was not applied\n{}", gate.log()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if n == wanted / 5 {
            early = settled(&gate, &mark).await;
        }
    }
    let time = begun.elapsed();
    let late = settled(&gate, &mark).await;
    over.store(true, Ordering::Relaxed);
    let sum = load.await.map_err(|e| e.to_string())?;
    let example = sum.errors.first().map_or(String::new(), |e| format!(": {e}"));
    promises.keep(
        NAME,
        &format!("{wanted} reloads under load: no call fails"),
        &format!(
            "{} of {} failed, {:.0} ms a reload{example}",
            sum.errors.len(),
            sum.calls,
            time.as_secs_f64() * 1e3 / wanted as f64
        ),
        sum.errors.is_empty() && sum.calls > 0,
    );
    promises.keep(
        NAME,
        "no process, descriptor or task is left behind",
        &format!(
            "processes {} -> {}, descriptors {} -> {}, tasks {} -> {}",
            early.children, late.children, early.fds, late.fds, early.tasks, late.tasks
        ),
        late.tasks > 0
            && late.children <= early.children
            && late.fds <= early.fds + 8
            && late.tasks <= early.tasks + 8,
    );
    promises.keep(
        NAME,
        "memory is flat",
        &format!("{:.1} MiB -> {:.1} MiB", early.rss as f64 / 1024.0, late.rss as f64 / 1024.0),
        late.rss <= early.rss + LEFT_KIB,
    );
    Ok(())
}

// When what the last reload retired has ended: the middle one of what is seen for a while, since the
// load's own connections come and go.
async fn settled(gate: &Gate, mark: &str) -> Held {
    let mut seen = Vec::new();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        seen.push(held(gate, mark).await);
    }
    let middle = |what: fn(&Held) -> f64| median(seen.iter().map(what));
    Held {
        rss: middle(|held| held.rss as f64) as u64,
        fds: middle(|held| held.fds as f64) as usize,
        tasks: middle(|held| held.tasks as f64) as u64,
        children: middle(|held| held.children as f64) as usize,
    }
}
