//! The gateway is killed and started again: sessions go on, lists are there at once, no process is
//! left behind, and no file is half written.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::client::{self, Client};
use crate::faulty::Peer;
use crate::gate::{self, Gate, Running, Setup, command, free_port, section, url};
use crate::load::{Ask, closed};
use crate::options::Options;
use crate::promise::Promises;

/// The name of the story.
pub const NAME: &str = "crash";

/// Children of the gateway.
const CHILDREN: usize = 4;
/// Old sessions of clients.
const SESSIONS: usize = 50;
/// How long what a killed gateway leaves may live: a child notices that its parent is gone.
const ORPHANS: Duration = Duration::from_secs(10);

/// The story.
pub async fn run(options: &Options, promises: &mut Promises) -> Result<(), String> {
    let dir = options.dir.join(NAME);
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let table = dir.join("table");
    std::fs::write(&table, "* => fine\n").map_err(|e| e.to_string())?;
    let mut http = Peer::new("http");
    (http.ports, http.table) = (vec![free_port()], Some(table.clone()));
    let mut child = Peer::new("stdio");
    child.table = Some(table.clone());
    let mut rest = section("web", &url(http.ports[0]), "");
    for n in 0..CHILDREN {
        rest += &section(&format!("child{n}"), &command(&child), "");
    }
    let _http = Running::start(http)?;
    let gateway = format!("listen = \"127.0.0.1:{}\"", free_port());
    let start = || {
        let (dir, gateway, rest) = (dir.join("weir"), gateway.clone(), rest.clone());
        Gate::start(Setup { dir, gateway, rest, ..Setup::default() })
    };
    let mut gate = start()?;
    let children: Vec<String> = (0..CHILDREN).map(|n| format!("child{n}")).collect();
    let names: Vec<&str> = children.iter().map(String::as_str).chain(["web"]).collect();
    gate.ready(&names).await?;
    let at = gate.at;
    let mark = dir.display().to_string();
    let started = gate::processes(&mark).len();
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let answer = Client::new(at).ask(&client::hello(at)).await.map_err(|e| e.to_string())?;
        let id = answer.header("mcp-session-id").ok_or("a handshake opened no session")?;
        sessions.push(id.to_owned());
    }

    let rounds = if options.short { 3 } else { 30 };
    let (mut lost, mut orphans, mut torn, mut bare) = (Vec::new(), 0, Vec::new(), Vec::new());
    let (mut slowest, mut slowest_start) = (Duration::ZERO, Duration::ZERO);
    for round in 0..rounds {
        // Killed under load, at a moment of a reload and of refreshed lists that is another each
        // time.
        let load = tokio::spawn(closed(
            at,
            Ask::echo(&["web".to_owned(), "child0".to_owned()]),
            8,
            Duration::from_millis(400),
        ));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let _ = gate.rewrite(&gateway, &format!("{rest}refresh = \"{}s\"\n", 60 + round));
        tokio::time::sleep(Duration::from_millis(17 * (round as u64 % 12))).await;
        gate.kill();
        let _ = load.await;
        let killed = Instant::now();
        while !gate::processes(&mark).is_empty() && killed.elapsed() < ORPHANS {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        orphans += gate::processes(&mark).len();
        slowest = slowest.max(killed.elapsed());
        torn.extend(half_written(&dir.join("weir/state"), &rest));
        // Nobody answers now; what was last seen does.
        std::fs::write(&table, "* => stall\n").map_err(|e| e.to_string())?;
        tokio::time::sleep(Duration::from_millis(120)).await;
        let begun = Instant::now();
        gate = start()?;
        let list = Client::new(at).ask(&client::modern(at, "tools/list", "", "")).await;
        slowest_start = slowest_start.max(begun.elapsed());
        let list = list.map_err(|e| e.to_string())?.message().to_string();
        bare.extend(names.iter().filter(|n| !list.contains(&format!("{n}__echo"))).copied());
        let ask = "{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"tools/list\"}";
        for id in &sessions {
            let answer = Client::new(at).ask(&client::old(at, id, ask)).await;
            if !answer.as_ref().is_ok_and(|a| a.message()["result"]["tools"].is_array()) {
                lost.push(answer.map_or_else(|e| e.to_string(), |a| a.message().to_string()));
            }
        }
        std::fs::write(&table, "* => fine\n").map_err(|e| e.to_string())?;
        gate.kill();
        gate = start()?;
        gate.ready(&names).await?;
    }
    let example = lost.first().map_or(String::new(), |e| format!(": {e}"));
    promises.keep(
        NAME,
        &format!("{rounds} times kill -9: clients' sessions go on"),
        &format!("{} of {} lost{example}", lost.len(), SESSIONS * rounds),
        lost.is_empty(),
    );
    promises.keep(
        NAME,
        "the last-seen catalog serves at once, with nobody behind it",
        &format!(
            "{} missing; the slowest start took {:.2} s",
            bare.len(),
            slowest_start.as_secs_f64()
        ),
        bare.is_empty(),
    );
    promises.keep(
        NAME,
        "no process is left behind",
        &format!("{orphans} of {} after {:.2} s", started * rounds, slowest.as_secs_f64()),
        orphans == 0 && started >= CHILDREN,
    );
    let example = torn.first().map_or(String::new(), |e| format!(": {e}"));
    promises.keep(
        NAME,
        "state files are whole",
        &format!("{} are not{example}", torn.len()),
        torn.is_empty(),
    );
    Ok(())
}

// To its end: what all of them have in common, and a last line that most have.
fn is_configuration(text: &str, rest: &str) -> bool {
    let (most, last) = text.trim_end().rsplit_once('\n').unwrap_or_default();
    text.ends_with(rest)
        || most.ends_with(rest.trim_end()) && last.starts_with("refresh = ") && last.ends_with('"')
}

// Files that a reader would take for good and that are not: JSON must be JSON, and a configuration
// be there to its end.
// What was being written when the end came has another name and is read by nobody.
fn half_written(dir: &Path, rest: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            wrong.extend(half_written(&path, rest));
            continue;
        }
        let json = path.extension().is_some_and(|e| e == "json");
        let bytes = std::fs::read(&path).unwrap_or_default();
        let kept = path.extension().is_some_and(|e| e == "toml");
        let good = match (json, kept) {
            (true, _) => serde_json::from_slice::<serde_json::Value>(&bytes).is_ok(),
            (_, true) => is_configuration(&String::from_utf8_lossy(&bytes), rest),
            _ => true,
        };
        if !good {
            wrong.push(path.display().to_string());
        }
    }
    wrong
}
