//! The annotations in a tool's `inputSchema`.
//!
//! Only places that hold a schema are looked at (JSON Schema 2020-12, and the older drafts'
//! `definitions`, `dependencies` and arrays of `items`): a property, a default or an example that
//! looks like the annotation is none. `$ref` is not followed.

use std::collections::HashSet;
use std::ops::Range;

use hyper::header::HeaderName;
use memchr::memmem;

use crate::protocol::form::strip_members;
use crate::protocol::walk::{self, Walk};

use super::{ANNOTATION, DEPTH_MAX, Kind, PARAMS_MAX, PREFIX, Param, SCHEMA_MAX, TOKEN_MAX};

/// What is wrong with a tool's annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Invalid {
    /// Somewhere else than on a parameter that has a fixed place.
    #[error("has an \"{ANNOTATION}\" that is not reached through \"properties\" alone")]
    Place,
    /// Not an HTTP token (RFC 9110, 5.6.2), or one longer than [`TOKEN_MAX`].
    #[error("has an \"{ANNOTATION}\" that is no header token of 1 to {TOKEN_MAX} characters")]
    Token,
    /// Its parameter has another type, several, or none.
    #[error("has an \"{ANNOTATION}\" on what is no string, integer or boolean")]
    Type,
    /// Two parameters want one header.
    #[error("has the same \"{ANNOTATION}\" twice")]
    Taken,
    /// Two readers could disagree on what is annotated.
    #[error("has a repeated key in its annotated \"inputSchema\"")]
    Double,
    /// More than [`PARAMS_MAX`].
    #[error("has more than {PARAMS_MAX} \"{ANNOTATION}\"")]
    TooMany,
    /// An annotation below [`DEPTH_MAX`].
    #[error("has an \"{ANNOTATION}\" below {DEPTH_MAX} levels of subschemas")]
    TooDeep,
    /// Larger than [`SCHEMA_MAX`].
    #[error("has an annotated \"inputSchema\" of more than {SCHEMA_MAX} bytes")]
    TooLarge,
}

/// The mirrored parameters of a raw `inputSchema`, in its order.
///
/// # Errors
/// When an annotation breaks a rule: a client of the newest revision must not use such a tool over
/// HTTP (2026-07-28 server/tools, "x-mcp-header").
pub fn read(schema: &[u8]) -> Result<Vec<Param>, Invalid> {
    if !may_hold(schema) {
        return Ok(Vec::new());
    }
    let scan = Scan::of(schema);
    scan.wrong.map_or(Ok(scan.params), Err)
}

/// The ranges to cut so that a raw `inputSchema` has no annotations. Of a schema that is too large
/// or too deep they stay where they are not looked for; nobody enforces them.
pub fn strip(schema: &[u8]) -> Vec<Range<usize>> {
    if may_hold(schema) { Scan::of(schema).cuts } else { Vec::new() }
}

// Plain, or with a letter of it escaped: nearly all schemas are settled by this.
fn may_hold(text: &[u8]) -> bool {
    memmem::find(text, ANNOTATION.as_bytes()).is_some() || memmem::find(text, b"\\u00").is_some()
}

struct Scan<'a> {
    raw: &'a [u8],
    // The keys that lead to where it is.
    chain: Vec<Range<usize>>,
    params: Vec<Param>,
    cuts: Vec<Range<usize>>,
    wrong: Option<Invalid>,
}

impl Scan<'_> {
    fn of(raw: &[u8]) -> Scan<'_> {
        let mut scan =
            Scan { raw, chain: Vec::new(), params: Vec::new(), cuts: Vec::new(), wrong: None };
        if raw.len() > SCHEMA_MAX {
            // Only a guess that it is annotated, and a fair one.
            scan.wrong = memmem::find(raw, ANNOTATION.as_bytes()).map(|_| Invalid::TooLarge);
        } else {
            scan.schema(0..raw.len(), true, 0);
        }
        scan
    }

    // The first thing that is wrong is told.
    fn wrong(&mut self, what: Invalid) {
        self.wrong.get_or_insert(what);
    }

    fn members(&self, at: &Range<usize>) -> Vec<(Range<usize>, Range<usize>)> {
        let shift = |r: Range<usize>| r.start + at.start..r.end + at.start;
        let members = walk::members(&self.raw[at.clone()]);
        members.into_iter().map(|(k, v)| (shift(k), shift(v))).collect()
    }

    // `fixed`: reached through `properties` alone.
    fn schema(&mut self, at: Range<usize>, fixed: bool, depth: usize) {
        let text = &self.raw[at.clone()];
        if !text.starts_with(b"{") || !may_hold(text) {
            return;
        }
        if depth > DEPTH_MAX {
            if memmem::find(text, ANNOTATION.as_bytes()).is_some() {
                self.wrong(Invalid::TooDeep);
            }
            return;
        }
        for cut in strip_members(text, &[ANNOTATION]) {
            self.cuts.push(cut.start + at.start..cut.end + at.start);
        }
        let members = self.members(&at);
        self.annotation(&members, fixed);
        for (key, value) in members {
            match walk::string(&self.raw[key]).as_deref() {
                Some("properties") => self.named(&value, fixed, depth),
                Some(
                    "patternProperties" | "dependentSchemas" | "dependencies" | "$defs"
                    | "definitions",
                ) => self.named(&value, false, depth),
                Some(
                    "items"
                    | "prefixItems"
                    | "additionalItems"
                    | "unevaluatedItems"
                    | "contains"
                    | "additionalProperties"
                    | "unevaluatedProperties"
                    | "propertyNames"
                    | "allOf"
                    | "anyOf"
                    | "oneOf"
                    | "not"
                    | "if"
                    | "then"
                    | "else"
                    | "contentSchema",
                ) => self.one_or_each(value, depth),
                _ => {}
            }
        }
    }

    // A map of names to schemas.
    fn named(&mut self, at: &Range<usize>, fixed: bool, depth: usize) {
        let mut names = HashSet::new();
        for (key, value) in self.members(at) {
            let name = walk::string(&self.raw[key.clone()]);
            if !name.is_some_and(|name| names.insert(name)) {
                self.wrong(Invalid::Double);
            }
            self.chain.push(key);
            self.schema(value, fixed, depth + 1);
            self.chain.pop();
        }
    }

    fn one_or_each(&mut self, at: Range<usize>, depth: usize) {
        let text = &self.raw[at.clone()];
        let mut walk = Walk::new(text);
        if !walk.enter(b'[') {
            return self.schema(at, false, depth + 1);
        }
        while walk.item() {
            let one = walk.skip();
            self.schema(one.start + at.start..one.end + at.start, false, depth + 1);
        }
    }

    fn annotation(&mut self, members: &[(Range<usize>, Range<usize>)], fixed: bool) {
        let of = |key: &str| {
            let mut found = members.iter().filter(|(k, _)| walk::says(&self.raw[k.clone()], key));
            (found.next().map(|(_, value)| &self.raw[value.clone()]), found.next().is_some())
        };
        let ((annotation, twice), (kind, kinds), (_, maps)) =
            (of(ANNOTATION), of("type"), of("properties"));
        if twice || kinds || maps {
            return self.wrong(Invalid::Double);
        }
        let Some(token) = annotation else { return };
        let kind = match kind.map(walk::string) {
            Some(Some(kind)) if kind == "string" => Some(Kind::String),
            Some(Some(kind)) if kind == "integer" => Some(Kind::Integer),
            Some(Some(kind)) if kind == "boolean" => Some(Kind::Boolean),
            _ => None,
        };
        let token = if token.starts_with(b"\"") { walk::string(token) } else { None };
        let token = token.filter(|t| (1..=TOKEN_MAX).contains(&t.len()));
        let header = token.as_ref().and_then(|t| HeaderName::try_from(format!("{PREFIX}{t}")).ok());
        let path = self.chain.iter().map(|key| walk::string(&self.raw[key.clone()]));
        let path: Option<Box<[Box<str>]>> = path.map(|key| Some(key?.into())).collect();
        let (Some(token), Some(header)) = (token, header) else {
            return self.wrong(Invalid::Token);
        };
        let param = match (path, kind) {
            (Some(path), _) if !fixed || path.is_empty() => return self.wrong(Invalid::Place),
            (None, _) => return self.wrong(Invalid::Place),
            (_, None) => return self.wrong(Invalid::Type),
            (Some(path), Some(kind)) => Param { header, token: (&*token).into(), path, kind },
        };
        if self.params.iter().any(|p| p.header == param.header) {
            return self.wrong(Invalid::Taken);
        }
        if self.params.len() == PARAMS_MAX {
            return self.wrong(Invalid::TooMany);
        }
        self.params.push(param);
    }
}
