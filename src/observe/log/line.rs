//! One event as one line of text or JSON.
//!
//! Written out here because each call is a line: the general formatter costs a call more than the
//! rest of the gateway does. What a line looks like is that formatter's.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use crate::config::LogFormat;
use crate::wire::decimal;

/// How lines look.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Text or JSON.
    pub format: LogFormat,
    /// Text in colours.
    pub colour: bool,
}

impl Style {
    /// Write the event, with the line's end, and hand it over.
    pub fn line(self, event: &Event<'_>, take: impl FnOnce(&[u8])) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        LINE.with(|line| match line.try_borrow_mut() {
            Ok(mut line) => {
                line.clear();
                self.write(event, &mut line);
                take(&line);
                // One long line must not hold its memory for ever.
                if line.capacity() > LINE_KEPT {
                    *line = Vec::new();
                }
            }
            // A value that logs while it is being written.
            Err(_) => {
                let mut line = Vec::new();
                self.write(event, &mut line);
                take(&line);
            }
        });
    }

    fn write(self, event: &Event<'_>, out: &mut Vec<u8>) {
        match self.format {
            LogFormat::Text => text(event, out, self.colour),
            LogFormat::Json => json(event, out),
        }
        out.push(b'\n');
    }
}

/// A line's buffer is kept for the next one up to this size; most lines have some hundred bytes.
const LINE_KEPT: usize = 16 << 10;

const DIM: &[u8] = b"\x1b[2m";
const ITALIC: &[u8] = b"\x1b[3m";
const PLAIN: &[u8] = b"\x1b[0m";

fn text(event: &Event<'_>, out: &mut Vec<u8>, colour: bool) {
    let meta = event.metadata();
    let paint = |out: &mut Vec<u8>, how: &[u8]| {
        if colour {
            out.extend_from_slice(how);
        }
    };
    paint(out, DIM);
    timestamp(out);
    paint(out, PLAIN);
    out.push(b' ');
    let (level, how): (&[u8], &[u8]) = match *meta.level() {
        Level::ERROR => (b"ERROR", b"\x1b[31m"),
        Level::WARN => (b" WARN", b"\x1b[33m"),
        Level::INFO => (b" INFO", b"\x1b[32m"),
        Level::DEBUG => (b"DEBUG", b"\x1b[34m"),
        Level::TRACE => (b"TRACE", b"\x1b[35m"),
    };
    paint(out, how);
    out.extend_from_slice(level);
    paint(out, PLAIN);
    out.push(b' ');
    paint(out, DIM);
    out.extend_from_slice(meta.target().as_bytes());
    out.push(b':');
    paint(out, PLAIN);
    event.record(&mut Text { out, colour });
}

struct Text<'a> {
    out: &'a mut Vec<u8>,
    colour: bool,
}

impl Text<'_> {
    // The message stands without its name. Whether it is another field.
    fn name(&mut self, field: &Field) -> bool {
        self.out.push(b' ');
        let name = field.name().as_bytes();
        if name == b"message" {
            return false;
        }
        if self.colour {
            for part in [ITALIC, name, PLAIN, DIM, b"=", PLAIN] {
                self.out.extend_from_slice(part);
            }
        } else {
            self.out.extend_from_slice(name);
            self.out.push(b'=');
        }
        true
    }
}

// Whether it stands between quotes as it is. All of it is looked at at once, which takes fewer steps
// than to stop at the first that does not.
fn is_plain(text: &str) -> bool {
    let plain = |b: u8| matches!(b, b' '..=b'!' | b'#'..=b'[' | b']'..=b'~');
    text.bytes().fold(true, |all, b| all & plain(b))
}

impl Visit for Text<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if !self.name(field) {
            let _ = Unbroken(self.out).write_str(value);
        } else if is_plain(value) {
            self.out.push(b'"');
            self.out.extend_from_slice(value.as_bytes());
            self.out.push(b'"');
        } else {
            let _ = write!(Unbroken(self.out), "{value:?}");
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field);
        decimal(self.out, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.name(field);
        signed(self.out, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.name(field);
        float(self.out, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.name(field);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.name(field);
        let _ = write!(Unbroken(self.out), "{value:?}");
    }
}

/// Takes text of any origin into a line of text: what could end the line, or steer a terminal, is
/// written out.
struct Unbroken<'a>(&'a mut Vec<u8>);

impl fmt::Write for Unbroken<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // C1 controls begin with 0xc2 in UTF-8.
        if !text.bytes().any(|b| b < b' ' && b != b'\t' || b == 0x7f || b == 0xc2) {
            self.0.extend_from_slice(text.as_bytes());
            return Ok(());
        }
        for c in text.chars() {
            if c.is_control() && c != '\t' {
                self.0.extend(c.escape_default().map(|c| c as u8));
            } else {
                self.0.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Ok(())
    }
}

fn json(event: &Event<'_>, out: &mut Vec<u8>) {
    let meta = event.metadata();
    out.extend_from_slice(b"{\"timestamp\":\"");
    timestamp(out);
    out.extend_from_slice(b"\",\"level\":\"");
    out.extend_from_slice(meta.level().as_str().as_bytes());
    out.push(b'"');
    event.record(&mut Json(out));
    out.extend_from_slice(b",\"target\":");
    string(out, meta.target());
    out.push(b'}');
}

struct Json<'a>(&'a mut Vec<u8>);

impl Json<'_> {
    fn name(&mut self, field: &Field) {
        // Names are Rust's and need no escape, but for raw identifiers.
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(field.name().trim_start_matches("r#").as_bytes());
        self.0.extend_from_slice(b"\":");
    }
}

impl Visit for Json<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        string(self.0, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field);
        decimal(self.0, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.name(field);
        signed(self.0, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.name(field);
        if value.is_finite() {
            float(self.0, value);
        } else {
            self.0.extend_from_slice(b"null");
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.name(field);
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.name(field);
        string(self.0, &format!("{value:?}"));
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string serialises, and memory takes it");
}

fn signed(out: &mut Vec<u8>, value: i64) {
    serde_json::to_writer(out, &value).expect("a number serialises, and memory takes it");
}

// Times in milliseconds have three digits behind the point at most, and are most of what comes;
// they are written as whole numbers are.
fn float(out: &mut Vec<u8>, value: f64) {
    const MAX: f64 = 1e12;
    // Most waits take no time.
    if value.to_bits() == 0 {
        out.extend_from_slice(b"0.0");
        return;
    }
    let thousandths = (value * 1000.0).round();
    if !(0.0..MAX).contains(&value) || thousandths / 1000.0 != value {
        let _ = write!(Unbroken(out), "{value:?}");
        return;
    }
    let thousandths = thousandths as u64;
    decimal(out, thousandths / 1000);
    let rest = thousandths % 1000;
    let digits = [rest / 100, rest / 10 % 10, rest % 10].map(|d| b'0' + d as u8);
    let kept = digits.iter().rposition(|d| *d != b'0').map_or(1, |at| at + 1);
    out.push(b'.');
    out.extend_from_slice(&digits[..kept]);
}

// RFC 3339 with microseconds, in UTC. The second changes once for very many lines.
fn timestamp(out: &mut Vec<u8>) {
    const SECONDS: usize = "2026-11-21T14:45:19".len();
    thread_local! {
        static SECOND: RefCell<(u64, [u8; SECONDS])> = const { RefCell::new((u64::MAX, [b'0'; SECONDS])) };
    }
    let now = SystemTime::now();
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() {
            let whole = humantime::format_rfc3339_seconds(now).to_string();
            // Years beyond 9999 have more digits; nobody will see them.
            let Some(whole) = whole.as_bytes().first_chunk() else { return };
            (*second, *text) = (since.as_secs(), *whole);
        }
        out.extend_from_slice(&*text);
    });
    out.push(b'.');
    let micros = since.subsec_micros();
    for place in [100_000, 10_000, 1_000, 100, 10, 1] {
        out.push(b'0' + (micros / place % 10) as u8);
    }
    out.push(b'Z');
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::{Context, SubscriberExt as _};

    use super::*;

    struct Kept(Style, Arc<Mutex<Vec<u8>>>);

    impl<S: tracing::Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.line(event, |line| self.1.lock().unwrap().extend_from_slice(line));
        }
    }

    fn said(format: LogFormat, colour: bool, say: impl FnOnce()) -> String {
        let kept = Arc::<Mutex<Vec<u8>>>::default();
        let layer = Kept(Style { format, colour }, kept.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), say);
        let text = kept.lock().unwrap().clone();
        String::from_utf8(text).unwrap()
    }

    fn all_kinds() {
        let why = Some("it \"hung\"\n");
        let none: Option<&str> = None;
        tracing::warn!(
            target: "weirkeeper::call",
            name = "a", why, none, n = 7, less = -7, ms = 42.5, whole = 2.0, odd = 0.1 + 0.2,
            never = f64::NAN, yes = true, shown = %"two\nlines \u{1b}[31m", "said \u{9b}{}", 1
        );
    }

    #[test]
    fn text_has_one_line_whatever_is_said() {
        let line = said(LogFormat::Text, false, all_kinds);
        let (time, rest) = line.split_at("2026-11-21T14:45:19.460117Z".len());
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
        insta::assert_snapshot!(rest.trim_end_matches('\n'), @r#"  WARN weirkeeper::call: said \u{9b}1 name="a" why="it \"hung\"\n" n=7 less=-7 ms=42.5 whole=2.0 odd=0.30000000000000004 never=NaN yes=true shown=two\nlines \u{1b}[31m"#);
        let coloured = said(LogFormat::Text, true, all_kinds);
        assert!(coloured.contains("\u{1b}[33m WARN\u{1b}[0m"), "{coloured}");
    }

    #[test]
    fn json_keeps_what_was_said() {
        let line = said(LogFormat::Json, false, all_kinds);
        let mut line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let time = line.as_object_mut().unwrap().shift_remove("timestamp").unwrap();
        assert!(humantime::parse_rfc3339(time.as_str().unwrap()).is_ok(), "{time}");
        insta::assert_snapshot!(line, @r#"{"level":"WARN","message":"said 1","name":"a","why":"it \"hung\"\n","n":7,"less":-7,"ms":42.5,"whole":2.0,"odd":0.30000000000000004,"never":null,"yes":true,"shown":"two\nlines \u001b[31m","target":"weirkeeper::call"}"#);
    }

    proptest! {
        #[test]
        fn floats_read_back_as_they_were(value in prop_oneof![
            any::<f64>(),
            (0u64..10_000_000_000).prop_map(|n| n as f64 / 1000.0),
        ]) {
            let mut out = Vec::new();
            float(&mut out, value);
            let read: f64 = std::str::from_utf8(&out).unwrap().parse().unwrap();
            prop_assert!(read == value || value.is_nan() && read.is_nan());
        }
    }
}
