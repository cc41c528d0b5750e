//! What a client can be asked for, in the words of each revision.

use std::borrow::Cow;
use std::fmt;

use serde_json::value::RawValue;

use super::json;
use super::message::MAX_DEPTH;
use super::meta::{ObjectWriter, at};
use super::revision::{Era, Revision};

/// The extension for pages that tools bring along (MCP Apps 2026-01-26).
pub const APPS: &str = "io.modelcontextprotocol/ui";
/// The extension for skills (stable; since 2026-07-28).
pub const SKILLS: &str = "io.modelcontextprotocol/skills";
/// The only kind of page that the extension knows so far.
const APP_PAGE: &str = "text/html;profile=mcp-app";

/// Whether raw `capabilities` declare one: a dotted path such as `tools.listChanged`, at which
/// stands neither `null` nor `false`.
pub fn declares(capabilities: &[u8], capability: &str) -> bool {
    let path: Vec<&str> = capability.split('.').collect();
    at(capabilities, &path).is_some_and(|value| !matches!(value.get(), "null" | "false"))
}

/// The raw settings of an extension that raw `capabilities` declare: an object.
pub fn extension<'a>(capabilities: &'a [u8], name: &str) -> Option<&'a RawValue> {
    at(capabilities, &["extensions", name]).filter(|settings| settings.get().starts_with('{'))
}

/// What one client can be asked during a call. An upstream is told of no more than this, and
/// asked for no more it may.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Askable(u8);

impl Askable {
    /// `elicitation/create` with a form (since 2025-06-18).
    pub const FORM: Askable = Askable(1);
    /// `elicitation/create` with a URL (since 2025-11-25).
    pub const URL: Askable = Askable(2);
    /// `sampling/createMessage`.
    pub const SAMPLING: Askable = Askable(4);
    /// The same with tools (since 2025-11-25).
    pub const SAMPLING_TOOLS: Askable = Askable(8);
    /// The same with context of servers.
    pub const SAMPLING_CONTEXT: Askable = Askable(16);
    /// `roots/list`.
    pub const ROOTS: Askable = Askable(32);
    /// It says when its roots change (before 2026-07-28).
    pub const ROOTS_CHANGE: Askable = Askable(64);
    /// Nothing is asked here: it shows pages of apps (the extension [`APPS`]).
    pub const APPS: Askable = Askable(128);

    /// Read a raw `capabilities` object as `revision` means it. What cannot be read is nothing.
    pub fn read(raw: &str, revision: Revision) -> Askable {
        // Most clients declare little, and each of their requests is read.
        let index = json::index(raw.as_bytes(), MAX_DEPTH);
        let find = |path: &[&str]| match (&index, path) {
            (Some(index), [first, rest @ ..]) => {
                let value = &raw[index.find(raw.as_bytes(), first)?];
                if rest.is_empty() { Some(value) } else { Some(at(value.as_bytes(), rest)?.get()) }
            }
            _ => at(raw.as_bytes(), path).map(RawValue::get),
        };
        let has = |path: &[&str]| find(path).is_some_and(|value| value.starts_with('{'));
        let mut out = Askable::default();
        if has(&["elicitation"]) {
            let url = has(&["elicitation", "url"]) && revision >= Revision::R2025_11_25;
            // An empty object, the only form that 2025-06-18 knows, means forms
            // (2025-11-25 client/elicitation, "capabilities").
            if !url || has(&["elicitation", "form"]) {
                out.0 |= Askable::FORM.0;
            }
            if url {
                out.0 |= Askable::URL.0;
            }
        }
        if has(&["sampling"]) {
            out.0 |= Askable::SAMPLING.0;
            if has(&["sampling", "tools"]) {
                out.0 |= Askable::SAMPLING_TOOLS.0;
            }
            if has(&["sampling", "context"]) || revision < Revision::R2025_11_25 {
                out.0 |= Askable::SAMPLING_CONTEXT.0;
            }
        }
        if has(&["roots"]) {
            out.0 |= Askable::ROOTS.0;
            let tells = find(&["roots", "listChanged"]) == Some("true");
            if tells && revision.era() == Era::Legacy {
                out.0 |= Askable::ROOTS_CHANGE.0;
            }
        }
        // In every revision: hosts declare it in the handshake too (MCP Apps 2026-01-26, "client
        // capabilities").
        let pages = find(&["extensions", APPS, "mimeTypes"]);
        let pages = pages.and_then(|pages| serde_json::from_str::<Vec<String>>(pages).ok());
        if pages.is_some_and(|pages| pages.iter().any(|page| page == APP_PAGE)) {
            out.0 |= Askable::APPS.0;
        }
        out.within(revision)
    }

    /// What of it a peer of `revision` knows; it can neither declare the rest nor ask it.
    #[must_use]
    pub fn within(self, revision: Revision) -> Askable {
        let mut unknown = 0;
        if revision < Revision::R2025_06_18 {
            unknown |= Askable::FORM.0;
        }
        if revision < Revision::R2025_11_25 {
            unknown |= Askable::URL.0 | Askable::SAMPLING_TOOLS.0;
        }
        Askable(self.0 & !unknown)
    }

    /// As a number that [`Askable::from_bits`] reads, for texts of ours.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// See [`Askable::bits`].
    pub fn from_bits(bits: u8) -> Askable {
        Askable(bits)
    }

    /// Whether nothing can be asked.
    pub fn is_nothing(self) -> bool {
        self.0 & !Askable::APPS.0 == 0
    }

    /// Whether all of `what` can be asked.
    pub fn has(self, what: Askable) -> bool {
        self.0 & what.0 == what.0
    }

    /// The raw `capabilities` object for a peer of `revision`.
    pub fn write(self, revision: Revision) -> Vec<u8> {
        let has = |what| self.has(what);
        let mut out = ObjectWriter::new();
        if has(Askable::ROOTS) {
            let tells = has(Askable::ROOTS_CHANGE) && revision.era() == Era::Legacy;
            out.raw("roots", if tells { b"{\"listChanged\":true}" } else { b"{}" });
        }
        if has(Askable::SAMPLING) {
            let mut sampling = ObjectWriter::new();
            if revision >= Revision::R2025_11_25 {
                if has(Askable::SAMPLING_CONTEXT) {
                    sampling.raw("context", b"{}");
                }
                if has(Askable::SAMPLING_TOOLS) {
                    sampling.raw("tools", b"{}");
                }
            }
            out.raw("sampling", &sampling.finish());
        }
        if revision >= Revision::R2025_11_25 {
            let mut elicitation = ObjectWriter::new();
            if has(Askable::FORM) {
                elicitation.raw("form", b"{}");
            }
            if has(Askable::URL) {
                elicitation.raw("url", b"{}");
            }
            if has(Askable::FORM) || has(Askable::URL) {
                out.raw("elicitation", &elicitation.finish());
            }
        } else if has(Askable::FORM) && revision >= Revision::R2025_06_18 {
            out.raw("elicitation", b"{}");
        }
        if has(Askable::APPS) {
            let settings = ObjectWriter::new().value("mimeTypes", &[APP_PAGE]).finish();
            out.raw("extensions", &ObjectWriter::new().raw(APPS, &settings).finish());
        }
        out.finish()
    }

    /// Whether a request with this method and these params may be put to the client; the error
    /// code and text if not (2025-11-25 client/elicitation and client/sampling, "error handling").
    pub fn allows(self, method: &str, params: Option<&[u8]>) -> Result<(), (i32, &'static str)> {
        use super::error::{INVALID_PARAMS, METHOD_NOT_FOUND};
        let member = |name| at(params?, &[name]).filter(|value| value.get() != "null");
        let undeclared = Err((METHOD_NOT_FOUND, "the client did not declare this"));
        match method {
            "roots/list" if self.has(Askable::ROOTS) => Ok(()),
            "sampling/createMessage" if self.has(Askable::SAMPLING) => {
                let tools = member("tools").is_some() || member("toolChoice").is_some();
                if tools && !self.has(Askable::SAMPLING_TOOLS) {
                    return Err((INVALID_PARAMS, "the client did not declare sampling.tools"));
                }
                Ok(())
            }
            "elicitation/create" if self.has(Askable::FORM) || self.has(Askable::URL) => {
                let url = member("mode").is_some_and(|mode| mode.get() == "\"url\"");
                let mode = if url { Askable::URL } else { Askable::FORM };
                if self.has(mode) {
                    return Ok(());
                }
                Err((INVALID_PARAMS, "the client did not declare this mode of elicitation"))
            }
            _ => undeclared,
        }
    }
}

impl fmt::Debug for Askable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.write(Revision::LATEST)))
    }
}

/// What a client of the newest revision declared besides what can be asked, with that replaced
/// by `askable`: extensions travel on.
pub fn modern_capabilities(raw: Option<&str>, askable: Askable, era: Era) -> Cow<'_, [u8]> {
    match (raw, era) {
        (Some(raw), Era::Modern) => raw.as_bytes().into(),
        _ => askable.write(Revision::LATEST).into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use Revision::{R2024_11_05, R2025_06_18, R2025_11_25, R2026_07_28};

    #[test]
    fn what_is_declared_is_read_as_the_revision_means_it_and_written_for_another() {
        let all = r#"{"roots":{"listChanged":true},"sampling":{"tools":{},"context":{}},"elicitation":{"form":{},"url":{}},"tasks":{}}"#;
        for (revision, written) in [
            (R2024_11_05, r#"{"roots":{},"sampling":{}}"#),
            (R2025_06_18, r#"{"roots":{},"sampling":{},"elicitation":{}}"#),
            (
                R2025_11_25,
                r#"{"roots":{},"sampling":{"context":{},"tools":{}},"elicitation":{"form":{},"url":{}}}"#,
            ),
            (
                R2026_07_28,
                r#"{"roots":{},"sampling":{"context":{},"tools":{}},"elicitation":{"form":{},"url":{}}}"#,
            ),
        ] {
            let text = Askable::read(all, R2026_07_28).write(revision);
            assert_eq!(String::from_utf8(text).unwrap(), written);
        }
        assert_eq!(Askable::read(r#"{"elicitation":{}}"#, R2025_11_25), Askable::FORM);
        assert_eq!(Askable::read(r#"{"elicitation":{"url":{}}}"#, R2026_07_28), Askable::URL);
        assert_eq!(Askable::read(r#"{"elicitation":{"url":{}}}"#, R2025_06_18), Askable::FORM);
        assert!(Askable::read(r#"{"elicitation":{}}"#, R2024_11_05).is_nothing());
        assert!(Askable::read("nonsense", R2025_11_25).is_nothing());
        let pages = r#"{"extensions":{"io.modelcontextprotocol/ui":{"mimeTypes":["text/html;profile=mcp-app"]}}}"#;
        for revision in Revision::ALL {
            let read = Askable::read(pages, revision);
            assert!(read.is_nothing() && read == Askable::APPS);
            assert_eq!(read.write(revision), pages.as_bytes());
        }
        assert!(!Askable::read(&pages.replace("mcp-app", "x"), R2026_07_28).has(Askable::APPS));
        assert_eq!(Askable::read(r#"{"roots":{},"x":1e400}"#, R2025_11_25), Askable::ROOTS);
    }

    #[test]
    fn an_older_peer_knows_less() {
        let all = Askable::from_bits(63);
        assert_eq!(all.within(R2026_07_28), all);
        assert!(!all.within(R2025_06_18).has(Askable::URL));
        assert!(all.within(R2025_06_18).has(Askable::FORM));
        assert!(!all.within(R2024_11_05).has(Askable::FORM));
        assert!(all.within(R2024_11_05).has(Askable::SAMPLING));
    }

    #[test]
    fn only_what_was_declared_may_be_asked() {
        let form = Askable::FORM;
        assert!(form.allows("elicitation/create", Some(b"{\"message\":\"m\"}")).is_ok());
        assert_eq!(
            form.allows("elicitation/create", Some(br#"{"mode":"url","x":1e400}"#)).unwrap_err().0,
            -32602
        );
        assert_eq!(form.allows("sampling/createMessage", None).unwrap_err().0, -32601);
        assert_eq!(form.allows("roots/list", None).unwrap_err().0, -32601);
        assert!(Askable::ROOTS.allows("roots/list", None).is_ok());
        let with_tools = Some(&br#"{"tools":[]}"#[..]);
        assert_eq!(
            Askable::SAMPLING.allows("sampling/createMessage", with_tools).unwrap_err().0,
            -32602
        );
        assert_eq!(Askable::ROOTS.allows("anything/else", None).unwrap_err().0, -32601);
    }
}
