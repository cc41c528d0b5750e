//! Each file in `tests/config` is wrong in its own ways; all of them must be told at once, with
//! their place and a remedy. The snapshots are what an operator reads.

use weirkeeper::config;

/// No variable is set and no file exists.
fn problems(text: &str, name: &str) -> String {
    let absent = |_: &str| Err(std::io::ErrorKind::NotFound.into());
    match config::parse(text, name, &|_| None, &absent) {
        Ok(_) => panic!("{name} has no problem"),
        Err(problems) => problems.to_string(),
    }
}

#[test]
fn every_case_tells_its_problems() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/config");
    let mut cases: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    cases.sort();
    assert!(cases.len() >= 20, "only {} cases found", cases.len());
    for path in cases {
        let case = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("readable");
        let told = problems(&text, &format!("{case}.toml"));
        for secret in ["hunter2hunter2", "abcdefgh", "break-secret", "weir_aaa"] {
            assert!(!told.contains(secret), "{case} shows a secret: {told}");
        }
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(case, told);
        });
    }
}

#[test]
fn a_missing_file_is_a_problem() {
    let path = std::path::Path::new("/nonexistent/upstreams.toml");
    let told = config::load(path, &|_| None).err().expect("no such file").to_string();
    insta::assert_snapshot!(told, @r"
    /nonexistent/upstreams.toml: cannot be read: No such file or directory (os error 2)
        name the file with --config PATH; the shipped upstreams.toml is a start
    ");
}

const SHIPPED: &str = include_str!("../upstreams.toml");

fn shipped(env: &dyn Fn(&str) -> Option<String>) -> config::Config {
    let absent = |_: &str| Err(std::io::ErrorKind::NotFound.into());
    config::parse(SHIPPED, "upstreams.toml", env, &absent).unwrap_or_else(|p| panic!("{p}"))
}

#[test]
fn without_credentials_what_can_run_runs() {
    let config = shipped(&|_| None);
    let told: Vec<String> = config
        .upstreams
        .iter()
        .map(|u| format!("{}: {}", u.name, u.dormant.as_deref().unwrap_or("runs")))
        .collect();
    insta::assert_snapshot!(told.join("\n"), @r"
    chargebee: environment variable CHARGEBEE_SITE is not set; environment variable CHARGEBEE_MCP_KEY is not set
    hubspot: environment variable HUBSPOT_ACCESS_TOKEN is not set
    firebase: runs
    stripe: environment variable STRIPE_RESTRICTED_KEY is not set
    calcom: environment variable CAL_API_KEY is not set
    retell: environment variable RETELL_API_KEY is not set
    ");
}

#[test]
fn with_credentials_nothing_is_dormant_and_every_one_of_them_is_scrubbed() {
    let config =
        shipped(&|name| Some(format!("value-of-{}", name.to_lowercase().replace('_', "-"))));
    for upstream in &config.upstreams {
        assert_eq!(upstream.dormant, None, "{}", upstream.name);
    }
    // Each comes from the environment; the file itself holds none.
    for upstream in config.upstreams.iter().filter(|u| &*u.name != "firebase") {
        let secrets = upstream.secrets();
        assert!(
            secrets.iter().all(|s| s.expose().starts_with("value-of-") || s.expose() == "Bearer")
        );
        assert!(!secrets.is_empty(), "{}", upstream.name);
    }
}

/// Every object in the schema that lists keys, and its keys.
fn keys(value: &serde_json::Value, out: &mut Vec<String>) {
    if let Some(properties) = value.get("properties").and_then(|p| p.as_object()) {
        out.extend(properties.keys().cloned());
    }
    match value {
        serde_json::Value::Array(list) => list.iter().for_each(|v| keys(v, out)),
        serde_json::Value::Object(map) => map.values().for_each(|v| keys(v, out)),
        _ => {}
    }
}

#[test]
fn the_shipped_file_explains_every_key() {
    let mut all = Vec::new();
    keys(&config::schema::schema(), &mut all);
    assert!(all.len() > 80, "only {} keys in the schema", all.len());
    for key in all {
        let there = SHIPPED.lines().any(|line| {
            let line = line.trim_start_matches(['#', ' ']);
            let section = line.trim_start_matches('[').split(']').next().unwrap_or("");
            line.split([' ', '=']).next() == Some(key.as_str())
                || line.starts_with('[') && section.split('.').any(|part| part == key)
                || line.contains(&format!("{{ {key} = "))
        });
        // How the third kind of program is started is told by the other two.
        assert!(there || key == "command", "{key} is not explained in upstreams.toml");
    }
}

/// The schema of one value, with its reference followed.
fn follow<'a>(root: &'a serde_json::Value, schema: &'a serde_json::Value) -> &'a serde_json::Value {
    match schema.get("$ref").and_then(|r| r.as_str()) {
        Some(path) => root.pointer(path.trim_start_matches('#')).expect("the reference is there"),
        None => schema,
    }
}

/// Whether the schema knows each key of `value` and allows its type.
fn accept(root: &serde_json::Value, schema: &serde_json::Value, value: &toml::Value, path: &str) {
    let schema = follow(root, schema);
    let (kind, other) = match value {
        toml::Value::String(_) => ("string", "string"),
        toml::Value::Integer(_) => ("integer", "number"),
        toml::Value::Float(_) => ("number", "number"),
        toml::Value::Boolean(_) => ("boolean", "boolean"),
        toml::Value::Array(_) => ("array", "array"),
        toml::Value::Table(_) | toml::Value::Datetime(_) => ("object", "object"),
    };
    let types = schema.get("type").unwrap_or_else(|| panic!("{path}: no type in {schema}"));
    let listed = types.as_array().is_some_and(|l| l.iter().any(|t| t == kind));
    assert!(types == kind || types == other || listed, "{path}: {kind} is not in {types}");
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = format!("{path}.{key}");
                let inner = schema
                    .get("properties")
                    .and_then(|p| p.get(key))
                    .or_else(|| schema.get("additionalProperties").filter(|a| a.is_object()))
                    .unwrap_or_else(|| panic!("{path} is not in the schema"));
                accept(root, inner, value, &path);
            }
        }
        toml::Value::Array(list) => {
            for value in list {
                accept(root, &schema["items"], value, path);
            }
        }
        _ => {}
    }
}

#[test]
fn the_schema_accepts_the_shipped_file() {
    let schema = config::schema::schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let file: toml::Value = toml::from_str(SHIPPED).expect("it is TOML");
    accept(&schema, &schema, &file, "");
}
