//! Choices of a form, for clients of 2025-06-18.
//!
//! *Decided:* that revision has no choice of several. It is asked as one boolean per option and
//! put together again in the answer, so the person still decides; declining in their name would
//! end what they began over a form they never saw.

use std::collections::HashSet;
use std::ops::Range;

use bytes::Bytes;

use crate::protocol::meta::{Members, ObjectWriter};
use crate::protocol::older::{Member, is_array, items_at, members_at, text_of, value_of};
use crate::protocol::splice::Splice;
use crate::protocol::walk::{says, string};

/// Most options of one choice of several that are asked one by one; nobody fills in a longer
/// form, and it is declined.
const OPTIONS_MAX: usize = 64;

/// How an answer is put in the words of who asked.
#[derive(Debug, Default)]
pub struct Back(Vec<Several>);

// A choice of several that was taken apart.
#[derive(Debug)]
struct Several {
    name: String,
    // The boolean that stands for each option, and the option's raw value.
    options: Vec<(String, Box<[u8]>)>,
    required: bool,
    // It has to have an item at least.
    some: bool,
}

impl Back {
    /// The client's raw result as the upstream wants it.
    pub fn answer(&self, result: Bytes) -> Bytes {
        if self.0.is_empty() {
            return result;
        }
        let members = members_at(&result, &(0..result.len()));
        let Some(at) = value_of(&result, &members, "content") else { return result };
        let Ok(content) = Members::read(&result[at.clone()]) else { return result };
        let mut out = ObjectWriter::new();
        for (key, value) in &content.0 {
            if !self.0.iter().any(|s| s.options.iter().any(|(name, _)| name == key)) {
                out.raw(key, value.get().as_bytes());
            }
        }
        for several in &self.0 {
            let said = |name: &str| content.get(name).map(serde_json::value::RawValue::get);
            let told = several.options.iter().any(|(name, _)| said(name).is_some());
            let chosen: Vec<&[u8]> = several
                .options
                .iter()
                .filter(|(name, _)| said(name) == Some("true"))
                .map(|(_, option)| &**option)
                .collect();
            // None of them is an answer, unless the schema says that it cannot be one: then the
            // person left it out.
            let none = chosen.is_empty() && (several.some || !told);
            if several.required || !none {
                out.raw(&several.name, &array(&chosen));
            }
        }
        let mut splice = Splice::new();
        splice.replace(at, out.finish());
        splice.apply(&result)
    }
}

/// The edits on the schema that stands at `schema` in `raw`. `None` if it cannot be asked.
pub(super) fn edit<'a>(
    raw: &'a [u8],
    schema: &Range<usize>,
    splice: &mut Splice<'a>,
) -> Option<Back> {
    let schema = members_at(raw, schema);
    let Some(properties) = value_of(raw, &schema, "properties") else {
        return Some(Back::default());
    };
    let properties = members_at(raw, &properties);
    let required = value_of(raw, &schema, "required");
    let needs = required.as_ref().map(|at| items_at(raw, at)).unwrap_or_default();
    let mut names: HashSet<String> = properties.iter().filter_map(|(k, _)| name(raw, k)).collect();
    let mut back = Back::default();
    for (key, value) in &properties {
        let property = members_at(raw, value);
        if let Some((at, with)) = one_of(raw, &property) {
            splice.replace(at, with);
            continue;
        }
        let Some((options, some)) = several(raw, &property) else { continue };
        if options.is_empty() || options.len() > OPTIONS_MAX {
            return None;
        }
        let several = name(raw, key)?;
        let required = needs.iter().any(|at| says(&raw[at.clone()], &several));
        let several = take_apart(raw, several, &property, &options, &mut names, splice, {
            key.start..value.end
        });
        back.0.push(Several { required, some, ..several });
    }
    let gone = |at: &Range<usize>| back.0.iter().any(|s| says(&raw[at.clone()], &s.name));
    if let Some(at) = required
        && needs.iter().any(gone)
    {
        let stay: Vec<&[u8]> = needs.iter().filter(|n| !gone(n)).map(|n| &raw[n.clone()]).collect();
        splice.replace(at, array(&stay));
    }
    Some(back)
}

fn array(items: &[&[u8]]) -> Vec<u8> {
    [&b"["[..], &items.join(&b','), b"]"].concat()
}

fn name(raw: &[u8], key: &Range<usize>) -> Option<String> {
    string(&raw[key.clone()]).map(Into::into)
}

// One option: its raw value and its title.
struct Choice {
    value: Range<usize>,
    title: String,
}

// The options of `[{const, title}, …]`; `None` if it is anything else.
fn titled(raw: &[u8], at: &Range<usize>) -> Option<Vec<Choice>> {
    is_array(raw, at).then_some(())?;
    let options = items_at(raw, at).into_iter().map(|option| {
        let members = members_at(raw, &option);
        let value = value_of(raw, &members, "const")?;
        let said = string(&raw[value.clone()])?.into_owned();
        let title = text_of(raw, &members, "title").unwrap_or(said);
        Some(Choice { value, title })
    });
    options.collect()
}

// A choice of one with titles (2025-11-25 client/elicitation, "enum schema"), in the words of
// 2025-06-18.
fn one_of(raw: &[u8], property: &[Member]) -> Option<(Range<usize>, Vec<u8>)> {
    if value_of(raw, property, "enum").is_some() {
        return None;
    }
    let (key, value) = property
        .iter()
        .find(|(k, _)| says(&raw[k.clone()], "oneOf") || says(&raw[k.clone()], "anyOf"))?;
    let options = titled(raw, value)?;
    let values: Vec<&[u8]> = options.iter().map(|o| &raw[o.value.clone()]).collect();
    let titles: Vec<&str> = options.iter().map(|o| &*o.title).collect();
    let titles = serde_json::to_vec(&titles).expect("strings serialise");
    let with = [&b"\"enum\":"[..], &array(&values), b",\"enumNames\":", &titles].concat();
    Some((key.start..value.end, with))
}

// The options of a choice of several, and whether one has to be chosen; `None` if it is none.
fn several(raw: &[u8], property: &[Member]) -> Option<(Vec<Choice>, bool)> {
    says(&raw[value_of(raw, property, "type")?], "array").then_some(())?;
    let items = members_at(raw, &value_of(raw, property, "items")?);
    let some = number(raw, property, "minItems").is_some_and(|n| n > 0);
    for key in ["anyOf", "oneOf"] {
        if let Some(at) = value_of(raw, &items, key) {
            return Some((titled(raw, &at)?, some));
        }
    }
    let options = items_at(raw, &value_of(raw, &items, "enum")?).into_iter().map(|value| {
        let title = string(&raw[value.clone()])?.into_owned();
        Some(Choice { value, title })
    });
    Some((options.collect::<Option<_>>()?, some))
}

fn number(raw: &[u8], property: &[Member], key: &str) -> Option<u64> {
    serde_json::from_slice(&raw[value_of(raw, property, key)?]).ok()
}

// How many are to be chosen, for the person; nothing else says it any more.
fn bounds(raw: &[u8], property: &[Member]) -> Option<String> {
    let least = number(raw, property, "minItems").filter(|n| *n > 0);
    match (least, number(raw, property, "maxItems")) {
        (Some(least), Some(most)) => Some(format!("Choose {least} to {most}.")),
        (Some(least), None) => Some(format!("Choose at least {least}.")),
        (None, Some(most)) => Some(format!("Choose at most {most}.")),
        (None, None) => None,
    }
}

// A boolean for each option in the place of the property.
fn take_apart<'a>(
    raw: &'a [u8],
    several: String,
    property: &[Member],
    options: &[Choice],
    names: &mut HashSet<String>,
    splice: &mut Splice<'a>,
    place: Range<usize>,
) -> Several {
    let title = text_of(raw, property, "title").unwrap_or_else(|| several.clone());
    let about: Vec<String> = [text_of(raw, property, "description"), bounds(raw, property)]
        .into_iter()
        .flatten()
        .collect();
    let preset =
        value_of(raw, property, "default").map(|at| items_at(raw, &at)).unwrap_or_default();
    let mut said = ObjectWriter::new();
    let mut apart = Vec::new();
    for (n, option) in options.iter().enumerate() {
        let mut name = format!("{several}_{}", n + 1);
        while !names.insert(name.clone()) {
            name.push('_');
        }
        let mut boolean = ObjectWriter::new();
        boolean.value("type", &"boolean").value("title", &format!("{title}: {}", option.title));
        if n == 0 && !about.is_empty() {
            boolean.value("description", &about.join(" "));
        }
        let value = &raw[option.value.clone()];
        let option_says = string(value);
        if preset.iter().any(|at| string(&raw[at.clone()]) == option_says) {
            boolean.raw("default", b"true");
        }
        said.raw(&name, &boolean.finish());
        apart.push((name, value.into()));
    }
    let said = said.finish();
    splice.replace(place, said[1..said.len() - 1].to_vec());
    Several { name: several, options: apart, required: false, some: false }
}
