//! The suite's client scenarios, with the gateway as the client that its servers see.

use crate::harness::peers;
use crate::suite;

/// Those that make sense for a proxy.
const PASSED: [&str; 10] = [
    "initialize",
    "tools_call",
    "sse-retry",
    "request-metadata",
    "sep-2322-client-request-state",
    "http-standard-headers",
    "http-custom-headers",
    "http-invalid-tool-headers",
    "json-schema-ref-no-deref",
    "json-schema-2020-12-preservation",
];

/// Those that do not, by how their names begin, and why.
const NOT_OURS: [(&str, &str); 3] = [
    ("auth/", "the gateway gets no tokens for its upstreams: credentials are configured"),
    ("sep-2640-client-", "what a skill's files must be is checked by who uses them"),
    ("elicitation-sep1034-client-defaults", "a form is filled in by who was asked, not by us"),
];

#[test]
fn the_gateway_passes_as_a_client() {
    let list = suite().args(["list", "--client"]).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let clients = list.split("Client scenarios").nth(1).unwrap_or(&list);
    let clients = clients.split("Authorization server scenarios").next().unwrap();
    let names =
        clients.lines().filter_map(|line| line.trim().strip_prefix("- ")?.split(' ').next());
    let mut known = 0;
    for name in names {
        known += 1;
        let ours = PASSED.contains(&name) || NOT_OURS.iter().any(|(of, _)| name.starts_with(of));
        assert!(ours, "nobody has said whether {name} is for a proxy");
    }
    assert!(known > PASSED.len(), "{list}");
    let dir = peers();
    let python = dir.join("py2/bin/python");
    let script = dir.join("conformance/client.py");
    let weir = env!("CARGO_BIN_EXE_weir");
    let command = format!("{} {} {weir}", python.display(), script.display());
    for name in PASSED {
        let args =
            ["client", "--command", command.as_str(), "--scenario", name, "--timeout", "60000"];
        let output = suite().args(args).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("OVERALL: PASSED"), "{name}: {said}");
        assert!(!said.contains("Passed: 0/0"), "{name} looked at nothing: {said}");
    }
}
