//! What is wrong with a file: where, which key, why, and what to do.

use std::fmt;

use toml::de::{DeTable, DeValue};

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0 where the file has no place for it.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// `upstreams.stripe.rate.per_second`; empty for the file as a whole.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// Every problem of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file's name as it was given.
    pub file: String,
    /// In the order of the file.
    pub all: Vec<Problem>,
}

impl Problem {
    /// `FILE:LINE:COLUMN: WEIGHT KEY: what is wrong`, and the remedy on a line of its own.
    pub fn told(&self, file: &str, weight: &str) -> String {
        use fmt::Write as _;
        let mut out = file.to_owned();
        if self.line > 0 {
            let _ = write!(out, ":{}:{}", self.line, self.column);
        }
        let _ = write!(out, ": {weight}");
        if !self.key.is_empty() {
            let _ = write!(out, "{}: ", self.key);
        }
        out.push_str(&self.message);
        if !self.remedy.is_empty() {
            let _ = write!(out, "\n    {}", self.remedy);
        }
        out
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told: Vec<_> = self.all.iter().map(|p| p.told(&self.file, "")).collect();
        f.write_str(&told.join("\n"))
    }
}

impl std::error::Error for Problems {}

/// Line and column of a byte offset.
pub fn place(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

/// One step on the way to a value of the file.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Into a table.
    Key(&'a str),
    /// To the item of a list with this text.
    Item(&'a str),
}

/// Line and column of a value, or of the last thing on the way to it that the file has; of a
/// table, where its name stands. `(0, 0)`: the file has nothing of it.
pub fn locate<'a>(text: &str, steps: impl IntoIterator<Item = Step<'a>>) -> (usize, usize) {
    let (root, _) = DeTable::parse_recoverable(text);
    let mut found = None;
    let mut now: Option<&DeValue<'_>> = None;
    for step in steps {
        let next = match (step, now) {
            (Step::Key(key), None) if found.is_none() => root.get_ref().get_key_value(key),
            (Step::Key(key), Some(DeValue::Table(table))) => table.get_key_value(key),
            (Step::Item(item), Some(DeValue::Array(list))) => {
                let hit = list.iter().find(|v| v.get_ref().as_str() == Some(item));
                found = hit.map(toml::Spanned::span).or(found);
                break;
            }
            _ => None,
        };
        let Some((name, value)) = next else { break };
        let is_table = matches!(value.get_ref(), DeValue::Table(_));
        found = Some(if is_table { name.span() } else { value.span() });
        now = Some(value.get_ref());
    }
    found.map_or((0, 0), |span| place(text, span.start))
}

/// The known word nearest to a mistyped one, if it is near.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (distance(word, k), k))
        .min()
        .filter(|(d, k)| *d <= (k.len() / 3).clamp(1, 4))
        .map(|(_, k)| k)
}

// Levenshtein, where two letters that changed places are one slip; keys are short.
fn distance(a: &str, b: &str) -> usize {
    let swapped: Vec<char> = a.chars().collect();
    for at in 1..swapped.len() {
        let mut other = swapped.clone();
        other.swap(at - 1, at);
        if other.iter().copied().eq(b.chars()) {
            return 1;
        }
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let cost = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_again() {
        let text = "[a]\nb = { c = \"x\" }\nd = [\"p\",\n  \"q\"]\n[a.\"t*\"]\n";
        let at = |steps: &[Step<'_>]| locate(text, steps.iter().copied());
        use Step::{Item, Key};
        assert_eq!(at(&[Key("a"), Key("b"), Key("c")]), (2, 11));
        assert_eq!(at(&[Key("a"), Key("d"), Item("q")]), (4, 3));
        assert_eq!(at(&[Key("a"), Key("d"), Item("r")]), (3, 5));
        assert_eq!(at(&[Key("a"), Key("t*")]), (5, 4));
        assert_eq!(at(&[Key("a"), Key("none")]), (1, 2));
        assert_eq!(at(&[Key("none"), Key("a")]), (0, 0));
    }

    #[test]
    fn places_and_neighbours() {
        assert_eq!(place("ab\ncä d", 3), (2, 1));
        assert_eq!(place("ab\ncä d", 6), (2, 3));
        assert_eq!(nearest("call_timout", ["call_timeout", "rate"]), Some("call_timeout"));
        assert_eq!(nearest("zzz", ["call_timeout", "rate"]), None);
    }
}
