//! `traceparent` and `tracestate` (W3C Trace Context, sections 3.2 and 3.3), pure.

/// Longest `tracestate` that is handed on, in bytes: what a participant should be able to carry
/// at least (3.3.1.5); one more byte and it is left out as a whole, the trace still connects.
pub const TRACESTATE_MAX: usize = 512;
/// Most members of a `tracestate` (3.3.1.1).
const MEMBERS_MAX: usize = 32;
/// Longest `traceparent` of a version that we do not know yet.
const TRACEPARENT_MAX: usize = 256;
/// `00-` + 32 + `-` + 16 + `-` + 2
const LEN: usize = 55;

/// A caller's trace context, checked; the texts stay as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    traceparent: Box<str>,
    tracestate: Option<Box<str>>,
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

impl Context {
    /// Read it. `None` if `traceparent` is not valid; an invalid `tracestate` only loses itself
    /// (section 4.3).
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Context> {
        let b = traceparent.as_bytes();
        if b.len() < LEN || b.len() > TRACEPARENT_MAX {
            return None;
        }
        let version = byte(&b[0..2])?;
        let longer_is_fine = version != 0 && b.get(LEN).is_none_or(|b| *b == b'-');
        if version == 0xff
            || (b.len() != LEN && !longer_is_fine)
            || [2, 35, 52].iter().any(|at| b[*at] != b'-')
        {
            return None;
        }
        let trace_id = bytes::<16>(&b[3..35])?;
        let span_id = bytes::<8>(&b[36..52])?;
        let flags = byte(&b[53..55])?;
        if trace_id == [0; 16] || span_id == [0; 8] {
            return None;
        }
        let tracestate = tracestate.filter(|s| state_is_valid(s)).map(Box::from);
        Some(Context { traceparent: traceparent.into(), tracestate, trace_id, span_id, flags })
    }

    /// The context of a call that may bring one in `_meta` and one in HTTP headers, each as
    /// (`traceparent`, `tracestate`): `_meta` speaks of this message, headers of the request
    /// that carries it, so `_meta` wins if it is valid.
    pub fn choose(
        meta: Option<(&str, Option<&str>)>,
        headers: Option<(&str, Option<&str>)>,
    ) -> Option<Context> {
        [meta, headers].into_iter().flatten().find_map(|(p, s)| Context::parse(p, s))
    }

    /// The trace.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The caller's span.
    pub fn span_id(&self) -> [u8; 8] {
        self.span_id
    }

    /// All flags.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether the caller records this trace.
    pub fn sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// Both texts as they came.
    pub fn into_text(self) -> (Box<str>, Option<Box<str>>) {
        (self.traceparent, self.tracestate)
    }

    /// `tracestate` as it came.
    pub fn into_tracestate(self) -> Option<Box<str>> {
        self.tracestate
    }
}

/// The text of a `traceparent` of version 00.
pub(super) fn format(trace_id: [u8; 16], span_id: [u8; 8], flags: u8) -> Box<str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(LEN);
    let mut hex = |bytes: &[u8], end: &str| {
        for b in bytes {
            out.push(DIGITS[usize::from(b >> 4)] as char);
            out.push(DIGITS[usize::from(b & 15)] as char);
        }
        out.push_str(end);
    };
    hex(&[0], "-");
    hex(&trace_id, "-");
    hex(&span_id, "-");
    hex(&[flags], "");
    out.into()
}

/// Two digits; capitals are not allowed (3.2.2).
fn byte(digits: &[u8]) -> Option<u8> {
    let digit = |d: u8| match d {
        b'0'..=b'9' => Some(d - b'0'),
        b'a'..=b'f' => Some(d - b'a' + 10),
        _ => None,
    };
    Some((digit(digits[0])? << 4) | digit(digits[1])?)
}

fn bytes<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    for (to, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *to = byte(pair)?;
    }
    Some(out)
}

/// Section 3.3.1: `key=value` members, separated by commas, empty ones allowed, no key twice.
fn state_is_valid(state: &str) -> bool {
    if state.is_empty() || state.len() > TRACESTATE_MAX {
        return false;
    }
    let mut keys: Vec<&str> = Vec::new();
    for member in state.split(',').map(|m| m.trim_matches([' ', '\t'])).filter(|m| !m.is_empty()) {
        let Some((key, value)) = member.split_once('=') else { return false };
        if keys.len() == MEMBERS_MAX || keys.contains(&key) || !key_is_valid(key) {
            return false;
        }
        let printable = |b: u8| (0x20..=0x7e).contains(&b) && b != b'=';
        if value.is_empty() || value.len() > 256 || !value.bytes().all(printable) {
            return false;
        }
        keys.push(key);
    }
    !keys.is_empty()
}

fn key_is_valid(key: &str) -> bool {
    let fine = |b: u8| {
        b.is_ascii_lowercase()
            || b.is_ascii_digit()
            || matches!(b, b'_' | b'-' | b'*' | b'/' | b'@')
    };
    key.len() <= 256
        && key.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && key.bytes().all(fine)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_the_exact_form_is_accepted() {
        let read = |t: &str| Context::parse(t, None).is_some();
        assert!(read(GOOD));
        assert!(read("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes"));
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-ä4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert!(!read(bad), "{bad}");
        }
    }

    #[test]
    fn a_bad_tracestate_loses_itself_only() {
        let state = |s: &str| Context::parse(GOOD, Some(s)).unwrap().into_tracestate();
        let many = |n: usize| (0..n).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
        let good = "congo=t61rcWkgMzE,,rojo@x=0 0";
        assert_eq!(state(good).as_deref(), Some(good));
        assert!(state(&many(32)).is_some());
        for bad in ["", "a", "A=1", "a=1,a=2", "a=ü", "a==", ",", &many(33), &"x".repeat(600)] {
            assert_eq!(state(bad), None, "{bad}");
        }
    }

    #[test]
    fn meta_wins_if_it_is_valid() {
        let other = GOOD.replace("-01", "-00");
        let chosen = |m, h| Context::choose(m, h).map(|c| c.into_text().0);
        assert_eq!(chosen(Some((GOOD, None)), Some((&other, None))).as_deref(), Some(GOOD));
        assert_eq!(chosen(Some(("x", None)), Some((GOOD, None))).as_deref(), Some(GOOD));
        assert_eq!(chosen(None, Some(("x", None))), None);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(trace: [u8; 16], span: [u8; 8], flags: u8) {
            let text = format(trace, span, flags);
            match Context::parse(&text, None) {
                Some(c) => {
                    prop_assert_eq!((c.trace_id(), c.span_id(), c.flags()), (trace, span, flags));
                    prop_assert_eq!(c.sampled(), flags % 2 == 1);
                    prop_assert_eq!(&*c.into_text().0, &*text);
                }
                None => prop_assert!(trace == [0; 16] || span == [0; 8]),
            }
        }

        #[test]
        fn any_text_is_read_or_refused(parent in ".{0,80}", state in ".{0,80}") {
            if let Some(c) = Context::parse(&parent, Some(&state)) {
                prop_assert_eq!(&*c.into_text().0, &*parent);
            }
        }

        #[test]
        fn near_misses_never_panic(at in 0usize..55, with in "[ -~é]") {
            let mut text = GOOD.to_owned();
            text.replace_range(at..=at, &with);
            if let Some(c) = Context::parse(&text, None) {
                prop_assert!(c.trace_id() != [0; 16] && c.span_id() != [0; 8]);
            }
        }
    }
}
