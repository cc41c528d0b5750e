//! The matrix as people read it.

use std::fmt::Write as _;
use std::path::Path;

use weirkeeper::protocol::revision::Revision;

use crate::Cells;
use crate::axes::{Carrier, Endpoint, Feature, Rule};
use crate::features::Mark;

/// Compare with the file that is checked in, or write it.
pub fn compare(cells: &Cells) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/MATRIX.md");
    let now = page(cells);
    if std::env::var_os("UPDATE_MATRIX").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, now).unwrap();
        return;
    }
    let before = std::fs::read_to_string(path).unwrap_or_default();
    assert!(before == now, "docs/MATRIX.md is another; UPDATE_MATRIX=1 writes this:\n{now}");
}

fn page(cells: &Cells) -> String {
    let mut out = String::from(INTRODUCTION);
    grid(cells, &mut out);
    out += "\n";
    for rule in Rule::ALL {
        writeln!(out, "- **{}**: {}.", rule.sign(), rule.text()).unwrap();
    }
    out += FEATURES;
    pairs(cells, &mut out);
    out
}

const INTRODUCTION: &str = "\
# The matrix

Who calls, down; who is called, across: each revision of the protocol over each transport in front
of each other one. `tests/matrix` makes this page from what it has just seen, and fails when it is
not the one that is checked in; `UPDATE_MATRIX=1 cargo test --test matrix` writes it.

A number says how many features were exercised between the two and work. A letter is the rule that
keeps an end, or one or two of the features, from existing; what does not exist and is asked for all
the same is refused in the upstream's own words, which is exercised too.

";

const FEATURES: &str = "
WebSocket is a custom transport in every revision; HTTP+SSE is served to and used towards all
revisions that have a session, as SDKs do.

## Features by pair of revisions

Over all transports of both. A sign is `✓` only if the feature works over every one of them.

";

// One cell of the first table.
fn cell(cells: &Cells, down: Endpoint, up: Endpoint) -> String {
    if let Some(rule) = down.forbidden().or(up.forbidden()) {
        return rule.sign().into();
    }
    let marks = &cells[&(down.name(), up.name())];
    assert_eq!(marks.len(), Feature::ALL.len(), "{down} -> {up}");
    let works = marks.iter().filter(|(_, mark)| *mark == Mark::Works).count();
    let rules =
        Rule::ALL.into_iter().filter(|r| marks.iter().any(|(_, m)| *m == Mark::Refused(*r)));
    let signs: Vec<_> = rules.map(Rule::sign).collect();
    format!("{works}{}", signs.concat())
}

fn grid(cells: &Cells, out: &mut String) {
    let ends = Endpoint::grid();
    let heads: Vec<_> =
        ends.iter().map(|e| format!("{}<br>{}", e.revision, e.carrier.title())).collect();
    writeln!(out, "| | {} |", heads.join(" | ")).unwrap();
    writeln!(out, "|---|{}", "---|".repeat(ends.len())).unwrap();
    for down in &ends {
        let row: Vec<_> = ends.iter().map(|up| cell(cells, *down, *up)).collect();
        writeln!(out, "| {down} | {} |", row.join(" | ")).unwrap();
    }
}

fn pairs(cells: &Cells, out: &mut String) {
    let heads: Vec<_> = Feature::ALL.iter().map(|f| f.title()).collect();
    writeln!(out, "| caller | upstream | {} |", heads.join(" | ")).unwrap();
    writeln!(out, "|---|---|{}", "---|".repeat(heads.len())).unwrap();
    for down in Revision::ALL {
        for up in Revision::ALL {
            let signs: Vec<_> = Feature::ALL.iter().map(|f| sign(cells, down, up, *f)).collect();
            writeln!(out, "| {down} | {up} | {} |", signs.join(" | ")).unwrap();
        }
    }
}

// What all cells of a pair say of a feature.
fn sign(cells: &Cells, down: Revision, up: Revision, feature: Feature) -> &'static str {
    let of = |revision| {
        let ends = Carrier::ALL.map(|carrier| Endpoint { revision, carrier });
        ends.into_iter().filter(|e| e.forbidden().is_none())
    };
    let mut signs = of(down).flat_map(|d| of(up).map(move |u| (d, u))).map(|(d, u)| {
        let marks = &cells[&(d.name(), u.name())];
        match marks.iter().find(|(f, _)| *f == feature).map(|(_, mark)| mark) {
            Some(Mark::Works) => "✓",
            Some(Mark::Refused(rule)) => rule.sign(),
            _ => "✗",
        }
    });
    let first = signs.next().unwrap();
    if signs.all(|s| s == first) { first } else { "✗" }
}
