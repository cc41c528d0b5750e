//! Where a tool's arguments hold a key by which its server knows a call again.
//!
//! The key is put in as bytes, and everything else stays as it came: what the gateway sends twice
//! has to be the same twice.

use std::ops::Range;

use serde_json::value::RawValue;

use super::meta::{Members, at};
use super::splice::range_of;

/// Whether a tool's raw `inputSchema` declares an argument of this name that takes a text.
///
/// Only its own `properties` count: a server that does not name the argument may well ignore it,
/// and then a key would prove nothing.
pub fn declares(schema: &[u8], argument: &str) -> bool {
    let Some(property) = at(schema, &["properties"]).and_then(|all| {
        let all: Members<'_> = Members::read(all.get().as_bytes()).ok()?;
        all.get(argument)
    }) else {
        return false;
    };
    match property.get() {
        "true" => true,
        text if text.starts_with('{') => match at(text.as_bytes(), &["type"]).map(RawValue::get) {
            None | Some("\"string\"") => true,
            Some(types) => serde_json::from_str::<Vec<&str>>(types)
                .is_ok_and(|types| types.contains(&"string")),
        },
        _ => false,
    }
}

/// What the raw params of a `tools/call` say of an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A text, which can be a key.
    Key,
    /// Nothing: these bytes, put in the place of this range of the params, say it.
    Nothing(Range<usize>, Vec<u8>),
    /// Something that is no key, or that two readers could read in two ways.
    Odd,
}

/// Look for `argument` in the raw params of a `tools/call`, and see how `key` would be put there.
pub fn look(params: &[u8], argument: &str, key: &str) -> Said {
    let Ok(members) = Members::read(params) else { return Said::Odd };
    let name = serde_json::to_string(argument).expect("a string serialises");
    let member = format!("{name}:\"{key}\"");
    let Some(arguments) = members.get("arguments") else {
        // Right behind the opening brace; the tool's name follows, so there is a comma.
        let Some(open) = params.iter().position(|b| *b == b'{') else { return Said::Odd };
        let with = format!("\"arguments\":{{{member}}},").into_bytes();
        return if members.0.is_empty() {
            Said::Odd
        } else {
            Said::Nothing(open + 1..open + 1, with)
        };
    };
    let arguments = arguments.get().as_bytes();
    if arguments.first() != Some(&b'{') {
        return Said::Odd;
    }
    let Ok(own) = Members::read(arguments) else { return Said::Odd };
    match own.get(argument) {
        Some(said) if said.get().len() > 2 && said.get().starts_with('"') => Said::Key,
        Some(_) => Said::Odd,
        None => {
            let comma = if own.0.is_empty() { "" } else { "," };
            let place = range_of(params, arguments).start + 1;
            Said::Nothing(place..place, format!("{member}{comma}").into_bytes())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::protocol::splice::edited;

    fn filled(params: &str, argument: &str) -> Option<String> {
        match look(params.as_bytes(), argument, "k-1") {
            Said::Nothing(range, with) => {
                let out = edited(&Bytes::copy_from_slice(params.as_bytes()), [(range, with)]);
                Some(String::from_utf8(out.to_vec()).unwrap())
            }
            Said::Key | Said::Odd => None,
        }
    }

    #[test]
    fn the_key_is_put_first_and_the_rest_stays_as_it_is() {
        for (params, wanted) in [
            (
                r#"{"name":"a","arguments":{ "n" : 1.50 }}"#,
                r#"{"name":"a","arguments":{"key":"k-1", "n" : 1.50 }}"#,
            ),
            (r#"{"name":"a","arguments":{ }}"#, r#"{"name":"a","arguments":{"key":"k-1" }}"#),
            (r#" {"name":"a"}"#, r#" {"arguments":{"key":"k-1"},"name":"a"}"#),
        ] {
            assert_eq!(filled(params, "key").unwrap(), wanted);
        }
    }

    #[test]
    fn what_the_agent_says_is_kept() {
        let look = |arguments: &str| {
            look(format!(r#"{{"name":"a","arguments":{arguments}}}"#).as_bytes(), "key", "k-1")
        };
        assert_eq!(look(r#"{"key":"mine"}"#), Said::Key);
        // By another spelling of the same name, too.
        assert_eq!(look(r#"{"\u006bey":"mine"}"#), Said::Key);
        for odd in [
            r#"{"key":null}"#,
            r#"{"key":""}"#,
            r#"{"key":7}"#,
            r#"{"key":"a","key":"b"}"#,
            "null",
            "[]",
        ] {
            assert_eq!(look(odd), Said::Odd, "{odd}");
        }
    }

    #[test]
    fn a_schema_declares_its_own_properties_that_take_a_text() {
        let schema = |property: &str| format!(r#"{{"properties":{{"a":{{}},"key":{property}}}}}"#);
        for yes in
            [r#"{"type":"string"}"#, "{}", "true", r#"{"type":["string","null"],"format":"uuid"}"#]
        {
            assert!(declares(schema(yes).as_bytes(), "key"), "{yes}");
        }
        for no in [r#"{"type":"integer"}"#, "false", r#"{"type":["null"]}"#, "7"] {
            assert!(!declares(schema(no).as_bytes(), "key"), "{no}");
        }
        for no in ["{}", r#"{"properties":{"other":{}}}"#, r#"{"properties":7}"#] {
            assert!(!declares(no.as_bytes(), "key"), "{no}");
        }
    }

    proptest! {
        #[test]
        fn a_filled_call_says_the_key_and_everything_that_it_said(
            arguments in proptest::option::of(proptest::collection::btree_map("[a-c\"\\\\é]{0,3}", 0u32..9, 0..4)),
            argument in "[a-c\"\\\\é]{1,3}",
        ) {
            let mut params = json!({"name": "tool"});
            if let Some(arguments) = &arguments {
                params["arguments"] = json!(arguments);
            }
            let given = arguments.as_ref().is_some_and(|a| a.contains_key(&argument));
            let out = filled(&params.to_string(), &argument);
            prop_assert_eq!(out.is_none(), given);
            if let Some(out) = out {
                let mut out: Value = serde_json::from_str(&out).unwrap();
                let own = out["arguments"].as_object_mut().unwrap();
                prop_assert_eq!(own.remove(&argument), Some(json!("k-1")));
                prop_assert_eq!(own.len(), arguments.map_or(0, |a| a.len()));
                prop_assert_eq!(&out["name"], "tool");
            }
        }
    }
}
