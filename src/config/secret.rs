//! Values that must not be shown, and where they come from.

use std::fmt;
use std::sync::Arc;

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
    use base64::Engine as _;
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    Secret::new(format!("{}{text}", ConsumerKey::PREFIX))
}

/// Replaces every secret value in a text that leaves us.
#[derive(Clone, Default)]
pub struct Scrubber(Arc<[Secret]>);

/// Shorter values than this are not searched for: `1` or `true` would blank half a log.
const SCRUB_MIN: usize = 6;

impl Scrubber {
    /// A scrubber for these values, and their percent- and JSON-escaped forms.
    pub fn new(secrets: impl IntoIterator<Item = Secret>) -> Scrubber {
        let mut all: Vec<Secret> = Vec::new();
        for s in secrets {
            if s.expose().len() < SCRUB_MIN {
                continue;
            }
            let json = serde_json::to_string(s.expose()).expect("a string serialises");
            let json = &json[1..json.len() - 1];
            if json != s.expose() {
                all.push(Secret::new(json));
            }
            // A key of several lines may be shown line by line.
            let lines = s.expose().lines().map(str::trim);
            all.extend(lines.filter(|l| l.len() >= SCRUB_MIN && *l != s.expose()).map(Secret::new));
            all.push(s);
        }
        // Longest first, so that a value that holds another leaves no rest.
        all.sort_by_key(|s| std::cmp::Reverse(s.expose().len()));
        all.dedup();
        Scrubber(all.into())
    }

    /// Length in bytes of the longest text searched for: how far a cut text must be looked past.
    pub fn longest(&self) -> usize {
        self.0.first().map_or(0, |s| s.expose().len())
    }

    /// `text` with each secret value replaced.
    pub fn scrub<'a>(&self, text: &'a str) -> std::borrow::Cow<'a, str> {
        let mut out = std::borrow::Cow::Borrowed(text);
        for s in self.0.iter() {
            if out.contains(s.expose()) {
                out = out.replace(s.expose(), "«secret»").into();
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(scrub.longest(), r#"s3cr\"et-value"#.len());
        let scrub = Scrubber::new([Secret::new("-----BEGIN KEY-----\nMIIabcdef\n\n")]);
        assert_eq!(scrub.scrub("a MIIabcdef b"), "a «secret» b");
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
