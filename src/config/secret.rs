//! Values that must not be shown, and where they come from.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// A value that no log, error, metric or `Debug` may show. It has no `Debug`, `Display` or
/// `Serialize` of its content on purpose.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wrap a value.
    pub fn new(value: impl Into<Arc<str>>) -> Secret {
        Secret(value.into())
    }

    /// The value; each use of this is a place to look at in a review.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("«secret»")
    }
}

/// A setting's text with `${VAR}` and `file:PATH` already put in.
///
/// Keeps the text as written, for humans, beside the text as meant.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    written: Arc<str>,
    meant: Secret,
    secrets: Arc<[Secret]>,
}

impl Template {
    /// A text without references: shown as it is.
    pub fn literal(text: &str) -> Template {
        Template { written: text.into(), meant: Secret::new(text), secrets: Arc::new([]) }
    }

    /// Resolve `text`: `${VAR}` and `${VAR:-default}` anywhere, or `file:PATH` as the whole.
    /// `env` and `read` stand for the environment and the disk.
    ///
    /// # Errors
    /// The sentence that says what is missing, for the dormant message: it names the variable or
    /// the path, never a value.
    pub fn resolve(
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
        read: &dyn Fn(&str) -> std::io::Result<String>,
    ) -> Result<Template, Missing> {
        if let Some(path) = text.strip_prefix("file:") {
            let value = read(path).map_err(|e| {
                Missing::Absent(format!("file {path} cannot be read ({})", e.kind()))
            })?;
            let value = Secret::new(value.trim_end_matches(['\n', '\r']));
            if value.expose().is_empty() {
                return Err(Missing::Absent(format!("file {path} is empty")));
            }
            return Ok(Template {
                written: text.into(),
                secrets: Arc::new([value.clone()]),
                meant: value,
            });
        }
        let mut out = String::new();
        let mut secrets = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            out.push_str(&rest[..start]);
            let body = &rest[start + 2..];
            let Some(end) = body.find('}') else {
                return Err(Missing::Malformed("`${` is never closed by `}`".into()));
            };
            let (name, default) = match body[..end].split_once(":-") {
                Some((n, d)) => (n, Some(d)),
                None => (&body[..end], None),
            };
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(Missing::Malformed(format!("`${{{name}}}` names no variable")));
            }
            match (env(name), default) {
                (Some(value), _) if !value.is_empty() => {
                    out.push_str(&value);
                    secrets.push(Secret::new(value));
                }
                (_, Some(default)) => out.push_str(default),
                (value, None) => {
                    let what = if value.is_some() { "empty" } else { "not set" };
                    return Err(Missing::Absent(format!("environment variable {name} is {what}")));
                }
            }
            rest = &body[end + 1..];
        }
        out.push_str(rest);
        Ok(Template { written: text.into(), meant: Secret::new(out), secrets: secrets.into() })
    }

    /// The text with its references resolved.
    pub fn expose(&self) -> &str {
        self.meant.expose()
    }

    /// The text as it stands in the file: safe to show.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// The values that were put in.
    pub fn secrets(&self) -> Vec<Secret> {
        self.secrets.to_vec()
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A literal may be a credential that was written into the file itself.
        if self.secrets.is_empty() {
            f.write_str("«literal»")
        } else {
            write!(f, "{:?}", self.written)
        }
    }
}

/// Why a [`Template`] could not be resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// A reference has no value yet: the upstream is dormant.
    Absent(String),
    /// The text itself is wrong: a problem of the file.
    Malformed(String),
}

/// The SHA-256 digest of a consumer's key. The key itself has 256 random bits, so a plain digest
/// cannot be turned round and needs no salt.
#[derive(Clone, PartialEq, Eq)]
pub struct ConsumerKey([u8; 32]);

impl ConsumerKey {
    /// The prefix of every key, so that a leaked one is recognised by scanners.
    pub const PREFIX: &'static str = "weir_";

    /// The digest of a presented key.
    pub fn of(key: &str) -> ConsumerKey {
        ConsumerKey(Sha256::digest(key.as_bytes()).into())
    }

    /// Read `sha256:<64 hex digits>`.
    pub fn parse(text: &str) -> Option<ConsumerKey> {
        let hex = text.strip_prefix("sha256:")?;
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut out = [0; 32];
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(ConsumerKey(out))
    }

    /// `sha256:<64 hex digits>`, as it stands in the file.
    pub fn to_text(&self) -> String {
        use std::fmt::Write as _;
        let mut s = String::from("sha256:");
        for b in self.0 {
            let _ = write!(s, "{b:02x}");
        }
        s
    }

    /// Compare in constant time.
    pub fn same(&self, other: &ConsumerKey) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// The first eight bytes, to find candidates in a map; of a digest, so it tells nothing that
    /// an attacker could steer.
    pub fn bucket(&self) -> u64 {
        u64::from_be_bytes(self.0[..8].try_into().expect("eight of 32 bytes"))
    }
}

impl fmt::Debug for ConsumerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("«key digest»")
    }
}

/// A new key for a consumer: [`ConsumerKey::PREFIX`] and 256 random bits.
pub fn new_key() -> Secret {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    let text = URL_SAFE_NO_PAD.encode(bytes);
    Secret::new(format!("{}{text}", ConsumerKey::PREFIX))
}

/// Replaces every secret value in a text that leaves us, in whatever usual form it stands there.
#[derive(Clone, Default)]
pub struct Scrubber(Option<Arc<Search>>);

struct Search {
    forms: AhoCorasick,
    longest: usize,
}

/// Shorter values than this are not searched for: `1` or `true` would blank half a log.
const SCRUB_MIN: usize = 6;

/// Shorter pieces of Base64 than this are not searched for: eight letters can be a word.
const BASE64_MIN: usize = 10;

impl Scrubber {
    /// A scrubber for these values: as they are, escaped for JSON or percent-encoded for a URL or
    /// form, in Base64 (alone, or somewhere in what was encoded), and line by line.
    pub fn new(secrets: impl IntoIterator<Item = Secret>) -> Scrubber {
        let mut all: BTreeSet<String> = BTreeSet::new();
        for secret in secrets {
            let whole = secret.expose();
            for value in std::iter::once(whole).chain(whole.lines().map(str::trim)) {
                if value.len() >= SCRUB_MIN {
                    all.extend(forms(value));
                }
            }
        }
        let longest = all.iter().map(String::len).max().unwrap_or(0);
        if longest == 0 {
            return Scrubber(None);
        }
        // Longest first, so that a value that holds another leaves no rest.
        let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(all);
        // It fails for more text than a configuration can hold.
        let forms = search.expect("secrets are a few kilobytes");
        Scrubber(Some(Arc::new(Search { forms, longest })))
    }

    /// Length in bytes of the longest text searched for: how far a cut text must be looked past.
    pub fn longest(&self) -> usize {
        self.0.as_ref().map_or(0, |search| search.longest)
    }

    /// `text` with each secret value replaced.
    pub fn scrub<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let Some(search) = self.0.as_ref().filter(|s| s.forms.is_match(text)) else {
            return Cow::Borrowed(text);
        };
        let mut out = String::with_capacity(text.len());
        search.forms.replace_all_with(text, &mut out, |_, _, out| {
            out.push_str("«secret»");
            true
        });
        out.into()
    }
}

// How a value may stand in a text.
fn forms(value: &str) -> Vec<String> {
    let json = serde_json::to_string(value).expect("a string serialises");
    let mut out = vec![value.to_owned(), json[1..json.len() - 1].to_owned()];
    for (keep, lower) in [("-._~", false), ("-._~", true), ("-_.!~*'()", false), ("*-._", false)] {
        let coded = percent_encoded(value, keep, lower);
        out.push(coded.replace("%20", "+"));
        out.push(coded);
    }
    // Base64 takes three bytes at a time, so what stands before the value (`user:` in a header)
    // gives it one of three forms; its first and last letters are shared with its neighbours.
    for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        let alone = engine.encode(value);
        let within = (0..3).map(|before| {
            let mut bytes = vec![0; before];
            bytes.extend_from_slice(value.as_bytes());
            let (from, to) = ((before * 8).div_ceil(6), bytes.len() * 8 / 6);
            engine.encode(&bytes)[from..to].to_owned()
        });
        out.extend(within.chain([alone]).filter(|form| form.len() >= BASE64_MIN));
    }
    out
}

fn percent_encoded(value: &str, keep: &str, lower: bool) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || keep.as_bytes().contains(&byte) {
            out.push(byte.into());
        } else if lower {
            let _ = write!(out, "%{byte:02x}");
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    use base64::engine::general_purpose::STANDARD;

    fn env(name: &str) -> Option<String> {
        match name {
            "TOKEN" => Some("s3cr\"et-value".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }
    fn read(path: &str) -> std::io::Result<String> {
        if path == "/k" {
            Ok("from-file\n".into())
        } else {
            Err(std::io::ErrorKind::NotFound.into())
        }
    }

    #[test]
    fn references_resolve_or_say_what_is_missing() {
        let r = |t| Template::resolve(t, &env, &read);
        assert_eq!(r("Bearer ${TOKEN}").unwrap().expose(), "Bearer s3cr\"et-value");
        assert_eq!(r("${NO:-eu}.x").unwrap().expose(), "eu.x");
        assert_eq!(r("file:/k").unwrap().expose(), "from-file");
        assert_eq!(r("${NO}"), Err(Missing::Absent("environment variable NO is not set".into())));
        assert_eq!(r("${EMPTY:-eu}").unwrap().expose(), "eu");
        assert_eq!(
            r("${EMPTY}"),
            Err(Missing::Absent("environment variable EMPTY is empty".into()))
        );
        assert!(matches!(r("file:/none"), Err(Missing::Absent(_))));
        assert!(matches!(r("${TOKEN"), Err(Missing::Malformed(_))));
    }

    #[test]
    fn nothing_shows_a_secret() {
        let t = Template::resolve("Bearer ${TOKEN}", &env, &read).unwrap();
        assert_eq!(format!("{t:?}"), "\"Bearer ${TOKEN}\"");
        let scrub = Scrubber::new(t.secrets());
        assert_eq!(scrub.scrub("k=s3cr\"et-value!"), "k=«secret»!");
        assert_eq!(scrub.scrub(r#"{"k":"s3cr\"et-value"}"#), r#"{"k":"«secret»"}"#);
        assert_eq!(scrub.scrub("harmless"), "harmless");
        assert!(scrub.longest() >= r#"s3cr\"et-value"#.len());
        let scrub = Scrubber::new([Secret::new("-----BEGIN KEY-----\nMIIabcdef\n\n")]);
        assert_eq!(scrub.scrub("a MIIabcdef b"), "a «secret» b");
    }

    #[test]
    fn a_secret_is_known_in_its_usual_disguises() {
        let value = "s3cr\"et/+val ue=ä";
        let scrub = Scrubber::new([Secret::new(value)]);
        for shown in [
            "https://a/?k=s3cr%22et%2F%2Bval%20ue%3D%C3%A4&x",
            "https://a/?k=s3cr%22et%2f%2bval%20ue%3d%c3%a4&x",
            "k=s3cr%22et%2F%2Bval+ue%3D%C3%A4",
        ] {
            let said = scrub.scrub(shown);
            assert!(said.contains("«secret»") && !said.contains("val"), "{said}");
        }
        for user in ["", "a", "ab", "abc:", "somebody:"] {
            for after in ["", ":", "@host"] {
                let header = STANDARD.encode(format!("{user}{value}{after}"));
                let said = scrub.scrub(&header);
                let left = said.replace("«secret»", "");
                assert!(said.contains("«secret»"), "{user} {header}");
                // No more than the letters shared with the neighbours, and the neighbours.
                assert!(left.len() <= (user.len() + after.len()) * 4 / 3 + 6, "{said}");
                let header = URL_SAFE_NO_PAD.encode(format!("{user}{value}{after}"));
                assert!(scrub.scrub(&header).contains("«secret»"), "{user} {header}");
            }
        }
        // A short value is not looked for in Base64, where it would be any word.
        let short = Scrubber::new([Secret::new("abc123")]);
        assert_eq!(short.scrub("x abc123 y"), "x «secret» y");
        let all = Scrubber::new([Secret::new("abcdefgh"), Secret::new("xabcdefghx")]);
        assert_eq!(all.scrub("1 xabcdefghx abcdefgh"), "1 «secret» «secret»");
        assert_eq!(Scrubber::new([]).scrub("as it is"), "as it is");
    }

    #[test]
    fn keys_read_back_and_compare() {
        let key = new_key();
        let digest = ConsumerKey::of(key.expose());
        assert!(ConsumerKey::parse(&digest.to_text()).unwrap().same(&digest));
        assert!(!digest.same(&ConsumerKey::of("other")));
        assert!(ConsumerKey::parse("sha256:12").is_none());
    }
}
