//! How `weir why` looks.

use std::fmt::Write as _;

use crate::gateway::why::Answer;

/// Width of the names before what they say.
const LABEL: usize = 9;

/// The answer for people.
pub fn why(answer: &Answer) -> String {
    let Answer { consumer, tool, visible, callable, .. } = answer;
    let mut out = match (callable, visible) {
        (true, _) => format!("{consumer} can call {tool}\n"),
        (false, true) => format!("{consumer} sees {tool} and cannot call it\n"),
        (false, false) => format!("{consumer} does not see {tool}\n"),
    };
    let mut line = |label: &str, says: &str| {
        let _ = writeln!(out, "  {label:LABEL$}{says}");
    };
    if let Some(refused) = &answer.refused {
        line("reason", &format!("{} (decided by: {})", refused.reason, refused.layer));
        line("why", &refused.why);
        for (label, says) in
            [("cause", &refused.cause), ("since", &refused.since), ("opens", &refused.opens_at)]
        {
            if let Some(says) = says {
                line(label, says);
            }
        }
        if let Some(key) = &refused.key {
            line("key", key);
        }
        line("remedy", &refused.remedy);
    }
    if let (Some(upstream), Some(native)) = (&answer.upstream, &answer.native) {
        let writes = match answer.read_only {
            Some(true) => ", only reads",
            Some(false) => ", may write: repeated only under an idempotency key, if it has one",
            None => "",
        };
        line("tool", &format!("\"{native}\" of {upstream}{writes}"));
    }
    if let Some(ms) = answer.call_timeout_ms {
        line("time", &format!("{} s for a call", ms as f64 / 1000.0));
    }
    if let Some(ms) = answer.hedge_after_ms {
        let after = ms as f64 / 1000.0;
        line("hedge", &format!("a second attempt beside one that has no answer after {after} s"));
    }
    for note in &answer.notes {
        line("note", note);
    }
    let width = answer.limits.iter().map(|limit| limit.key.chars().count()).max().unwrap_or(0);
    for (n, limit) in answer.limits.iter().enumerate() {
        let label = if n == 0 { "limits" } else { "" };
        line(label, &format!("{:width$}  {}", limit.key, limit.says));
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::gateway::why::{Limit, Refused};

    use super::*;

    #[test]
    fn a_refusal_reads_from_the_reason_to_the_remedy() {
        let refused = Refused {
            reason: "breaker_open".into(),
            layer: "breaker".into(),
            since: Some("2026-11-21T18:00:00Z".into()),
            why: "it was not called: it is given a rest".into(),
            cause: None,
            retry_after_ms: Some(8200),
            opens_at: Some("2026-11-21T18:00:15Z".into()),
            key: Some("upstreams.crm.breaker.open_for".into()),
            remedy: "it tries again by itself".into(),
        };
        let limit = |key: &str, says: &str| Limit {
            key: key.into(),
            used: 1.0,
            max: 2.0,
            says: says.into(),
        };
        let answer = Answer {
            consumer: "px-bot".into(),
            tool: "crm__find".into(),
            visible: true,
            refused: Some(refused),
            upstream: Some("crm".into()),
            native: Some("find".into()),
            read_only: Some(true),
            call_timeout_ms: Some(60_000),
            hedge_after_ms: Some(1500),
            notes: vec!["crm is listed as it was last seen".into()],
            limits: vec![
                limit("gateway.max_calls", "1 of 4096 calls under way"),
                limit("upstreams.crm.concurrency.max", "1 of 16 places taken"),
            ],
            ..Answer::default()
        };
        insta::assert_snapshot!(why(&answer), @r#"
        px-bot sees crm__find and cannot call it
          reason   breaker_open (decided by: breaker)
          why      it was not called: it is given a rest
          since    2026-11-21T18:00:00Z
          opens    2026-11-21T18:00:15Z
          key      upstreams.crm.breaker.open_for
          remedy   it tries again by itself
          tool     "find" of crm, only reads
          time     60 s for a call
          hedge    a second attempt beside one that has no answer after 1.5 s
          note     crm is listed as it was last seen
          limits   gateway.max_calls              1 of 4096 calls under way
                   upstreams.crm.concurrency.max  1 of 16 places taken
        "#);
        let unseen = Answer {
            visible: false,
            upstream: None,
            native: None,
            read_only: None,
            call_timeout_ms: None,
            hedge_after_ms: None,
            notes: vec![],
            limits: vec![],
            ..answer.clone()
        };
        assert!(why(&unseen).starts_with("px-bot does not see crm__find\n"));
        let fine = Answer { callable: true, refused: None, ..answer };
        insta::assert_snapshot!(why(&fine), @r#"
        px-bot can call crm__find
          tool     "find" of crm, only reads
          time     60 s for a call
          hedge    a second attempt beside one that has no answer after 1.5 s
          note     crm is listed as it was last seen
          limits   gateway.max_calls              1 of 4096 calls under way
                   upstreams.crm.concurrency.max  1 of 16 places taken
        "#);
    }
}
