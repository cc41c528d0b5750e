//! Which keys of two files differ: their names, never their values.

use std::collections::BTreeSet;

use toml::{Table, Value};

use crate::config::UpstreamConfig;

/// The paths that differ.
pub type Changed = BTreeSet<Vec<String>>;

/// Every key that two texts say differently, as a path. What only looks different (spaces,
/// comments, inline tables) is the same.
pub fn changed(old: &str, new: &str) -> Changed {
    let read = |text: &str| text.parse::<Table>().unwrap_or_default();
    let mut out = Changed::new();
    compare(&read(old), &read(new), &mut vec![], &mut out);
    out
}

fn compare(old: &Table, new: &Table, path: &mut Vec<String>, out: &mut Changed) {
    let empty = Table::new();
    for key in old.keys().chain(new.keys()) {
        let (o, n) = (old.get(key), new.get(key));
        if o == n {
            continue;
        }
        path.push(key.clone());
        let table = |v: Option<&Value>| v.is_none_or(Value::is_table);
        if table(o) && table(n) {
            let inner = |v: Option<&'_ Value>| v.and_then(Value::as_table).cloned();
            let (o, n) = (inner(o), inner(n));
            compare(o.as_ref().unwrap_or(&empty), n.as_ref().unwrap_or(&empty), path, out);
        } else {
            out.insert(path.clone());
        }
        path.pop();
    }
}

/// The keys below one upstream's section.
pub fn of_upstream(changed: &Changed, name: &str) -> Vec<String> {
    let mine = changed.iter().filter_map(|path| match path.as_slice() {
        [first, upstream, rest @ ..] if first == "upstreams" && upstream == name => Some(rest),
        _ => None,
    });
    mine.map(dotted).collect()
}

/// All other keys.
pub fn outside_upstreams(changed: &Changed) -> Vec<String> {
    changed.iter().filter(|p| p[0] != "upstreams").map(|p| dotted(p)).collect()
}

/// The keys that are written the same and now stand for something else: a variable or file holds
/// another value.
pub fn resolved(old: &UpstreamConfig, new: &UpstreamConfig) -> Vec<String> {
    let (old, new) = (old.templates(), new.templates());
    let differs = |(path, n): &(Vec<&str>, &crate::config::secret::Template)| {
        old.iter().any(|(p, o)| p == path && o.written() == n.written() && o.expose() != n.expose())
    };
    let told = |path: &[&str]| {
        let path: Vec<String> = path.iter().map(|&key| key.to_owned()).collect();
        format!("{} (what it refers to)", dotted(&path))
    };
    let mut out: Vec<String> =
        new.iter().filter(|t| differs(t)).map(|(path, _)| told(path)).collect();
    out.dedup();
    out
}

fn dotted(path: &[String]) -> String {
    let bare = |key: &String| {
        let plain = !key.is_empty()
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if plain { key.clone() } else { format!("{key:?}") }
    };
    path.iter().map(bare).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_and_their_values_are_not() {
        let old = "[gateway]\npage_size = 1\n[upstreams.a]\nurl = \"https://s3cret\"\n\
                   env = { K = \"s3cret\" }\n[upstreams.b]\nurl=\"u\"\n[views.v]\nallow = [\"x\"]\n";
        let new = "# another\n[upstreams.a]\nurl = \"https://other\"\nrate = { burst = 2 }\n\
                   [upstreams.a.env]\nK = \"other\"\n[upstreams.a.tools.\"x*\"]\nread_only = true\n\
                   [upstreams.b]\nurl = \"u\"\n[gateway]\n[views.v]\nallow = [\"y\"]\n";
        let changed = changed(old, new);
        assert_eq!(
            of_upstream(&changed, "a"),
            ["env.K", "rate.burst", "tools.\"x*\".read_only", "url"]
        );
        assert!(of_upstream(&changed, "b").is_empty());
        assert_eq!(outside_upstreams(&changed), ["gateway.page_size", "views.v.allow"]);
        assert!(super::changed(old, old).is_empty());
    }
}
