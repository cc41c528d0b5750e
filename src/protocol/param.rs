//! Parameters of a tool that are mirrored in headers: which ones a schema names, and what stands
//! in the headers of one call (2026-07-28 server/tools, "x-mcp-header";
//! basic/transports/streamable-http, "custom headers from tool parameters").
//!
//! A schema is looked at once, when its list is loaded. A call's arguments are looked at only if
//! its tool has such parameters.

mod schema;
mod value;

use std::borrow::Cow;

use hyper::header::{HeaderName, HeaderValue};

use super::header;
use super::meta::Members;

pub use schema::{Invalid, read, strip};
pub use value::INTEGER_MAX;

/// The member of a parameter's schema that asks for a header.
pub const ANNOTATION: &str = "x-mcp-header";
/// What the annotation's token is put behind; in lower case, as names of headers are compared.
pub const PREFIX: &str = "mcp-param-";
/// Longest token. It stands in each call's headers; longer ones no server takes.
pub const TOKEN_MAX: usize = 128;
/// Most mirrored parameters of one tool: each is a header of each call, and servers commonly take
/// a hundred in all.
pub const PARAMS_MAX: usize = 32;
/// Deepest schema that is looked into, in subschemas. Real ones stay far below; each level is one
/// more pass over what stands in it.
pub const DEPTH_MAX: usize = 16;
/// Largest annotated schema that is looked into, in bytes.
pub const SCHEMA_MAX: usize = 1 << 20;
/// Most bytes of mirrored values in one call, encoded. Servers take 8 to 64 KiB of headers.
pub const VALUES_MAX: usize = 64 << 10;

/// A mirrored parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// The header.
    pub header: HeaderName,
    /// As its tool writes the header's last part.
    pub token: Box<str>,
    /// Where its value stands in the arguments: the keys from the outermost.
    pub path: Box<[Box<str>]>,
    /// What its schema says it is.
    pub kind: Kind,
}

/// What a mirrored parameter may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `string`
    String,
    /// `integer`
    Integer,
    /// `boolean`
    Boolean,
}

/// What a call says for one mirrored parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    text: String,
    // Its value, if it was written as a number and is an integer: compared as such.
    integer: Option<i64>,
}

/// Why a call's arguments cannot be mirrored; the sentence is for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A key stands twice: the header would show one value and the tool might take the other.
    #[error("params.arguments must be an object without repeated keys: {0}")]
    Object(String),
    /// An integer that not every reader can hold.
    #[error("params.arguments: {0} must lie within ±{INTEGER_MAX}")]
    Range(String),
    /// Half of a surrogate pair.
    #[error("params.arguments: {0} is not valid text")]
    NoText(String),
    /// Together they are longer than [`VALUES_MAX`].
    #[error(
        "params.arguments: the values that go into headers have more than {VALUES_MAX} bytes together"
    )]
    TooLong,
}

impl Said {
    /// Whether a header's decoded value says the same.
    pub fn agrees(&self, decoded: &str) -> bool {
        decoded == self.text || (self.integer.is_some() && self.integer == value::decimal(decoded))
    }

    /// The value as it stands in a header.
    pub fn encoded(&self) -> Cow<'_, str> {
        header::encode(&self.text)
    }
}

/// What the raw params of a `tools/call` say for each of these parameters; `None` where there is
/// nothing to mirror: no value, null, or one that is neither text nor a number nor a truth value,
/// which the tool will not take.
pub fn values(params: &[Param], call: &[u8]) -> Result<Vec<Option<Said>>, Unfit> {
    let mut out = vec![None; params.len()];
    if params.is_empty() {
        return Ok(out);
    }
    let object = |raw| Members::read(raw).map_err(|e| Unfit::Object(e.to_string()));
    if let Some(arguments) = object(call)?.get("arguments") {
        let all: Vec<usize> = (0..params.len()).collect();
        collect(params, &all, 0, arguments.get(), &mut out)?;
    }
    Ok(out)
}

// Each object is read once, however many parameters stand in it.
fn collect(
    params: &[Param],
    wanted: &[usize],
    depth: usize,
    raw: &str,
    out: &mut [Option<Said>],
) -> Result<(), Unfit> {
    if !raw.starts_with('{') {
        return Ok(());
    }
    let members = Members::read(raw.as_bytes()).map_err(|e| Unfit::Object(e.to_string()))?;
    let mut inner: Vec<(&str, Vec<usize>)> = Vec::new();
    for &n in wanted {
        let param = &params[n];
        let key = &*param.path[depth];
        if param.path.len() > depth + 1 {
            match inner.iter_mut().find(|(k, _)| *k == key) {
                Some((_, deeper)) => deeper.push(n),
                None => inner.push((key, vec![n])),
            }
        } else if let Some(value) = members.get(key) {
            out[n] = value::said(param, value.get())?;
        }
    }
    for (key, deeper) in inner {
        if let Some(value) = members.get(key) {
            collect(params, &deeper, depth + 1, value.get(), out)?;
        }
    }
    Ok(())
}

/// The headers that mirror the raw params of a `tools/call`.
pub fn headers(params: &[Param], call: &[u8]) -> Result<Vec<(HeaderName, HeaderValue)>, Unfit> {
    let mut out = Vec::new();
    if params.is_empty() {
        return Ok(out);
    }
    let mut left = VALUES_MAX;
    for (param, said) in params.iter().zip(values(params, call)?) {
        let Some(said) = said else { continue };
        let text = said.encoded();
        left = left.checked_sub(text.len()).ok_or(Unfit::TooLong)?;
        let value = HeaderValue::from_str(&text).expect("what is encoded is visible ASCII");
        out.push((param.header.clone(), value));
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
