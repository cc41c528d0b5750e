//! The tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::cells::{Cell, Sample};
use crate::contestant::{Contestant, name};
use crate::facts::Facts;

/// All rounds of all cells.
pub type Samples = BTreeMap<(&'static str, Contestant), Vec<Sample>>;

/// The median.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut all: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    all.sort_by(f64::total_cmp);
    let n = all.len();
    if n == 0 {
        return None;
    }
    Some(f64::midpoint(all[(n - 1) / 2], all[n / 2]))
}

/// The median of one figure of a cell.
pub fn figure(
    samples: &Samples,
    cell: &'static str,
    who: Contestant,
    what: impl Fn(&Sample) -> Option<f64>,
) -> Option<f64> {
    median(samples.get(&(cell, who))?.iter().filter_map(what))
}

/// CPU per call.
pub fn cpu(samples: &Samples, cell: &'static str, who: Contestant) -> Option<f64> {
    figure(samples, cell, who, |s| s.cpu)
}

fn show(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".into(), |v| format!("{v:.digits$}"))
}

/// The table of the cells under load.
pub fn table(cells: &[Cell], samples: &Samples) -> String {
    let mut out = String::from(
        "| cell | contestant | µs CPU per call | × nginx | calls/s | p50 µs | p99 µs | others on its core | errors |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for cell in cells {
        let nginx = cpu(samples, cell.name, Contestant::Nginx);
        for ((_, who), rounds) in samples.iter().filter(|((c, _), _)| *c == cell.name) {
            let of = |what: fn(&Sample) -> Option<f64>| figure(samples, cell.name, *who, what);
            let used = cpu(samples, cell.name, *who);
            let ratio = used.zip(nginx).map(|(a, b)| a / b);
            let errors: u64 = rounds.iter().map(|s| s.report.errors).sum();
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {errors} |",
                cell.name,
                name(*who),
                show(used, 1),
                show(ratio, 2),
                show(of(|s| Some(s.report.calls as f64 / s.report.seconds)), 0),
                show(of(|s| Some(s.report.p50)), 0),
                show(of(|s| Some(s.report.p99)), 0),
                show(of(|s| s.cpu.map(|_| s.noise * 100.0)), 0) + " %",
            );
        }
    }
    out
}

/// Above this share of a proxy's processor, others have had too much of it.
const NOISE_MAX: f64 = 0.1;

/// A word of warning, if others had much of the proxy's processor.
pub fn noise(samples: &Samples) -> String {
    let proxied = samples.values().flatten().filter(|s| s.cpu.is_some());
    let noise = median(proxied.map(|s| s.noise)).unwrap_or(0.0);
    if noise <= NOISE_MAX {
        return String::new();
    }
    format!(
        "\nOthers had {:.0} % of the proxy's processor in the median round: measure again when the \
         machine is quiet.\n",
        noise * 100.0
    )
}

/// The table of what is no cell.
pub fn facts(facts: &Facts) -> String {
    let mut out = String::new();
    if facts.all().next().is_some() {
        out += "\n| besides | |\n|---|---:|\n";
    }
    for (name, value) in facts.all() {
        let _ = writeln!(out, "| {name} | {value:.2} |");
    }
    if !facts.notes.is_empty() {
        out.push('\n');
    }
    for note in &facts.notes {
        let _ = writeln!(out, "- {note}");
    }
    out
}

/// What was wrong, by contestant.
pub fn errors(samples: &Samples) -> Vec<(Contestant, String)> {
    let mut out = Vec::new();
    for ((cell, who), rounds) in samples {
        let count: u64 = rounds.iter().map(|s| s.report.errors).sum();
        let first = rounds.iter().find_map(|s| s.report.first_error.as_deref());
        if count > 0 {
            let text = first.unwrap_or_default();
            out.push((*who, format!("{cell}, {}: {count} errors: {text}", name(*who))));
        }
    }
    out
}
