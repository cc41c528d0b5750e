//! One child behind the gateway, many callers; and the same child driven over its pipes by the
//! load itself, which is what it can do at most.
//!
//! A child that answers in a microsecond is faster than any front could be, so the share that the
//! gateway carries is asked of one that works on each call; what the gateway uses of the processor
//! is asked of the fast one, which leaves it most to do.

use crate::contestant::Contestant;
use crate::facts::Facts;
use crate::job::{Ask, Era, Job, Order, Report};
use crate::proc::Role;
use crate::report::median;
use crate::stage::{Setup, Stage};

/// Calls in flight.
const FLIGHT: usize = 64;
/// What the working child does for each call, in µs.
const WORK: u64 = 50;

/// Measure it.
///
/// # Errors
/// What went wrong.
pub fn measure(
    stage: &Stage,
    load: &mut Role,
    facts: &mut Facts,
    rounds: usize,
    seconds: f64,
) -> Result<(), String> {
    let [cpu, fast, fast_alone] = one(stage, load, facts, 0, rounds, seconds)?;
    let [cpu_working, working, working_alone] = one(stage, load, facts, WORK, rounds, seconds)?;
    facts.set("stdio, µs CPU per call", cpu);
    facts.set("stdio, calls/s", fast);
    facts.set("stdio, child alone, calls/s", fast_alone);
    facts.set("stdio with 50 µs of work, µs CPU per call", cpu_working);
    facts.set("stdio with 50 µs of work, calls/s", working);
    facts.set("stdio with 50 µs of work, child alone, calls/s", working_alone);
    facts.set("stdio, share of what the child can do", working / working_alone);
    Ok(())
}

// CPU per call of the gateway, calls a second through it, and alone.
fn one(
    stage: &Stage,
    load: &mut Role,
    facts: &mut Facts,
    work: u64,
    rounds: usize,
    seconds: f64,
) -> Result<[f64; 3], String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?.display().to_string();
    let mocks = Setup::Stdio.mocks();
    let mock = serde_json::to_string(&mocks[0]).map_err(|e| e.to_string())?;
    let cpu = stage.places.others.first().map(ToString::to_string).unwrap_or_default();
    let arguments = ["child".to_owned(), mock, work.to_string(), cpu];
    let quoted: Vec<String> = arguments.iter().map(|a| format!("'{a}'")).collect();
    let rate = "{ per_second = 10000000, burst = 10000000 }";
    let more = format!(
        "\n[upstreams.u0]\ncommand = '{own}'\nargs = [{}]\nrate = {rate}\n\
         concurrency = {{ max = 1024, queue = 1024 }}\n",
        quoted.join(", ")
    );
    let folder = format!("weir-stdio-{work}");
    let (proxy, routes) =
        stage.fresh(Contestant::Weir, Setup::Stdio, &folder, &more, &stage.places.proxy)?;
    let (mut used, mut through, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let job = Job {
            routes: routes.clone(),
            key: proxy.key.clone(),
            era: Era::Legacy,
            connections: FLIGHT,
            ask: Ask::Call { size: 128, sse: false, delay_ms: 0 },
            rate: None,
        };
        load.ask::<_, ()>(&Order::Prepare(job))?;
        let before = proxy.process.cpu();
        let report: Report = load.ask(&Order::Go(seconds))?;
        let cpu = proxy.process.cpu().saturating_sub(before);
        used.push(cpu.as_secs_f64() * 1e6 / report.calls as f64);
        through.push(report.calls as f64 / report.seconds);
        facts.errors.extend(report.first_error.map(|e| format!("stdio: {e}")));
        let pipe = Order::Pipe {
            command: std::iter::once(own.clone()).chain(arguments.clone()).collect(),
            upstream: mocks[0].name.clone(),
            flight: FLIGHT,
            seconds,
        };
        let report: Report = load.ask(&pipe)?;
        alone.push(report.calls as f64 / report.seconds);
        facts.errors.extend(report.first_error.map(|e| format!("stdio, child alone: {e}")));
    }
    Ok([used, through, alone].map(|all| median(all.into_iter()).unwrap_or(f64::NAN)))
}
