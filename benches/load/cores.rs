//! Two processors against one.
//!
//! Where there are four, the load has two of its own and calls a second are compared. Where there
//! are two, the load needs a part of the second, so calls a second cannot double, whatever the
//! gateway does. There one gateway on both is compared with two gateways that have one each and
//! share nothing: both have the same load beside them, and what the one loses against the two is
//! what its threads cost each other.

use crate::contestant::Contestant;
use crate::facts::Facts;
use crate::job::{Ask, Era, Job, Order, Report, Route};
use crate::proc::{Role, processors};
use crate::report::median;
use crate::stage::{Proxy, Setup, Stage};

/// Connections.
const CONNECTIONS: usize = 128;

struct Side {
    what: [&'static str; 2],
    proxies: Vec<Proxy>,
    routes: Vec<Route>,
    cpu: Vec<f64>,
    rate: Vec<f64>,
}

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
    let side = |what, each: &[&[usize]]| side(stage, what, each);
    let mut sides = [
        side(["one core, µs CPU per call", "one core, calls/s"], &[&[0]])?,
        side(["two cores, µs CPU per call", "two cores, calls/s"], &[&[0, 1]])?,
        side(["two gateways, µs CPU per call", "two gateways, calls/s"], &[&[0], &[1]])?,
    ];
    for round in 0..rounds {
        if round % 2 == 0 {
            sides.iter_mut().try_for_each(|s| s.run(load, facts, seconds))?;
        } else {
            sides.iter_mut().rev().try_for_each(|s| s.run(load, facts, seconds))?;
        }
    }
    let [one, two, apart] = sides.map(|side| {
        facts.set(side.what[0], median(side.cpu.into_iter()).unwrap_or(f64::NAN));
        let rate = median(side.rate.into_iter()).unwrap_or(f64::NAN);
        facts.set(side.what[1], rate);
        rate
    });
    if processors() >= 4 {
        facts.set("two cores / one", two / one);
    } else {
        facts.set("two cores / two gateways with one each", two / apart);
        facts.notes.push(format!(
            "two cores: this machine has {} processors and the load needs a part of the second, so \
             one gateway on both is compared with two that have one each (1.7 of 2 is 0.85)",
            processors(),
        ));
    }
    Ok(())
}

// Gateways, each on these processors.
fn side(stage: &Stage, what: [&'static str; 2], each: &[&[usize]]) -> Result<Side, String> {
    let (mut proxies, mut all) = (Vec::new(), Vec::new());
    for (n, cpus) in each.iter().enumerate() {
        let folder = format!("weir-cores-{}-{}-{n}", each.len(), cpus.len());
        let (proxy, routes) = stage.fresh(Contestant::Weir, Setup::Six, &folder, "", cpus)?;
        proxies.push(proxy);
        all.push(routes);
    }
    // In turn, so that each has as many connections.
    let routes = (0..all[0].len()).flat_map(|n| all.iter().map(move |r| r[n].clone())).collect();
    Ok(Side { what, proxies, routes, cpu: vec![], rate: vec![] })
}

impl Side {
    fn run(&mut self, load: &mut Role, facts: &mut Facts, seconds: f64) -> Result<(), String> {
        let job = Job {
            routes: self.routes.clone(),
            key: self.proxies[0].key.clone(),
            era: Era::Legacy,
            connections: CONNECTIONS,
            ask: Ask::Call { size: 128, sse: false, delay_ms: 0 },
            rate: None,
        };
        load.ask::<_, ()>(&Order::Prepare(job))?;
        let used = |side: &Side| -> f64 {
            side.proxies.iter().map(|p| p.process.cpu().as_secs_f64()).sum()
        };
        let before = used(self);
        let report: Report = load.ask(&Order::Go(seconds))?;
        self.cpu.push((used(self) - before) * 1e6 / report.calls as f64);
        self.rate.push(report.calls as f64 / report.seconds);
        facts.errors.extend(report.first_error.map(|e| format!("cores: {e}")));
        Ok(())
    }
}
