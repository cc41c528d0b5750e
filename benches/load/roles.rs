//! The copies of this program that are not the one in charge.

use std::io::BufRead as _;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::job::{Mock, Order};
use crate::load::Load;
use crate::sessions::Sessions;
use crate::{child, pipe, proc, sessions, upstream};

/// Be what the first argument says, if it is a role.
pub fn main_if_asked(arguments: &[String]) -> Option<ExitCode> {
    let ran = match arguments {
        [role, mocks] if role == "upstream" => {
            raise_limits();
            let mocks: Result<Vec<Mock>, _> = serde_json::from_str(mocks);
            mocks.map_err(Into::into).and_then(upstream::run)
        }
        [role] if role == "load" => {
            raise_limits();
            load()
        }
        // A proxy starts it and leaves it its own processor; it belongs to the other side.
        [role, mock, work, cpu] if role == "child" => {
            proc::pin(&cpu.parse().map(|cpu| vec![cpu]).unwrap_or_default());
            let work = Duration::from_micros(work.parse().unwrap_or(0));
            let mock: Result<Mock, _> = serde_json::from_str(mock);
            mock.map_err(Into::into).and_then(|mock| child::run(mock, work))
        }
        _ => return None,
    };
    Some(match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e}", arguments[0]);
            ExitCode::FAILURE
        }
    })
}

/// As many open files as are allowed: each session has a connection.
pub fn raise_limits() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Whether there is such a program.
pub fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

// Orders come as lines, and each has an answer.
fn load() -> std::io::Result<()> {
    let (mut load, mut sessions) = (None, Sessions::default());
    for line in std::io::stdin().lock().lines() {
        match serde_json::from_str(&line?)? {
            Order::Prepare(job) => {
                let prepared = Load::prepare(job).map(|l| load = Some(l));
                say(&prepared)?;
            }
            Order::Go(seconds) => {
                let ran = load.as_mut().map(|l| l.go(seconds)).ok_or("nothing is prepared");
                // Its connections are gone before the next one's turn.
                load = None;
                say(&ran)?;
            }
            Order::Open { route, key, sessions: count } => {
                say(&sessions.open(route, key, count))?;
            }
            Order::End => say(&sessions.end())?,
            Order::Pipe { command, upstream, flight, seconds } => {
                say(&pipe::run(&command, &upstream, flight, seconds))?;
            }
            Order::Large { route, key, size, pace } => {
                say(&sessions::large(&route, key.as_deref(), size, pace))?;
            }
        }
    }
    Ok(())
}

fn say<T: Serialize, E: Serialize>(what: &Result<T, E>) -> std::io::Result<()> {
    println!("{}", serde_json::to_string(what)?);
    Ok(())
}
