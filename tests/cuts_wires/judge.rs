//! What the peer wrote down, what callers were told, and whether the one fits the other.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Mutex;

use serde_json::Value;

use crate::harness::reason;

/// What became of each write at the peer.
#[derive(Default)]
pub struct Ledger(Mutex<HashMap<String, Lines>>);

/// How often a write arrived whole, and how often it was carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    pub arrived: usize,
    pub done: usize,
}

impl Ledger {
    pub fn arrived(&self, id: &str) {
        self.0.lock().unwrap().entry(id.to_owned()).or_default().arrived += 1;
    }

    pub fn done(&self, id: &str) {
        self.0.lock().unwrap().entry(id.to_owned()).or_default().done += 1;
    }

    pub fn of(&self, id: &str) -> Lines {
        self.0.lock().unwrap().get(id).copied().unwrap_or_default()
    }
}

/// What a caller was told of its write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Result,
    NoEffect(String),
    Unknown(String),
    /// Nothing that a caller can act on.
    Nothing(String),
}

impl Told {
    /// What an answer says of the write `id`.
    pub fn of(answer: &Value, id: &str) -> Told {
        let failure = &answer["result"]["_meta"]["io.weirkeeper/failure"];
        let outcome = failure["outcome"].as_str().or(answer["error"]["data"]["outcome"].as_str());
        let why = reason(answer).to_owned();
        match (answer["result"]["content"][0]["text"].as_str(), outcome) {
            (_, Some("no_effect")) => Told::NoEffect(why),
            (_, Some("unknown")) => Told::Unknown(why),
            (Some(text), None) if text == id => Told::Result,
            _ => Told::Nothing(answer.to_string()),
        }
    }
}

/// All writes with what their callers were told and, for whom it may concern, how they were cut.
pub type Writes = Vec<(String, Told, String)>;

/// How many ended how.
#[derive(Default)]
pub struct Counts(BTreeMap<String, usize>);

impl Counts {
    pub fn of(writes: &Writes) -> Counts {
        let mut out = Counts::default();
        for (_, told, _) in writes {
            let name = match told {
                Told::Result => "result".to_owned(),
                Told::NoEffect(why) => format!("no effect ({why})"),
                Told::Unknown(why) => format!("unknown ({why})"),
                Told::Nothing(_) => "nothing".to_owned(),
            };
            *out.0.entry(name).or_default() += 1;
        }
        out
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(|(name, n)| format!("{n} {name}")).collect();
        f.write_str(&all.join(", "))
    }
}

/// What is wrong, a line each; nothing, if every promise is kept.
pub fn wrongs(writes: &Writes, ledger: &Ledger) -> Vec<String> {
    let mut out = Vec::new();
    for (id, told, how) in writes {
        let lines = ledger.of(id);
        let mut wrong = |what: &str| {
            out.push(format!("{what}: {id}, {how}: told {told:?}, at the peer {lines:?}"));
        };
        if lines.arrived > 1 || lines.done > 1 {
            wrong("twice");
        }
        match told {
            Told::Result if (lines.arrived, lines.done) != (1, 1) => wrong("a result of nothing"),
            Told::NoEffect(_) if lines.arrived > 0 => wrong("no effect, and yet it arrived"),
            Told::Nothing(_) => wrong("left alone"),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn verdict(told: Told, arrived: usize, done: usize) -> Vec<String> {
        let ledger = Ledger::default();
        (0..arrived).for_each(|_| ledger.arrived("w"));
        (0..done).for_each(|_| ledger.done("w"));
        let said = wrongs(&vec![("w".into(), told, "cut".into())], &ledger);
        said.iter().map(|line| line.split(':').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn each_broken_promise_is_seen() {
        let no_effect = || Told::NoEffect("connection_lost".into());
        let unknown = || Told::Unknown("connection_lost".into());
        for (told, arrived, done) in
            [(Told::Result, 1, 1), (no_effect(), 0, 0), (unknown(), 0, 0), (unknown(), 1, 1)]
        {
            assert!(verdict(told.clone(), arrived, done).is_empty(), "{told:?} {arrived} {done}");
        }
        assert_eq!(verdict(unknown(), 1, 0), [""; 0], "begun and not ended");
        assert_eq!(verdict(unknown(), 2, 1), ["twice"]);
        assert_eq!(verdict(Told::Result, 2, 2), ["twice", "a result of nothing"]);
        assert_eq!(verdict(Told::Result, 1, 0), ["a result of nothing"]);
        assert_eq!(verdict(Told::Result, 0, 0), ["a result of nothing"]);
        assert_eq!(verdict(no_effect(), 1, 0), ["no effect, and yet it arrived"]);
        assert_eq!(verdict(Told::Nothing("?".into()), 0, 0), ["left alone"]);
    }

    #[test]
    fn answers_are_understood() {
        let result = |text: &str| json!({"result": {"content": [{"type": "text", "text": text}]}});
        assert_eq!(Told::of(&result("w"), "w"), Told::Result);
        assert!(matches!(Told::of(&result("another"), "w"), Told::Nothing(_)));
        assert!(matches!(Told::of(&Value::Null, "w"), Told::Nothing(_)));
        let error = |outcome: &str| json!({"error": {"data": {"reason": "x", "outcome": outcome}}});
        assert_eq!(Told::of(&error("no_effect"), "w"), Told::NoEffect("x".into()));
        assert_eq!(Told::of(&error("unknown"), "w"), Told::Unknown("x".into()));
        assert!(matches!(Told::of(&error("?"), "w"), Told::Nothing(_)));
        let mut failed = result("a sentence");
        failed["result"]["_meta"]["io.weirkeeper/failure"] =
            json!({"reason": "x", "outcome": "unknown"});
        assert_eq!(Told::of(&failed, "w"), Told::Unknown("x".into()));
    }
}
