//! Two processors against one.
//!
//! Where there are four, the load has two of its own and calls a second are compared. Where there
//! are two, the load needs a part of the second, so calls a second cannot double; there the CPU
//! per call is compared, which locks that all calls share would drive up, and the rate that two
//! processors would carry at that cost is said to be derived.

use crate::contestant::Contestant;
use crate::facts::Facts;
use crate::job::{Ask, Era, Job, Order, Report};
use crate::proc::{Role, processors};
use crate::report::median;
use crate::stage::{Setup, Stage};

/// Connections.
const CONNECTIONS: usize = 128;

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
    if stage.places.proxy.is_empty() || processors() < 2 {
        facts.notes.push("two cores: not measurable without pinning or with one core".into());
        return Ok(());
    }
    let roomy = processors() >= 4;
    // Sides: one processor, two processors.
    let mut proxies = Vec::new();
    for cpus in [vec![0], vec![0, 1]] {
        let folder = format!("weir-cores-{}", cpus.len());
        proxies.push(stage.fresh(Contestant::Weir, Setup::Six, &folder, "", &cpus)?);
    }
    let mut sides = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
    for round in 0..rounds {
        for n in 0..2 {
            let n = if round % 2 == 0 { n } else { 1 - n };
            let (proxy, routes) = &proxies[n];
            let job = Job {
                routes: routes.clone(),
                key: proxy.key.clone(),
                era: Era::Legacy,
                connections: CONNECTIONS,
                ask: Ask::Call { size: 128, sse: false, delay_ms: 0 },
                rate: None,
            };
            load.ask::<_, ()>(&Order::Prepare(job))?;
            let before = proxy.process.cpu();
            let report: Report = load.ask(&Order::Go(seconds))?;
            let cpu = proxy.process.cpu().saturating_sub(before);
            sides[n].0.push(cpu.as_secs_f64() * 1e6 / report.calls as f64);
            sides[n].1.push(report.calls as f64 / report.seconds);
            facts.errors.extend(report.first_error.map(|e| format!("cores: {e}")));
        }
    }
    let [one, two] = sides.map(|(cpu, rate)| {
        let of = |all: Vec<f64>| median(all.into_iter()).unwrap_or(f64::NAN);
        (of(cpu), of(rate))
    });
    facts.set("one core, µs CPU per call", one.0);
    facts.set("two cores, µs CPU per call", two.0);
    facts.set("one core, calls/s", one.1);
    facts.set("two cores, calls/s", two.1);
    if roomy {
        facts.set("two cores / one", two.1 / one.1);
    } else {
        facts.set("two cores / one, derived", 2.0 * one.0 / two.0);
        facts.notes.push(format!(
            "two cores: this machine has {} processors and the load needs a part of the second, \
             so the gate is derived from CPU per call; measured calls/s rose {:.2}-fold",
            processors(),
            two.1 / one.1
        ));
    }
    Ok(())
}
