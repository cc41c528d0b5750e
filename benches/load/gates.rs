//! What is demanded, and what was measured of it.

use std::fmt::Write as _;

use crate::contestant::{Contestant, peers};
use crate::facts::Facts;
use crate::report::{Samples, cpu, figure};

/// One demand.
pub struct Gate {
    what: &'static str,
    figure: Option<f64>,
    // `Ok`: at most; `Err`: at least.
    bound: Result<f64, f64>,
    unit: &'static str,
}

impl Gate {
    /// `None` if it was not measured.
    pub fn passes(&self) -> Option<bool> {
        let figure = self.figure?;
        Some(match self.bound {
            Ok(most) => figure <= most,
            Err(least) => figure >= least,
        })
    }
}

fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    // A difference of two medians may be nothing on a noisy machine: then there is no ratio.
    a.zip(b).filter(|(_, b)| *b > 0.0).map(|(a, b)| a / b)
}

/// All demands.
pub fn all(samples: &Samples, facts: &Facts) -> Vec<Gate> {
    use Contestant::{Direct, Nginx, Weir};
    let of = |cell, who| cpu(samples, cell, who);
    let over_nginx = |cell| ratio(of(cell, Weir), of(cell, Nginx));
    let over = |cell, base| ratio(of(cell, Weir), of(base, Weir));
    // What a proxy adds to the latency of the mock servers alone.
    let p50 = |cell, who| figure(samples, cell, who, |s| Some(s.report.p50));
    let p99 = |cell, who| figure(samples, cell, who, |s| Some(s.report.p99));
    let added_50 = |who| Some(p50("paced", who)? - p50("paced", Direct)?);
    let added_99 = |who| Some(p99("paced", who)? - p99("paced", Direct)?);
    let per_kib = |cell| {
        let bytes = figure(samples, cell, Weir, |s| Some(s.report.bytes as f64 / 1024.0));
        ratio(of(cell, Weir), bytes)
    };
    let at_most = |what, figure, most, unit| Gate { what, figure, bound: Ok(most), unit };
    let at_least = |what, figure, least, unit| Gate { what, figure, bound: Err(least), unit };
    let fact = |name| facts.get(name);
    let mut out = vec![
        at_most("1 CPU per call, one upstream", over_nginx("call-1"), 1.7, "× nginx"),
        at_most("1 CPU per call, six upstreams", over("call-6", "call-1"), 1.1, "× one upstream"),
        at_most("1 CPU per call, 600 tools", over("call-600", "call-6"), 1.1, "× 60 tools"),
        at_most("1 CPU per call, 64 KiB", over_nginx("call-64k"), 1.2, "× nginx"),
        at_most("1 CPU per call, event stream", over_nginx("call-sse"), 1.6, "× nginx"),
        at_most("1 both eras: 2026-07-28", over("modern-modern", "call-6"), 1.25, "× 2025-11-25"),
        at_most("1 old client, new upstream", over("legacy-modern", "call-6"), 1.25, "× same era"),
        at_most(
            "1 new client, old upstream",
            over("modern-legacy", "modern-modern"),
            1.25,
            "× same era",
        ),
        at_most("2 added p50 at 1,000/s", ratio(added_50(Weir), added_50(Nginx)), 1.3, "× nginx's"),
        at_most("2 added p99 at 1,000/s", ratio(added_99(Weir), added_99(Nginx)), 1.3, "× nginx's"),
        at_most(
            "2 p99 of 256 connections",
            ratio(p99("c256", Weir), p99("c256", Nginx)),
            2.0,
            "× nginx's",
        ),
        at_most("3 tools/list of 600", of("list-600", Weir), 300.0, "µs CPU"),
        at_most("3 tools/list of 600", over_nginx("list-600"), 2.0, "× nginx, a file"),
        at_most(
            "3 tools/list of 10,000, by the byte",
            ratio(per_kib("list-10000"), per_kib("list-600")),
            1.25,
            "× of 600",
        ),
        at_most(
            "3 10,000 tools after a change",
            fact("catalog, ms CPU of a change"),
            50.0,
            "ms CPU",
        ),
        at_most("4 stdio", fact("stdio, µs CPU per call"), 15.0, "µs CPU"),
        at_least(
            "4 stdio, of what the child can do",
            fact("stdio, share of what the child can do"),
            0.9,
            "of it",
        ),
        at_most("5 memory after start", fact("RSS after start, MiB"), 20.0, "MiB"),
        at_most("5 idle session with a stream", fact("KiB per idle session"), 20.0, "KiB"),
        at_most(
            "5 growth after the second round",
            fact("RSS of the last round / of the second"),
            1.05,
            "× the second",
        ),
        at_most(
            "5 after the sessions have ended",
            fact("RSS 5 s after the sessions / before"),
            1.3,
            "× before",
        ),
        at_most("5 a 64 MiB answer", fact("RSS growth of a 64 MiB answer, MiB"), 8.0, "MiB"),
        at_most("6 start to the first full list", fact("start, ms"), 30.0, "ms"),
        at_most("6 from the kept catalog", fact("start from the kept catalog, ms"), 20.0, "ms"),
        at_least("7 two cores", fact("two cores / one"), 1.7, "× one"),
        at_least(
            "7 two cores, one gateway",
            fact("two cores / two gateways with one each"),
            0.85,
            "× two that share nothing",
        ),
    ];
    let rival = peers().iter().position(|(name, _)| name.eq_ignore_ascii_case("agentgateway"));
    if let Some(n) = rival {
        let figure = ratio(of("call-6", Weir), of("call-6", Contestant::Peer(n)));
        out.push(at_most("1 CPU per call, six upstreams", figure, 0.125, "× agentgateway"));
    }
    out
}

/// The table of them.
pub fn table(gates: &[Gate]) -> String {
    let mut out = String::from("| gate | measured | demanded | |\n|---|---:|---:|---|\n");
    for gate in gates {
        let figure = gate.figure.map_or_else(|| "–".into(), |f| format!("{f:.2} {}", gate.unit));
        let bound = match gate.bound {
            Ok(most) => format!("≤ {most}"),
            Err(least) => format!("≥ {least}"),
        };
        let verdict = match gate.passes() {
            Some(true) => "pass",
            Some(false) => "**fail**",
            None => "not measured",
        };
        let _ = writeln!(out, "| {} | {figure} | {bound} | {verdict} |", gate.what);
    }
    out
}
