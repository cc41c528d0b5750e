//! The matrix as people read it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use weirkeeper::protocol::revision::Revision;

use crate::Cells;
use crate::axes::{Carrier, Endpoint, Feature, Rule};
use crate::features::Mark;

/// Compare with the page that is checked in, or write it.
pub fn compare(cells: &Cells) {
    compare_file("MATRIX.md", &page(cells));
}

/// The same for any page of `docs`.
pub fn compare_file(name: &str, now: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    if std::env::var_os("UPDATE_MATRIX").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, now).unwrap();
        return;
    }
    let before = std::fs::read_to_string(path).unwrap_or_default();
    assert!(before == now, "docs/{name} is another; UPDATE_MATRIX=1 writes this:\n{now}");
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

Over all transports of both. `✓` works; a letter is the rule above, and both stand together where it
holds for some transports only.

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

// What the cells of a pair say of a feature: one sign, or one of each kind.
fn sign(cells: &Cells, down: Revision, up: Revision, feature: Feature) -> String {
    let of = |revision| {
        let ends = Carrier::ALL.map(|carrier| Endpoint { revision, carrier });
        ends.into_iter().filter(|e| e.forbidden().is_none())
    };
    let mut signs = BTreeSet::new();
    for (down, up) in of(down).flat_map(|d| of(up).map(move |u| (d, u))) {
        let marks = &cells[&(down.name(), up.name())];
        signs.insert(match marks.iter().find(|(f, _)| *f == feature) {
            Some((_, Mark::Works)) => "✓",
            Some((_, Mark::Refused(rule))) => rule.sign(),
            _ => "✗",
        });
    }
    signs.into_iter().rev().collect::<Vec<_>>().join(" ")
}
