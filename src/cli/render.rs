//! Reports as people read them.

use std::fmt::Write as _;

use crate::app::report::{CatalogReport, UpstreamReport};
use crate::config::Config;

fn state(state: &str, color: bool) -> String {
    let code = match state {
        "ready" => "32",
        "dormant" | "disabled" | "starting" => "33",
        _ => "31",
    };
    if color { format!("\x1b[{code}m{state:<9}\x1b[0m") } else { format!("{state:<9}") }
}

pub(super) fn bytes(n: usize) -> String {
    match n {
        0..10_000 => format!("{n} B"),
        10_000..10_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        _ => format!("{:.1} MB", n as f64 / 1e6),
    }
}

/// A line for each upstream.
pub fn upstreams(all: &[UpstreamReport], color: bool) -> String {
    let mut out = String::new();
    for u in all {
        let lists: Vec<String> = u
            .lists
            .iter()
            .filter(|l| l.entries > 0)
            .map(|l| format!("{} {} ({})", l.entries, l.kind, bytes(l.bytes)))
            .collect();
        let _ = write!(out, "{:<16} {}", u.name, state(&u.state, color));
        if let Some(revision) = &u.revision {
            let _ = write!(out, " {revision}");
        }
        if !lists.is_empty() {
            let _ = write!(out, "  {}", lists.join(", "));
        }
        if let Some(why) = u.cause.as_ref().or(u.why.as_ref()) {
            let _ = write!(out, "  {why}");
        }
        let trimmed = out.trim_end().len();
        out.truncate(trimmed);
        out.push('\n');
    }
    out
}

/// What each consumer sees, then the upstreams.
pub fn catalog(report: &CatalogReport, color: bool) -> String {
    let mut out = String::new();
    for c in &report.consumers {
        let view = c.view.as_deref().unwrap_or("everything");
        let _ = writeln!(out, "{} (view: {view})", c.name);
        for (kind, names) in [
            ("tools", &c.tools),
            ("prompts", &c.prompts),
            ("resources", &c.resources),
            ("templates", &c.templates),
            ("skills", &c.skills),
        ] {
            if names.is_empty() {
                continue;
            }
            let _ = writeln!(out, "  {kind}: {}", names.len());
            for name in names {
                let _ = writeln!(out, "    {name}");
            }
        }
        out.push('\n');
    }
    out.push_str("upstreams\n");
    for line in upstreams(&report.upstreams, color).lines() {
        let _ = writeln!(out, "  {line}");
    }
    out
}

/// What `weir check` says of a good file.
pub fn checked(file: &str, config: &Config) -> String {
    let mut out = format!("{file}: no problems\n");
    for u in &config.upstreams {
        let what = match (&u.dormant, u.enabled) {
            (_, false) => "disabled".to_owned(),
            (Some(why), true) => format!("dormant: {why}"),
            (None, true) => "will start".to_owned(),
        };
        let _ = writeln!(out, "  {:<16} {what}", u.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::report::{ConsumerReport, ListReport};

    #[test]
    fn a_catalog_reads_as_a_table() {
        let upstream = |name: &str, state: &str, why: Option<&str>, entries| UpstreamReport {
            name: name.into(),
            state: state.into(),
            revision: (state == "ready").then(|| "2025-11-25".into()),
            why: why.map(Into::into),
            cause: None,
            lists: vec![ListReport { kind: "tools".into(), entries, bytes: entries * 21_000 }],
        };
        let report = CatalogReport {
            consumers: vec![ConsumerReport {
                name: "px-bot".into(),
                view: Some("px".into()),
                tools: vec!["time__now".into()],
                prompts: vec![],
                resources: vec![],
                templates: vec![],
                skills: vec![],
            }],
            upstreams: vec![
                upstream("time", "ready", None, 1),
                upstream(
                    "stripe",
                    "dormant",
                    Some("environment variable STRIPE_KEY is not set"),
                    0,
                ),
            ],
        };
        insta::assert_snapshot!(catalog(&report, false), @r"
        px-bot (view: px)
          tools: 1
            time__now

        upstreams
          time             ready     2025-11-25  1 tools (21.0 kB)
          stripe           dormant    environment variable STRIPE_KEY is not set
        ");
        assert!(catalog(&report, true).contains("\x1b[32m"));
    }
}
