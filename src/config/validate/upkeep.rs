//! `state`, `message` and `until` of an upstream.

use crate::config::section::Section;
use crate::config::upkeep::{MESSAGE_MAX, Upkeep, UpkeepState};

/// What is to become of the upstream's calls; `None`: they are carried.
///
/// A message or time that stands there with `state = "active"` has no effect and is no mistake:
/// who ends a maintenance changes one word and keeps the rest for the next.
pub fn read(s: &Section<'_>) -> Option<Upkeep> {
    let state = s.choice(
        "state",
        &[
            ("active", None),
            ("draining", Some(UpkeepState::Draining)),
            ("maintenance", Some(UpkeepState::Maintenance)),
        ],
        None,
        "Whether it gets calls: with draining no new ones, with maintenance none that has not left yet. Its process and connections are kept, its tools stay listed.",
    );
    let message = s
        .text(
            "message",
            "Why, for agents: part of each refusal while state is draining or maintenance.",
        )
        .map(|m| {
            let text = m.value.trim();
            if text.is_empty() || text.chars().count() > MESSAGE_MAX {
                s.wrong(
                    "message",
                    format!("has {} characters", text.chars().count()),
                    format!("write a sentence of up to {MESSAGE_MAX} characters, or leave it out"),
                );
            } else if text.contains(char::is_control) {
                s.wrong(
                    "message",
                    "holds line breaks or other control characters",
                    "write it on one line",
                );
            }
            text.into()
        });
    let until = s.time("until", "When it gets calls again by itself: a date and time with its offset, such as 2026-12-24T18:00:00Z. Absent: when the file says so.");
    if !s.has("state") {
        for key in ["message", "until"].into_iter().filter(|key| s.has(key)) {
            s.wrong(
                key,
                "means nothing without state",
                "add state = \"maintenance\" or \"draining\", or remove it",
            );
        }
    }
    state.map(|state| Upkeep { state, message, until })
}
