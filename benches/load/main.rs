//! Whole proxies side by side: mock upstreams, a load generator, nginx, the gateway with every
//! feature on, and any other gateway that the environment names, all up at once and measured in
//! turn, every answer checked to its last byte. What each option does: `benches/README.md`.
//!
//! `cargo bench --bench load`, `cargo bench --bench load -- --smoke`
#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr)]

mod ask;
mod catalog;
mod cells;
mod child;
mod client;
mod contestant;
mod cores;
mod facts;
mod gates;
mod job;
mod load;
mod memory;
mod mock;
mod options;
mod pipe;
mod proc;
mod proof;
mod report;
mod results;
mod roles;
mod sessions;
mod stage;
mod startup;
mod stdio;
mod upstream;
mod wire;

use std::fmt::Write as _;
use std::process::ExitCode;

use contestant::{Contestant, name};
use facts::Facts;
use options::Options;
use proc::Role;
use report::Samples;
use stage::Stage;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = roles::main_if_asked(&arguments) {
        return code;
    }
    let ran = Options::read(&arguments).and_then(|options| run(&options));
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

// True if every answer of the gateway was right, and every gate was passed if that counts.
fn run(options: &Options) -> Result<bool, String> {
    proof::prove()?;
    let places = options.places();
    proc::pin(&places.others);
    roles::raise_limits();
    let mut stage = Stage::new(places.clone())?;
    let mut load = Role::start("load", &[], &places.others)?;
    let samples = under_load(options, &mut stage, &mut load)?;
    stage.clear();
    let facts = besides(options, &mut stage, &mut load);

    let mut gates = gates::all(&samples, &facts);
    if options.only.is_some() {
        gates.retain(|g| g.passes().is_some());
    }
    let mut out = results::circumstances(options);
    if !samples.is_empty() {
        let _ = write!(out, "\n{}", report::table(&options.cells(), &samples));
    }
    out += &report::noise(&samples);
    out += &report::facts(&facts);
    let _ = write!(out, "\n{}", gates::table(&gates));
    println!("{out}");
    if options.write {
        results::write(&out)?;
    }
    let mut wrong = facts.errors.clone();
    for (who, text) in report::errors(&samples) {
        println!("ERRORS {text}");
        if who == Contestant::Weir {
            wrong.push(text);
        }
    }
    for text in &facts.errors {
        println!("ERRORS {text}");
    }
    let missed = options.gate && gates.iter().any(|g| g.passes() == Some(false));
    Ok(wrong.is_empty() && !missed)
}

// What is no cell under load. Each has a gateway of its own, alone.
fn besides(options: &Options, stage: &mut Stage, load: &mut Role) -> Facts {
    let mut facts = Facts::default();
    let (rounds, seconds) = (options.rounds, options.seconds);
    for (name, _) in facts::ALL.iter().filter(|(name, _)| options.wants(name)) {
        let measured = match *name {
            "start" => {
                startup::measure(stage, &mut facts, contestant::peers().len(), options.smoke)
            }
            "stdio" => stdio::measure(stage, load, &mut facts, rounds, seconds),
            "sessions" => memory::sessions(stage, load, &mut facts, options.smoke),
            "rounds" => memory::rounds(stage, load, &mut facts, options.smoke),
            "catalog" => catalog::measure(stage, load, &mut facts, seconds, options.smoke),
            "large" => memory::large(stage, load, &mut facts),
            _ => cores::measure(stage, load, &mut facts, rounds, seconds),
        };
        // One that cannot be measured is an error, and the others go on.
        if let Err(e) = measured {
            facts.errors.push(format!("{name}: {e}"));
        }
    }
    facts
}

// All cells in rounds: A B C, then C B A, so that a drift of the machine hits all alike.
fn under_load(options: &Options, stage: &mut Stage, load: &mut Role) -> Result<Samples, String> {
    let mut samples = Samples::new();
    let peers = contestant::peers().len();
    let has_nginx = options.nginx && roles::is_on_path("nginx");
    if options.nginx && !has_nginx {
        eprintln!("nginx is not there (package nginx-light): no ratios");
    }
    for round in 0..options.rounds {
        for cell in options.cells() {
            let mut all = cell.contestants(peers, has_nginx);
            if round % 2 == 1 {
                all.reverse();
            }
            for who in all {
                let sample = match cells::run(stage, load, &cell, who, options.seconds) {
                    Ok(sample) => sample,
                    Err(e) if who == Contestant::Weir => return Err(format!("{}: {e}", cell.name)),
                    Err(e) => {
                        eprintln!("{}, {}: {e}", cell.name, name(who));
                        continue;
                    }
                };
                eprintln!(
                    "round {} {:13} {:8} {:7.1} µs {:8.0} calls/s, others {:2.0} %, {} errors",
                    round + 1,
                    cell.name,
                    name(who),
                    sample.cpu.unwrap_or(0.0),
                    sample.report.calls as f64 / sample.report.seconds,
                    sample.noise * 100.0,
                    sample.report.errors,
                );
                samples.entry((cell.name, who)).or_default().push(sample);
            }
        }
    }
    Ok(samples)
}
