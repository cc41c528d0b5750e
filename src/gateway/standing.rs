//! How what runs stands to what the file says, for operators.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::catalog::freshness::rfc3339;
use crate::config::Trouble;

/// Longest text of a refusal that is kept; the log has the whole.
const TEXT_MAX: usize = 16 * 1024;

/// Whether the file is in force, and if not, why.
#[derive(Clone, Default)]
pub struct Standing {
    /// The file was broken at the start, and the last good one took its place.
    pub last_good: Option<Told>,
    /// The newest reload was refused.
    pub refused: Option<Told>,
    /// Upstreams whose new form did not start, so that their old one serves on.
    pub rolled_back: BTreeMap<Arc<str>, Told>,
}

/// One trouble.
#[derive(Clone)]
pub struct Told {
    /// Which.
    pub trouble: Trouble,
    /// Since when.
    pub since: SystemTime,
    /// What happened, in sentences; holds no secret.
    pub text: String,
}

impl Told {
    /// A trouble that begins now.
    pub fn now(trouble: Trouble, text: &str) -> Told {
        let mut end = text.len().min(TEXT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Told { trouble, since: SystemTime::now(), text: text[..end].to_owned() }
    }

    /// As `/status` shows it.
    pub fn to_json(&self) -> Value {
        json!({
            "reason": self.trouble.as_str(),
            "since": rfc3339(self.since),
            "text": self.text,
            "remedy": self.trouble.remedy(),
        })
    }
}

impl Standing {
    /// As `/status` shows it: which configuration is in force, and the troubles with the file.
    pub fn to_json(&self) -> Value {
        let mut troubles: Vec<Value> =
            self.last_good.iter().chain(&self.refused).map(Told::to_json).collect();
        troubles.extend(self.rolled_back.iter().map(|(upstream, told)| {
            let mut told = told.to_json();
            told["upstream"] = (**upstream).into();
            told
        }));
        let in_force = if self.last_good.is_some() { "last_good" } else { "file" };
        json!({"in_force": in_force, "troubles": troubles})
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_what_would_change_it() {
        let mut standing = Standing::default();
        assert_eq!(standing.to_json(), json!({"in_force": "file", "troubles": []}));
        let told = Told::now(Trouble::RolledBack, "it did not start");
        standing.rolled_back.insert("crm".into(), told);
        standing.last_good = Some(Told::now(Trouble::LastGood, &"é".repeat(TEXT_MAX)));
        let said = standing.to_json();
        assert_eq!(said["in_force"], "last_good");
        assert_eq!(said["troubles"][0]["reason"], "last_good");
        assert!(said["troubles"][0]["text"].as_str().unwrap().len() <= TEXT_MAX);
        assert_eq!(said["troubles"][1]["upstream"], "crm");
        assert_eq!(said["troubles"][1]["remedy"], Trouble::RolledBack.remedy());
    }
}
