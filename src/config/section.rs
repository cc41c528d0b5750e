//! Reads one table of the file key by key, and never stops at the first problem.
//!
//! Each key is read once, with its kind, its default and its meaning in one place. The same pass
//! over an empty file records them, and that record is the JSON Schema: the two can't drift apart.

mod time;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, nearest, place};

/// What a key holds, for the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// `true` or `false`.
    Flag,
    /// A whole number > 0.
    Count,
    /// A number.
    Number,
    /// `"250ms"`, `"30s"`, `"5m"`, `"1h"`.
    Duration,
    /// `"64KiB"`, `"4MiB"` or a number of bytes.
    Size,
    /// A date and time with its offset, bare or as a string.
    Time,
    /// A list of strings.
    Strings,
    /// A table of strings.
    Map,
    /// One of these words.
    Choice(Vec<&'static str>),
    /// A table with keys of its own.
    Table,
    /// Tables under names of the operator's choice.
    Tables,
}

/// One key, for the schema.
#[derive(Clone, Debug)]
pub struct Key {
    /// Dotted, with `NAME` for names of the operator's choice.
    pub path: String,
    /// What it holds.
    pub kind: Kind,
    /// Its default, as it would stand in the file.
    pub default: Option<String>,
    /// What it means.
    pub doc: &'static str,
}

/// What all sections of one file share.
pub struct Reader<'a> {
    text: &'a str,
    problems: RefCell<Vec<(usize, Problem)>>,
    keys: Option<RefCell<Vec<Key>>>,
}

impl<'a> Reader<'a> {
    /// A reader of `text`.
    pub fn new(text: &'a str) -> Reader<'a> {
        Reader { text, problems: RefCell::default(), keys: None }
    }

    /// A reader that records every key it is asked for.
    pub fn recording() -> Reader<'static> {
        Reader { text: "", problems: RefCell::default(), keys: Some(RefCell::default()) }
    }

    /// Note a problem at a place.
    pub fn problem(&self, span: &Range<usize>, key: &str, message: String, remedy: String) {
        let (line, column) = place(self.text, span.start);
        let problem = Problem { line, column, key: key.into(), message, remedy };
        self.problems.borrow_mut().push((span.start, problem));
    }

    /// All problems, in the order of the file.
    pub fn problems(&self) -> Vec<Problem> {
        let mut all = self.problems.take();
        all.sort_by_key(|(at, _)| *at);
        all.into_iter().map(|(_, p)| p).collect()
    }

    /// What was recorded.
    pub fn keys(&self) -> Vec<Key> {
        self.keys.as_ref().map(RefCell::take).unwrap_or_default()
    }
}

/// One table.
#[must_use]
pub struct Section<'a> {
    reader: &'a Reader<'a>,
    path: String,
    schema_path: String,
    table: Option<&'a DeTable<'a>>,
    /// Where the table begins.
    pub span: Range<usize>,
    asked: RefCell<BTreeSet<&'static str>>,
}

/// A value and where it stands.
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub span: Range<usize>,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub fn root(reader: &'a Reader<'a>, table: Option<&'a DeTable<'a>>) -> Section<'a> {
        Section {
            reader,
            path: String::new(),
            schema_path: String::new(),
            table,
            span: 0..0,
            asked: RefCell::default(),
        }
    }

    /// The dotted path of a key in this table.
    pub fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Whether keys are only being recorded.
    pub fn recording(&self) -> bool {
        self.reader.keys.is_some()
    }

    /// Whether the file has this table.
    pub fn is_there(&self) -> bool {
        self.table.is_some()
    }

    /// Whether the file has this key, without reading it.
    pub fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|t| t.get(key).is_some())
    }

    /// Note a problem with a key's value.
    pub fn wrong(&self, key: &str, message: impl Into<String>, remedy: impl Into<String>) {
        let span =
            self.table.and_then(|t| t.get(key)).map_or_else(|| self.span.clone(), Spanned::span);
        self.reader.problem(&span, &self.key(key), message.into(), remedy.into());
    }

    /// Note a problem at a place.
    pub fn wrong_at(
        &self,
        span: &Range<usize>,
        key: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.reader.problem(span, &self.key(key), message.into(), remedy.into());
    }

    fn ask(
        &self,
        key: &'static str,
        kind: Kind,
        default: Option<String>,
        doc: &'static str,
    ) -> Option<&'a Spanned<DeValue<'a>>> {
        self.asked.borrow_mut().insert(key);
        if let Some(keys) = &self.reader.keys {
            let path = join(&self.schema_path, key);
            keys.borrow_mut().push(Key { path, kind, default, doc });
        }
        self.table.and_then(|t| t.get(key))
    }

    fn mistyped(&self, key: &str, got: &DeValue<'_>, wanted: &str) {
        let got = match got {
            DeValue::String(_) => "a string",
            // Where a number is wanted it is this one that does not fit, and no secret.
            DeValue::Integer(i) if wanted.contains("number") => i.as_str(),
            DeValue::Float(f) if wanted.contains("number") => f.as_str(),
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.wrong(key, format!("is {got}"), format!("write {wanted}"));
    }

    /// A string.
    pub fn text(&self, key: &'static str, doc: &'static str) -> Option<At<String>> {
        let value = self.ask(key, Kind::Text, None, doc)?;
        match value.get_ref().as_str() {
            Some(text) => Some(At { value: text.into(), span: value.span() }),
            None => {
                self.mistyped(key, value.get_ref(), "a string in quotes");
                None
            }
        }
    }

    /// A string that parses.
    pub fn parsed<T: std::str::FromStr>(
        &self,
        key: &'static str,
        default: T,
        shown: &str,
        doc: &'static str,
    ) -> T {
        let Some(value) = self.ask(key, Kind::Text, Some(format!("{shown:?}")), doc) else {
            return default;
        };
        match value.get_ref().as_str().map(str::parse) {
            Some(Ok(parsed)) => parsed,
            Some(Err(_)) => {
                self.wrong(key, "is not valid", format!("write it like \"{shown}\""));
                default
            }
            None => {
                self.mistyped(key, value.get_ref(), &format!("a string like \"{shown}\""));
                default
            }
        }
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &'static str, default: bool, doc: &'static str) -> bool {
        self.maybe_flag(key, Some(default), doc).unwrap_or(default)
    }

    /// `true`, `false` or absent.
    pub fn maybe_flag(
        &self,
        key: &'static str,
        default: Option<bool>,
        doc: &'static str,
    ) -> Option<bool> {
        let value = self.ask(key, Kind::Flag, default.map(|d| d.to_string()), doc)?;
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.mistyped(key, value.get_ref(), "true or false, without quotes");
        }
        flag
    }

    /// A whole number > 0.
    pub fn count(&self, key: &'static str, default: usize, doc: &'static str) -> usize {
        let Some(value) = self.ask(key, Kind::Count, Some(default.to_string()), doc) else {
            return default;
        };
        match whole(value.get_ref()).and_then(|n| usize::try_from(n).ok()) {
            Some(0) => {
                self.wrong(
                    key,
                    "is 0",
                    "write a number of at least 1: every bound holds something",
                );
                default
            }
            Some(n) => n,
            None => {
                self.mistyped(key, value.get_ref(), "a whole number of at least 1");
                default
            }
        }
    }

    /// A whole number, 0 too.
    pub fn count_or_none(&self, key: &'static str, default: u32, doc: &'static str) -> u32 {
        let Some(value) = self.ask(key, Kind::Number, Some(default.to_string()), doc) else {
            return default;
        };
        if let Some(n) = whole(value.get_ref()).and_then(|n| u32::try_from(n).ok()) {
            return n;
        }
        let wanted = format!("a whole number from 0 to {}", u32::MAX);
        self.mistyped(key, value.get_ref(), &wanted);
        default
    }

    /// A number.
    pub fn number(
        &self,
        key: &'static str,
        default: Option<f64>,
        doc: &'static str,
    ) -> Option<f64> {
        let Some(value) = self.ask(key, Kind::Number, default.map(|d| format!("{d:?}")), doc)
        else {
            return default;
        };
        let number = match value.get_ref() {
            DeValue::Float(f) => f.as_str().replace('_', "").parse::<f64>().ok(),
            DeValue::Integer(i) => {
                i128::from_str_radix(&i.as_str().replace('_', ""), i.radix()).ok().map(|n| n as f64)
            }
            _ => None,
        };
        if number.is_none_or(|n| !n.is_finite()) {
            self.mistyped(key, value.get_ref(), "a finite number such as 2 or 0.5");
            return default;
        }
        number
    }

    /// A number in `(0, 1]`.
    pub fn share(&self, key: &'static str, default: f64, doc: &'static str) -> f64 {
        let share = self.number(key, Some(default), doc).unwrap_or(default);
        if share > 0.0 && share <= 1.0 {
            return share;
        }
        self.wrong(key, format!("is {share}"), "write a share above 0 and up to 1, such as 0.5");
        default
    }

    /// A duration > 0.
    pub fn duration(&self, key: &'static str, default: Duration, doc: &'static str) -> Duration {
        self.maybe_duration(key, Some(default), doc).unwrap_or(default)
    }

    /// A duration > 0, or absent.
    pub fn maybe_duration(
        &self,
        key: &'static str,
        default: Option<Duration>,
        doc: &'static str,
    ) -> Option<Duration> {
        let least = Duration::from_nanos(1);
        self.duration_from(key, default, least, doc)
    }

    /// A duration that may be zero: a wait that can be done without.
    pub fn wait(&self, key: &'static str, default: Duration, doc: &'static str) -> Duration {
        self.duration_from(key, Some(default), Duration::ZERO, doc).unwrap_or(default)
    }

    fn duration_from(
        &self,
        key: &'static str,
        default: Option<Duration>,
        least: Duration,
        doc: &'static str,
    ) -> Option<Duration> {
        let shown = default.map(|d| format!("\"{}\"", show_duration(d)));
        let Some(value) = self.ask(key, Kind::Duration, shown, doc) else { return default };
        let Some(text) = value.get_ref().as_str() else {
            self.mistyped(key, value.get_ref(), "a duration with its unit, such as \"30s\"");
            return default;
        };
        match parse_duration(text) {
            Some(d) if d >= least => Some(d),
            Some(_) => {
                self.wrong(key, "is zero", "write a duration above zero, such as \"30s\"");
                default
            }
            None => {
                self.wrong(
                    key,
                    format!("{text:?} is no duration"),
                    "write a positive number and a unit, ten years at most: \"250ms\", \"30s\", \"5m\" or \"1h\"",
                );
                default
            }
        }
    }

    /// A number of bytes > 0.
    pub fn size(&self, key: &'static str, default: usize, doc: &'static str) -> usize {
        self.maybe_size(key, Some(default), doc).unwrap_or(default)
    }

    /// A number of bytes > 0, or absent.
    pub fn maybe_size(
        &self,
        key: &'static str,
        default: Option<usize>,
        doc: &'static str,
    ) -> Option<usize> {
        let shown = default.map(|d| format!("\"{}\"", show_size(d)));
        let Some(value) = self.ask(key, Kind::Size, shown, doc) else { return default };
        let size = match value.get_ref() {
            DeValue::String(s) => parse_size(s),
            other => whole(other).and_then(|n| usize::try_from(n).ok()),
        };
        match size {
            Some(n) if n > 0 => Some(n),
            _ => {
                self.wrong(
                    key,
                    "is no size",
                    "write bytes as a number above 0, or with a unit: \"64KiB\", \"4MiB\"",
                );
                default
            }
        }
    }

    /// One of some words.
    pub fn choice<T: Copy + PartialEq>(
        &self,
        key: &'static str,
        words: &[(&'static str, T)],
        default: T,
        doc: &'static str,
    ) -> T {
        let known: Vec<&'static str> = words.iter().map(|(w, _)| *w).collect();
        let shown = words.iter().find(|(_, v)| *v == default).map(|(w, _)| format!("{w:?}"));
        let Some(value) = self.ask(key, Kind::Choice(known.clone()), shown, doc) else {
            return default;
        };
        let text = value.get_ref().as_str();
        match words.iter().find(|(w, _)| Some(*w) == text) {
            Some((_, v)) => *v,
            None => {
                let all: Vec<String> = known.iter().map(|w| format!("{w:?}")).collect();
                self.wrong(
                    key,
                    "is none of the known words",
                    format!("write {}", all.join(" or ")),
                );
                default
            }
        }
    }

    /// A list of strings.
    pub fn strings(&self, key: &'static str, doc: &'static str) -> Vec<At<String>> {
        let Some(value) = self.ask(key, Kind::Strings, Some("[]".into()), doc) else {
            return vec![];
        };
        let DeValue::Array(items) = value.get_ref() else {
            self.mistyped(key, value.get_ref(), "a list of strings: [\"a\", \"b\"]");
            return vec![];
        };
        let mut out = Vec::new();
        for item in items {
            match item.get_ref().as_str() {
                Some(text) => out.push(At { value: text.to_owned(), span: item.span() }),
                None => self.wrong_at(
                    &item.span(),
                    key,
                    "holds something that is no string",
                    "write each item in quotes",
                ),
            }
        }
        out
    }

    /// A table of strings, in the order of the file.
    pub fn map(&self, key: &'static str, doc: &'static str) -> Vec<(String, At<String>)> {
        let Some(value) = self.ask(key, Kind::Map, Some("{}".into()), doc) else { return vec![] };
        let DeValue::Table(items) = value.get_ref() else {
            self.mistyped(key, value.get_ref(), "a table of strings: { NAME = \"value\" }");
            return vec![];
        };
        let mut out = Vec::new();
        for (name, item) in items {
            match item.get_ref().as_str() {
                Some(text) => {
                    let at = At { value: text.to_owned(), span: item.span() };
                    out.push((name.get_ref().to_string(), at));
                }
                None => self.wrong_at(
                    &item.span(),
                    &format!("{key}.{}", name.get_ref()),
                    "is no string",
                    "write the value in quotes",
                ),
            }
        }
        out
    }

    /// A table of its own; empty if the file has none.
    pub fn table(&self, key: &'static str, doc: &'static str) -> Section<'a> {
        let value = self.ask(key, Kind::Table, None, doc);
        let mut span = self.span.clone();
        let table = value.and_then(|value| {
            span = value.span();
            if let DeValue::Table(t) = value.get_ref() {
                return Some(t);
            }
            self.mistyped(key, value.get_ref(), &format!("a table: [{}]", self.key(key)));
            None
        });
        Section {
            reader: self.reader,
            path: self.key(key),
            schema_path: join(&self.schema_path, key),
            table,
            span,
            asked: RefCell::default(),
        }
    }

    /// Tables under names of the operator's choice, in the order of the file.
    pub fn tables(&self, key: &'static str, doc: &'static str) -> Vec<(String, Section<'a>)> {
        let value = self.ask(key, Kind::Tables, None, doc);
        let schema_path = format!("{}.NAME", join(&self.schema_path, key));
        if self.recording() {
            let section = Section {
                reader: self.reader,
                path: String::new(),
                schema_path,
                table: None,
                span: 0..0,
                asked: RefCell::default(),
            };
            return vec![("name".into(), section)];
        }
        let Some(value) = value else { return vec![] };
        let DeValue::Table(tables) = value.get_ref() else {
            self.mistyped(key, value.get_ref(), &format!("tables: [{}.NAME]", self.key(key)));
            return vec![];
        };
        let mut out = Vec::new();
        for (name, item) in tables {
            let path = format!("{}.{}", self.key(key), quoted(name.get_ref()));
            let DeValue::Table(table) = item.get_ref() else {
                self.wrong_at(
                    &item.span(),
                    &format!("{key}.{}", quoted(name.get_ref())),
                    "is no table",
                    format!("write [{path}]"),
                );
                continue;
            };
            out.push((
                name.get_ref().to_string(),
                Section {
                    reader: self.reader,
                    path,
                    schema_path: schema_path.clone(),
                    table: Some(table),
                    span: name.span(),
                    asked: RefCell::default(),
                },
            ));
        }
        out
    }

    /// Note every key that nobody asked for. Called when all known ones were.
    pub fn finish(&self) {
        let Some(table) = self.table else { return };
        let asked = self.asked.borrow();
        for (key, _) in table {
            let name = key.get_ref().as_ref();
            if asked.contains(name) {
                continue;
            }
            let remedy = match nearest(name, asked.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    let known: Vec<_> = asked.iter().copied().collect();
                    format!("known here: {}", known.join(", "))
                }
            };
            self.wrong_at(&key.span(), name, "is not a known key", remedy);
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if key.is_empty() {
        path.to_owned()
    } else if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn quoted(name: &str) -> String {
    let bare = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if bare { name.to_owned() } else { format!("{name:?}") }
}

fn whole(value: &DeValue<'_>) -> Option<u64> {
    let DeValue::Integer(i) = value else { return None };
    u64::from_str_radix(&i.as_str().replace('_', ""), i.radix()).ok()
}

/// Ten years: beyond this timers overflow, and nobody means it.
const DURATION_MAX_S: f64 = 315_360_000.0;

/// Read `"250ms"`, `"1.5s"`, `"5m"`, `"1h"`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..split].trim().parse().ok()?;
    let unit = match text[split..].trim() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    let seconds = number * unit;
    (seconds.is_finite() && (0.0..=DURATION_MAX_S).contains(&seconds))
        .then(|| Duration::from_secs_f64(seconds))
}

/// As [`parse_duration`] reads it.
pub fn show_duration(d: Duration) -> String {
    let ms = d.as_millis();
    if !ms.is_multiple_of(1000) {
        return format!("{ms}ms");
    }
    let s = d.as_secs();
    if s == 0 {
        "0s".to_owned()
    } else if s.is_multiple_of(3600) {
        format!("{}h", s / 3600)
    } else if s.is_multiple_of(60) {
        format!("{}m", s / 60)
    } else {
        format!("{s}s")
    }
}

/// Read `"64KiB"`, `"4MiB"`, `"1GiB"`, `"512"`; decimal units too.
pub fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let number: usize = text[..split].trim().parse().ok()?;
    let unit = match text[split..].trim() {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

fn show_size(n: usize) -> String {
    match n {
        n if n.is_multiple_of(1 << 20) => format!("{}MiB", n >> 20),
        n if n.is_multiple_of(1 << 10) => format!("{}KiB", n >> 10),
        n => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_and_show() {
        for (text, ms) in [("250ms", 250), ("1.5s", 1500), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for wrong in ["", "5", "s", "-1s", "5 weeks", "1e99h", "NaNs"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
        for d in ["250ms", "30s", "5m", "1h", "1500ms"] {
            assert_eq!(show_duration(parse_duration(d).unwrap()), d);
        }
        for (text, n) in [("64KiB", 65_536), ("4MiB", 4 << 20), ("512", 512), ("1MB", 1_000_000)] {
            assert_eq!(parse_size(text), Some(n), "{text}");
        }
        assert_eq!(parse_size("4 potatoes"), None);
        assert_eq!(show_size(65_536), "64KiB");
    }
}
