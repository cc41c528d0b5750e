//! `[views.NAME]` and `[consumers.NAME]`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::problem::nearest;
use crate::config::secret::ConsumerKey;
use crate::config::section::Section;
use crate::config::{ConsumerConfig, UpstreamConfig, ViewRule};

use super::upstream::{patterns, quota};

/// All views.
pub fn views(root: &Section<'_>, upstreams: &[UpstreamConfig]) -> BTreeMap<Arc<str>, ViewRule> {
    let mut out = BTreeMap::new();
    for (name, s) in root.tables("views", "What a team sees.") {
        let mut seen = Vec::new();
        for item in s.strings("upstreams", "Upstreams that are seen; absent: all.") {
            match upstreams.iter().find(|u| *u.name == *item.value) {
                Some(u) => seen.push(u.name.clone()),
                None if item.value == "weir" => seen.push("weir".into()),
                None => {
                    let near = nearest(&item.value, upstreams.iter().map(|u| &*u.name));
                    let remedy = near.map_or_else(
                        || "name an upstream of this file".to_owned(),
                        |n| format!("did you mean {n:?}?"),
                    );
                    s.wrong_at(
                        &item.span,
                        "upstreams",
                        format!("no upstream {:?}", item.value),
                        remedy,
                    );
                }
            }
        }
        let upstreams = s.has("upstreams").then_some(seen);
        let patterns = patterns(
            &s,
            "Public names that are seen; * stands for anything; absent: all.",
            "Public names that are not seen; wins over allow.",
        );
        s.finish();
        out.insert(name.as_str().into(), ViewRule { upstreams, patterns });
    }
    out
}

/// Names that stand for somebody already: callers without key, and the gateway's own commands.
const RESERVED: [&str; 2] = ["anonymous", crate::config::OPERATOR];

/// Longest name of a consumer; it stands in each log line.
const NAME_MAX: usize = 64;

/// Whether a consumer can have this name.
///
/// # Errors
/// What is wrong with it.
pub fn consumer_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if RESERVED.contains(&name) {
        return Err(format!("{name:?} is a name that the gateway uses itself"));
    }
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
        return Err(format!(
            "{name:?} is no consumer name: up to {NAME_MAX} of letters, digits, - _ and ."
        ));
    }
    Ok(())
}

/// All consumers.
pub fn all(root: &Section<'_>, views: &BTreeMap<Arc<str>, ViewRule>) -> Vec<ConsumerConfig> {
    let mut out: Vec<ConsumerConfig> = Vec::new();
    for (name, s) in root.tables("consumers", "Who may call.") {
        // A remedy is there to be pasted: a name that no consumer can have is not repeated in it.
        let mut sample = name.as_str();
        if let Err(what) = consumer_name(&name) {
            s.wrong_at(&s.span, "", what, "name it like px-bot");
            sample = "NAME";
        }
        let mut texts: Vec<_> = s
            .text("key", "Digest of its key, as `weir key new NAME` prints it.")
            .into_iter()
            .collect();
        texts.extend(s.strings("keys", "Several digests, while keys are being changed."));
        if texts.is_empty() && !s.recording() {
            s.wrong_at(
                &s.span,
                "key",
                "is missing",
                format!("run `weir key new {sample}` and paste what it prints"),
            );
        }
        let mut keys: Vec<ConsumerKey> = Vec::new();
        for text in texts {
            match ConsumerKey::parse(&text.value) {
                None => s.wrong_at(
                    &text.span,
                    "key",
                    "is no digest of the form sha256:<64 hex digits>",
                    format!("the key itself does not belong here; run `weir key new {sample}`"),
                ),
                Some(key) if out.iter().flat_map(|c| &c.keys).any(|k| k.same(&key)) => {
                    s.wrong_at(
                        &text.span,
                        "key",
                        "is the key of another consumer too",
                        "give each consumer a key of its own",
                    );
                }
                Some(key) => keys.push(key),
            }
        }
        let view = s.text("view", "Its view; absent: everything.").and_then(|v| {
            if let Some((known, _)) = views.get_key_value(v.value.as_str()) {
                return Some(known.clone());
            }
            let near = nearest(&v.value, views.keys().map(|k| &**k));
            let remedy = near.map_or_else(
                || format!("add [views.{}]", v.value),
                |n| format!("did you mean {n:?}?"),
            );
            s.wrong("view", format!("no view {:?}", v.value), remedy);
            None
        });
        let rate = quota(&s, "Its own quota.");
        s.finish();
        if !s.recording() {
            out.push(ConsumerConfig { name: name.as_str().into(), keys, view, rate });
        }
    }
    out
}
