//! The JSON Schema of the configuration, so that editors complete and check it.

use serde_json::{Map, Value, json};

use super::section::{Key, Kind, Reader, Section};
use super::validate;

/// Every key, recorded by reading an empty file.
pub fn keys() -> Vec<Key> {
    let reader = Reader::recording();
    let _ = validate::read(&Section::root(&reader, None), &|_| None, &|_| {
        Err(std::io::ErrorKind::NotFound.into())
    });
    reader.keys()
}

/// The schema (JSON Schema 2020-12).
pub fn schema() -> Value {
    let mut root = object("Configuration of the weir gateway");
    for key in keys() {
        let path: Vec<&str> = key.path.split('.').collect();
        insert(&mut root, &path, &key);
    }
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    root["title"] = "upstreams.toml".into();
    root
}

fn object(doc: &str) -> Value {
    json!({"type": "object", "description": doc, "properties": {}, "additionalProperties": false})
}

fn insert(at: &mut Value, path: &[&str], key: &Key) {
    match path {
        [] => {}
        [last] => {
            let properties = at["properties"].as_object_mut().expect("made by object()");
            properties.insert((*last).to_owned(), property(key));
        }
        [first, rest @ ..] if *first == "NAME" => {
            insert(&mut at["additionalProperties"], rest, key);
        }
        [first, rest @ ..] => insert(&mut at["properties"][*first], rest, key),
    }
}

fn property(key: &Key) -> Value {
    let mut out = match &key.kind {
        Kind::Text => json!({"type": "string"}),
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Count => json!({"type": "integer", "minimum": 1}),
        Kind::Number => json!({"type": "number", "minimum": 0}),
        Kind::Duration => {
            json!({"type": "string", "pattern": r"^\s*[0-9.]+\s*(ms|s|m|min|h|d)\s*$"})
        }
        Kind::Size => json!({"anyOf": [
            {"type": "integer", "minimum": 1},
            {"type": "string", "pattern": r"^\s*[0-9]+\s*([KMG]i?B?|kB|B)?\s*$"},
        ]}),
        Kind::Time => json!({"type": "string", "format": "date-time"}),
        Kind::Strings => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Map => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        Kind::Choice(words) => json!({"enum": words}),
        Kind::Table => object(key.doc),
        Kind::Tables => {
            let mut tables = Map::new();
            tables.insert("type".into(), "object".into());
            tables.insert("additionalProperties".into(), object(key.doc));
            tables.into()
        }
    };
    out["description"] = key.doc.into();
    if let Some(default) = &key.default {
        // Defaults are recorded as TOML text; these kinds are valid JSON as they are.
        if let Ok(value) = serde_json::from_str::<Value>(default) {
            out["default"] = value;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_shipped_file_is_known_and_every_known_key_is_shown() {
        let shipped = include_str!("../../upstreams.toml");
        for key in keys() {
            let last = key.path.rsplit('.').next().unwrap();
            let shown = shipped.lines().any(|l| {
                let l = l.trim_start_matches(['#', ' ']);
                l.starts_with(&format!("{last} ="))
                    || l.contains(&format!("{last} = "))
                    || l.starts_with('[') && l.contains(last)
            });
            assert!(shown, "upstreams.toml does not show `{}`", key.path);
        }
    }

    #[test]
    fn the_schema_nests_as_the_file_does() {
        let s = schema();
        let upstream = &s["properties"]["upstreams"]["additionalProperties"];
        assert_eq!(upstream["properties"]["call_timeout"]["default"], "1m");
        assert_eq!(upstream["properties"]["rate"]["properties"]["per_second"]["type"], "number");
        let tool = &upstream["properties"]["tools"]["additionalProperties"];
        assert_eq!(tool["properties"]["read_only"]["type"], "boolean");
        assert_eq!(s["properties"]["gateway"]["properties"]["max_body"]["default"], "4MiB");
        assert_eq!(s["additionalProperties"], false);
    }
}
