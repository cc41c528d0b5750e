//! A plan as people read it.

use std::fmt::Write as _;

use super::render::bytes;
use crate::control::plan::changes::{Audience, Changes, Size, Who};
use crate::control::plan::{Known, Report, Step, UpstreamPlan, Verdict};

/// Most names in one list; `--json` has them all.
const NAMES_MAX: usize = 50;

/// The whole plan.
pub fn told(report: &Report, color: bool) -> String {
    let mut out = String::new();
    let file = &report.file;
    if report.verdict == Verdict::Broken {
        return broken(report);
    }
    let verdict = match report.verdict {
        Verdict::Unchanged => "changes nothing",
        Verdict::Refused => "would be refused",
        _ => "would be applied",
    };
    let _ = writeln!(out, "{file} {}", painted(verdict, report.verdict, color));
    let _ = writeln!(out, "compared with {}", report.against);
    for note in &report.notes {
        let _ = writeln!(out, "  {note}");
    }
    for key in &report.refused {
        let _ = writeln!(out, "  {key} cannot change while running");
    }
    if report.verdict == Verdict::Refused {
        out.push_str("  restart the gateway, or set it back; a restart would bring:\n");
    }
    if report.verdict != Verdict::Unchanged {
        out.push('\n');
        upstreams(&mut out, &report.upstreams);
        if !report.settings.is_empty() {
            out.push_str("settings\n");
            for key in &report.settings {
                let _ = writeln!(out, "  {key}");
            }
        }
    }
    audiences(&mut out, &report.audiences);
    out
}

fn painted(text: &str, verdict: Verdict, color: bool) -> String {
    let code = match verdict {
        Verdict::Unchanged | Verdict::Applies => "32",
        Verdict::Refused | Verdict::Broken => "31",
    };
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn broken(report: &Report) -> String {
    let mut out = String::new();
    for p in &report.problems {
        let problem = crate::config::problem::Problem {
            line: p.line,
            column: p.column,
            key: p.key.clone(),
            message: p.message.clone(),
            remedy: p.remedy.clone(),
        };
        let _ = writeln!(out, "{}", problem.told(&report.file, ""));
    }
    let n = report.problems.len();
    let s = if n == 1 { "" } else { "s" };
    let _ = writeln!(out, "{n} problem{s}: nothing of it would be applied");
    out
}

fn upstreams(out: &mut String, all: &[UpstreamPlan]) {
    out.push_str("upstreams\n");
    let still = |u: &&UpstreamPlan| u.step == Step::Kept && u.note.is_none();
    let kept: Vec<&str> = all.iter().filter(still).map(|u| u.name.as_str()).collect();
    if !kept.is_empty() {
        let _ = writeln!(out, "  {:<9} {}", "kept", kept.join(", "));
    }
    for u in all.iter().filter(|u| !still(u)) {
        let step = match u.step {
            Step::Kept => "kept",
            Step::Settings => "settings",
            Step::Rebuilt => "rebuilt",
            Step::Replaced => "replaced",
            Step::Started => "started",
            Step::Retired => "retired",
        };
        let mut more: Vec<String> = vec![];
        if !u.keys.is_empty() {
            more.push(u.keys.join(", "));
        }
        more.extend(u.note.clone());
        if u.step == Step::Rebuilt {
            more.push("serves as it is until the new one is ready".to_owned());
        }
        match u.tools {
            Some(Known::Unknown) => more.push("tools not known before it starts".to_owned()),
            Some(Known::Kept) => more.push("tools as last seen".to_owned()),
            Some(Known::Asked) => more.push("tools as it said just now".to_owned()),
            Some(Known::Live) | None => {}
        }
        let line = format!("  {step:<9} {:<16} {}", u.name, more.join("; "));
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

fn audiences(out: &mut String, all: &[Audience]) {
    let mut still: Vec<String> = vec![];
    let mut told: Vec<(String, Vec<String>, &Audience)> = vec![];
    for one in all {
        // What a view has was told of its consumers.
        let has_view = |c: &&Audience| {
            c.who == Who::Consumer
                && c.view_before.as_deref() == Some(&one.name)
                && c.view_after == c.view_before
        };
        if one.who == Who::View && all.iter().any(|c| has_view(&c)) {
            continue;
        }
        let (name, about) = naming(one);
        if one.changes.is_none() && one.before == one.after && one.view_before == one.view_after {
            if one.who != Who::View {
                still.push(name);
            }
            continue;
        }
        let same = |(a, _, other): &&mut (String, Vec<String>, &Audience)| {
            one.who == Who::Consumer && *a == about && other.changes == one.changes
        };
        match told.iter_mut().find(same) {
            Some((_, names, _)) => names.push(name),
            None => told.push((about, vec![name], one)),
        }
    }
    for (about, names, one) in told {
        let _ = writeln!(out, "\n{}{about}", names.join(", "));
        sizes(out, one.before, one.after);
        changes(out, &one.changes);
    }
    if !still.is_empty() {
        let _ = writeln!(out, "\nno tool changes for {}", still.join(", "));
    }
}

fn naming(one: &Audience) -> (String, String) {
    let view = |v: &Option<String>| v.clone().unwrap_or_else(|| "everything".to_owned());
    let about = match (one.who, one.before, one.after) {
        (_, None, None) => String::new(),
        (Who::Consumer, Some(_), Some(_)) if one.view_before != one.view_after => {
            format!(" (view: {} -> {})", view(&one.view_before), view(&one.view_after))
        }
        (Who::Consumer, None, _) => format!(" (new, view: {})", view(&one.view_after)),
        (Who::Consumer, _, None) => format!(" (goes, view: {})", view(&one.view_before)),
        (Who::Consumer, ..) => format!(" (view: {})", view(&one.view_after)),
        (Who::View, None, _) => " (new view)".to_owned(),
        (Who::View, _, None) => " (view, goes)".to_owned(),
        (Who::View, ..) => " (view, of nobody all along)".to_owned(),
        (Who::Everybody, _, None) => " (anonymous callers are served no more)".to_owned(),
        (Who::Everybody, None, _) => " (anonymous callers are served from now on)".to_owned(),
        (Who::Everybody, ..) => String::new(),
    };
    (one.name.clone(), about)
}

fn sizes(out: &mut String, before: Option<Size>, after: Option<Size>) {
    let told = |size: Size| {
        let more =
            if size.others > 0 { format!(" and {} others", size.others) } else { String::new() };
        let s = if size.tools == 1 { "" } else { "s" };
        let (tools, tokens) = (size.tools, grouped(size.tool_tokens));
        format!("{tools} tool{s}{more}, {}, about {tokens} tokens", bytes(size.bytes))
    };
    let line = match (before, after) {
        (Some(b), Some(a)) if b == a => told(a),
        (Some(b), Some(a)) => format!("{}\n       -> {}", told(b), told(a)),
        (Some(b), None) => told(b),
        (None, Some(a)) => told(a),
        (None, None) => return,
    };
    let _ = writeln!(out, "  {line}");
}

fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn changes(out: &mut String, changes: &Changes) {
    let mut list = |what: &str, names: Vec<String>| {
        let more = names.len().saturating_sub(NAMES_MAX);
        for name in names.into_iter().take(NAMES_MAX) {
            let _ = writeln!(out, "  {what:<9} {name}");
        }
        if more > 0 {
            let _ = writeln!(out, "  {what:<9} {more} more (--json has all)");
        }
    };
    list("appears", changes.appear.clone());
    list("vanishes", changes.vanish.clone());
    let renamed = changes.renamed.iter().map(|r| format!("{} -> {}", r.from, r.to));
    list("renamed", renamed.collect());
    let changed = changes.changed.iter().map(|c| format!("{}: {}", c.name, c.members.join(", ")));
    list("changes", changed.collect());
    for other in &changes.others {
        let parts = [(other.appear, "more"), (other.vanish, "fewer"), (other.changed, "changed")];
        let parts: Vec<String> =
            parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        let _ = writeln!(out, "  {:<9} {}", other.kind, parts.join(", "));
    }
    for name in &changes.unknown {
        let _ = writeln!(
            out,
            "  {:<9} tools of {name}, before it starts (--connect asks it)",
            "not known"
        );
    }
}

#[cfg(test)]
mod tests;
