//! From exec to the first list that has all tools.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use memchr::memmem;
use serde_json::json;

use crate::client::Client;
use crate::contestant::{self, Contestant, name};
use crate::facts::Facts;
use crate::job::Era;
use crate::mock::MARK;
use crate::proc::Process;
use crate::report::median;
use crate::stage::{Setup, Stage, free_port};

/// Between two looks.
const LOOK: Duration = Duration::from_micros(200);
/// A start that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// For the catalog to reach the disk before the process ends.
const KEEP: Duration = Duration::from_millis(200);

/// Starts from nothing, and starts from what an earlier one kept.
///
/// # Errors
/// What went wrong.
pub fn measure(stage: &Stage, facts: &mut Facts, peers: usize, smoke: bool) -> Result<(), String> {
    let times = if smoke { 2 } else { 11 };
    let (mut cold, mut kept) = (Vec::new(), Vec::new());
    for n in 0..times {
        let folder = format!("weir-start-{n}");
        cold.push(once(stage, Contestant::Weir, &folder)?);
        kept.push(once(stage, Contestant::Weir, &folder)?);
    }
    let ms = |all: Vec<Duration>| median(all.iter().map(|d| d.as_secs_f64() * 1e3));
    facts.set("start, ms", ms(cold).unwrap_or(f64::NAN));
    facts.set("start from the kept catalog, ms", ms(kept).unwrap_or(f64::NAN));
    for peer in (0..peers).map(Contestant::Peer) {
        let folder = format!("{}-start", name(peer));
        let all: Result<Vec<_>, _> = (0..times).map(|_| once(stage, peer, &folder)).collect();
        facts.notes.push(match all {
            Ok(all) => format!("start of {}: {:.0} ms", name(peer), ms(all).unwrap_or(f64::NAN)),
            Err(e) => format!("start of {}: {e}", name(peer)),
        });
    }
    Ok(())
}

fn once(stage: &Stage, who: Contestant, folder: &str) -> Result<Duration, String> {
    let setup = Setup::Six;
    let dir = stage.dir.join(folder);
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let port = free_port()?;
    let launch = contestant::launch(who, setup, port, &dir, &stage.upstreams, "")?;
    let mut command = Command::new(&launch.command[0]);
    command.args(&launch.command[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(contestant::log(&dir)?);
    let addr = ([127, 0, 0, 1], port).into();
    let mark = memmem::Finder::new(MARK.as_bytes());
    let began = Instant::now();
    let process = Process::start(folder, &mut command, &stage.places.proxy)?;
    let mut client: Option<Client> = None;
    while began.elapsed() < PATIENCE {
        let list = match &mut client {
            None => {
                client =
                    Client::new(addr, &launch.path, launch.key.as_deref(), Era::Legacy, 1).ok();
                None
            }
            Some(client) => client.raw("tools/list", json!({})).ok(),
        };
        if list.is_some_and(|list| mark.find_iter(&list).count() == setup.tools()) {
            let took = began.elapsed();
            std::thread::sleep(KEEP);
            drop(process);
            return Ok(took);
        }
        if client.is_none() {
            std::thread::sleep(LOOK);
        }
    }
    Err(format!("{} did not show all tools", name(who)))
}
