//! The command line as its users have it: what is printed where, and how it ends.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use harness::scripted::{Reply, Scripted, tool};
use harness::{PATIENCE, Weir, call, modern, upstream};
use serde_json::{Value, json};

fn weir() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.env_remove("WEIR_TEST_TOKEN").stdin(Stdio::null());
    command
}

async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A file with its own state and these upstreams.
fn file(dir: &Path, gateway: &str, upstreams: &str) -> std::path::PathBuf {
    let path = dir.join("upstreams.toml");
    let text = format!(
        "[gateway]\nlisten = \"127.0.0.1:0\"\nstate_dir = \"{0}/state\"\ncache_dir = \"{0}/cache\"\n{gateway}\n[admin]\nlisten = \"off\"\n{upstreams}\n",
        dir.display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

async fn on(path: &Path, args: &[&str]) -> Output {
    let mut command = weir();
    command.args(args).arg("--config").arg(path);
    run(command).await
}

#[tokio::test]
async fn check_names_every_problem_with_its_place_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let bad =
        file(dir.path(), "max_bodi = 1", "[upstreams.a]\nurl = \"ftp://x/\"\ncall_timeout = 5");
    let output = on(&bad, &["check"]).await;
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));
    let told = stderr(&output).replace(&dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(told, @r#"
    DIR/upstreams.toml:5:1: gateway.max_bodi: is not a known key
        did you mean `max_body`?
    DIR/upstreams.toml:9:7: upstreams.a.url: is no http, https, ws or wss URL
        write it like "https://mcp.example.com/mcp"
    DIR/upstreams.toml:10:16: upstreams.a.call_timeout: is a whole number
        write a duration with its unit, such as "30s"
    3 problems
    "#);
    // The same words, and the same refusal, when it is to be served.
    let served = on(&bad, &["serve"]).await;
    assert_eq!(served.status.code(), Some(1));
    assert!(
        stderr(&served).contains("gateway.max_bodi: is not a known key"),
        "{}",
        stderr(&served)
    );

    let missing = on(&dir.path().join("none.toml"), &["check"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("none.toml: cannot be read"), "{}", stderr(&missing));

    let good = file(
        dir.path(),
        "",
        "[upstreams.a]\nurl = \"http://127.0.0.1:9/mcp\"\n[upstreams.b]\nurl = \"https://x.example/\"\nbearer = \"${WEIR_TEST_TOKEN}\"",
    );
    let output = on(&good, &["check"]).await;
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let told = stdout(&output);
    assert!(told.contains("no problems") && told.contains("WEIR_TEST_TOKEN is not set"), "{told}");
    assert!(!told.contains('\u{1b}'), "no colour where nobody looks");
    // Nothing was started or written.
    assert!(!dir.path().join("state").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn check_connect_tries_each_upstream() {
    let dir = tempfile::tempdir().unwrap();
    let up = Scripted::fine(&["a"]).await;
    let dormant =
        "[upstreams.later]\nurl = \"https://x.example/\"\nbearer = \"${WEIR_TEST_TOKEN}\"\n";
    let fine = file(dir.path(), "", &(up.section("up", "") + dormant));
    let output = on(&fine, &["check", "--connect"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let told = stdout(&output);
    assert!(told.lines().any(|l| l.starts_with("up ") && l.contains("ready")), "{told}");
    assert!(told.contains("dormant"), "{told}");
    let dead = file(
        dir.path(),
        "",
        "[upstreams.dead]\nurl = \"http://127.0.0.1:9/mcp\"\n[upstreams.gone]\ncommand = \"/no/such/program\"\n",
    );
    let output = on(&dead, &["check", "--connect"]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = stdout(&output);
    assert!(told.contains("cannot be reached") && told.contains("could not be started"), "{told}");
    // As the log has it: which program, which address, and what the system said.
    assert!(told.contains("`/no/such/program` does not exist"), "{told}");
    assert!(told.contains("Connection refused"), "{told}");
}

/// Programs, folders and files that are not there, and one more of each that is.
fn lacking(dir: &Path) -> String {
    let plain = dir.join("plain");
    std::fs::write(&plain, "no program").unwrap();
    let plain = plain.display();
    let script = dir.join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let script = script.display();
    format!(
        r#"
[upstreams.at]
command = "/no/such/program"
[upstreams.on]
command = "no-such-program"
env = {{ PATH = "/no/bin" }}
[upstreams.plain]
command = "{plain}"
[upstreams.here]
command = "sh"
cwd = "/no/such/folder"
[upstreams.later]
command = "/no/such/program"
args = ["${{WEIR_TEST_TOKEN}}"]
[upstreams.off]
enabled = false
command = "/no/such/program"
[upstreams.key]
url = "https://x.example/mcp"
bearer = "file:/no/key"
[upstreams.fine]
command = "sh"
cwd = "/"
[upstreams.script]
command = "{script}"
era = "modern"
"#
    )
}

#[tokio::test]
async fn check_finds_what_the_machine_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "", &lacking(dir.path()));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("listen = \"off\"", "listen = \"0.0.0.0:8081\"")).unwrap();
    let output = on(&path, &["check"]).await;
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));
    let told = stderr(&output).replace(&dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(told, @r#"
    DIR/upstreams.toml:7:10: warning: admin.listen: 0.0.0.0:8081 is no loopback address, and the admin listener has no authentication: whoever reaches it reads /status and /metrics
        listen on 127.0.0.1, or see to it that only your monitoring reaches this address
    DIR/upstreams.toml:10:11: upstreams.at.command: /no/such/program does not exist
        install it there, or mend the path
    DIR/upstreams.toml:12:11: upstreams.on.command: "no-such-program" is in no directory of its PATH, which is /no/bin
        install it, or write its whole path, from /
    DIR/upstreams.toml:15:11: upstreams.plain.command: DIR/plain is no executable file
        make it one: chmod +x DIR/plain
    DIR/upstreams.toml:18:7: upstreams.here.cwd: /no/such/folder does not exist
        make it, or leave cwd out: then it gets an empty one of its own
    DIR/upstreams.toml:20:11: warning: upstreams.later.command: /no/such/program does not exist
        install it there, or mend the path
    DIR/upstreams.toml:27:10: warning: upstreams.key.bearer: file /no/key cannot be read (entity not found)
        put it there, readable for the gateway; until then it is dormant
    4 problems, 3 warnings
    "#);

    // Warnings alone are no failure.
    let fine = "[upstreams.key]\nurl = \"https://x.example/mcp\"\nbearer = \"file:/no/such/key\"";
    let output = on(&file(dir.path(), "", fine), &["check"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("no problems"), "{}", stdout(&output));
    assert!(stderr(&output).ends_with("\n1 warning\n"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_machine_lacks_keeps_nobody_from_serving() {
    let dir = tempfile::tempdir().unwrap();
    let fast = "restart_backoff = \"1ms\"\nrestart_backoff_max = \"5ms\"\n";
    let sections = lacking(dir.path())
        .replace("[upstreams.here]\n", &format!("[upstreams.here]\n{fast}"))
        .replace("[upstreams.at]\n", &format!("[upstreams.at]\n{fast}"))
        .replace("[upstreams.script]\n", &format!("[upstreams.script]\n{fast}"));
    let weir = Weir::start("", &sections);
    let status = weir
        .until("tried again and again", |s| {
            ["at", "here", "script"].iter().all(|n| upstream(s, n)["restarts"].as_u64() > Some(5))
                && ["on", "plain", "script"].iter().all(|n| upstream(s, n)["cause"].is_string())
        })
        .await;
    for (name, cause) in [
        ("at", "program `/no/such/program` does not exist"),
        ("on", "program `no-such-program` was not found"),
        ("plain", "is not an executable file"),
        (
            "script",
            "No such file or directory (os error 2): is the program installed, executable, and its interpreter too?",
        ),
        ("here", "working directory /no/such/folder does not exist"),
    ] {
        let up = upstream(&status, name);
        assert!(up["cause"].as_str().unwrap().contains(cause), "{up}");
        assert_eq!((&up["state"], &up["crash_loop"]), (&json!("down"), &json!(false)), "{up}");
        assert_eq!(up["why"], "the server program could not be started");
    }
    // Agents hear that it is down, and nothing of this machine.
    let agents = call(&weir.url, "weir__status", json!({})).await.to_string();
    assert!(agents.contains("could not be started") && !agents.contains("/no/such/"), "{agents}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installers_last_words_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let script = "#!/bin/sh\ncat >&2 <<'END'\nnpm error code E404\nnpm error 404 Not Found - GET https://r.example/@a%2fb - Not found\nnpm error 404\nnpm error 404  '@a/b@1.2.3' is not in this registry.\nnpm error 404\nnpm error 404 Note that you can also install from a\nnpm error 404 tarball, folder, http url, or git folder.\nEND\nexit 1\n";
    let npm = dir.path().join("npm");
    std::fs::write(&npm, script).unwrap();
    std::fs::set_permissions(&npm, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = file(dir.path(), "", "[upstreams.up]\npackage = \"npm:@a/b@1.2.3\"\n");
    let mut command = weir();
    command.args(["check", "--connect", "--config"]).arg(&path);
    command.env("PATH", format!("{}:/bin:/usr/bin", dir.path().display()));
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(1));
    let told = stdout(&output);
    assert!(told.trim_end().ends_with("'@a/b@1.2.3' is not in this registry."), "{told}");
    // Without an installer it is said which one.
    let mut command = weir();
    command.args(["check", "--config"]).arg(&path).env("PATH", "/no/bin");
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("needs `npm`"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_connect_finds_patterns_that_describe_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let up = Scripted::fine(&["read", "write"]).await;
    let more = "allow = [\"re*\", \"wirte\"]\ndeny = [\"delete_*\"]\n[upstreams.up.tools.\"wri*\"]\nread_only = true\n[upstreams.up.tools.rite]\nread_only = true\n";
    let views = "[views.a]\nupstreams = [\"up\"]\nallow = [\"up__read\", \"up__wirte\"]\n[views.b]\nallow = [\"*__red\", \"weir__*\"]\n";
    let away = "[upstreams.away]\nurl = \"http://127.0.0.1:9/mcp\"\nallow = [\"who-knows\"]\n";
    let path = file(dir.path(), "", &(up.section("up", more) + views));
    let output = on(&path, &["check", "--connect"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let told = stderr(&output).replace(&dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(told, @r#"
    DIR/upstreams.toml:10:17: warning: upstreams.up.allow: "wirte" matches nothing that it offers
        mend it, or remove it; `weir catalog` shows the names that there are
    DIR/upstreams.toml:11:9: warning: upstreams.up.deny: "delete_*" matches nothing that it offers
        mend it, or remove it; `weir catalog` shows the names that there are
    DIR/upstreams.toml:14:21: warning: upstreams.up.tools.rite: matches no tool that it offers
        mend it, or remove it; `weir catalog` shows the names that there are
    DIR/upstreams.toml:19:22: warning: views.a.allow: "up__wirte" matches no public name of what its upstreams offer
        mend it, or remove it; `weir catalog` shows the names that there are
    DIR/upstreams.toml:21:10: warning: views.b.allow: "*__red" matches no public name of what its upstreams offer
        mend it, or remove it; `weir catalog` shows the names that there are
    5 warnings
    "#);
    // What one upstream that is away may have is not called nothing.
    let path = file(dir.path(), "", &(up.section("up", more) + views + away));
    let told = stderr(&on(&path, &["check", "--connect"]).await);
    assert!(told.contains("up__wirte") && told.contains("\"wirte\""), "{told}");
    assert!(!told.contains("__red") && !told.contains("who-knows"), "{told}");
    // Nobody asked, so nobody knows.
    assert_eq!(stderr(&on(&path, &["check"]).await), "");
}

#[tokio::test]
async fn check_takes_what_serve_takes() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "", "");
    for command in [&["check"][..], &["check", "--connect"], &["serve"]] {
        let output = on(&path, &[command, &["--listen", "0.0.0.0:0"]].concat()).await;
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(stderr(&output).contains("--listen 0.0.0.0:0: without consumers"), "{command:?}");
    }
    let fine = ["check", "--listen", "127.0.0.1:0", "--log-format", "json"];
    assert_eq!(on(&path, &fine).await.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn catalog_shows_what_each_consumer_would_see() {
    let dir = tempfile::tempdir().unwrap();
    let up = Scripted::fine(&["read", "write"]).await;
    let (px, sales) = (key("px"), key("sales"));
    let path = file(
        dir.path(),
        "builtin = false",
        &(up.section("up", "")
            + &format!(
                "[views.px]\nallow = [\"*__read\"]\n[consumers.px]\nkey = {:?}\nview = \"px\"\n[consumers.sales]\nkey = {:?}\n",
                px.1, sales.1
            )),
    );
    let output = on(&path, &["catalog"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let told = stdout(&output);
    assert!(
        told.contains("up__read") && told.contains("up__write") && !told.contains('\u{1b}'),
        "{told}"
    );
    let output = on(&path, &["catalog", "--json"]).await;
    let all: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let of = |name: &str| {
        all["consumers"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap()["tools"]
            .clone()
    };
    assert_eq!((of("px"), of("sales")), (json!(["up__read"]), json!(["up__read", "up__write"])));
    let tools = &all["upstreams"][0]["lists"][0];
    assert_eq!((&tools["kind"], &tools["entries"]), (&json!("tools"), &json!(2)));
    // The size of what an agent is given: the entries with their public names.
    let size: usize =
        ["up__read", "up__write"].iter().map(|n| tool(n, false).to_string().len()).sum();
    let bytes = usize::try_from(tools["bytes"].as_u64().unwrap()).unwrap();
    assert!(bytes.abs_diff(size) < 20, "{bytes} {size}");
    let output = on(&path, &["catalog", "--consumer", "px"]).await;
    assert!(!stdout(&output).contains("up__write"), "{}", stdout(&output));
    let output = on(&path, &["catalog", "--consumer", "nobody"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("px, sales"),
        "names those that there are: {}",
        stderr(&output)
    );
}

fn key(name: &str) -> (String, String) {
    let output = weir().args(["key", "new", name]).output().unwrap();
    assert!(output.status.success());
    let section = stderr(&output);
    assert!(section.contains(&format!("[consumers.{name}]")), "{section}");
    let digest = section.split("key = \"").nth(1).unwrap().split('"').next().unwrap();
    let key = stdout(&output).trim().to_owned();
    assert!(!section.contains(&key), "the key is shown once");
    (key, digest.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_opens_the_door() {
    let (px, digest) = key("px-bot");
    assert_ne!(key("px-bot").0, px, "never the same twice");
    let weir = Weir::start("", &format!("[consumers.px-bot]\nkey = {digest:?}\n"));
    let status = |key: Option<String>| {
        let url = weir.url.clone();
        async move { modern(&url, key.as_deref(), "tools/list", json!({})).await.status }
    };
    assert_eq!((status(Some(px.clone())).await, status(None).await), (200, 401));
    assert_eq!(status(Some(px.to_uppercase())).await, 401);
    let output = self::weir().args(["key", "new", "Not A Name"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "a name that the file would refuse");
    assert!(
        stdout(&output).is_empty() && stderr(&output).contains("Not A Name"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn call_prints_the_result_as_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let up = Scripted::start(&[tool("echo", false), tool("fails", false)], |a| {
        Some(match a.tool()? {
            "fails" => Reply::Json(
                a.result(&json!({"isError": true, "content": [{"type": "text", "text": "no"}]})),
            ),
            _ => {
                let args = a.message["params"]["arguments"].to_string();
                Reply::Json(
                    a.result(&json!({"content": [{"type": "text", "text": args}], "odd": "x"}))
                        .replace("\"x\"", "1.50"),
                )
            }
        })
    })
    .await;
    let path = file(dir.path(), "", &up.section("up", "bearer = \"a-secret-of-the-file\""));
    let output = on(&path, &["call", "up__echo", "{\"a\": 1.0}"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("\"odd\":1.50") && stdout(&output).contains("{\\\"a\\\":1.0}"),
        "{}",
        stdout(&output)
    );
    let output = on(&path, &["call", "up__fails"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("isError"));
    let output = on(&path, &["call", "up__none"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("unknown_name"), "{}", stdout(&output));
    for wrong in ["{", "[1]", "7"] {
        let output = on(&path, &["call", "up__echo", wrong]).await;
        assert_eq!(output.status.code(), Some(1), "{wrong}");
        assert!(stderr(&output).contains("arguments"), "{wrong}: {}", stderr(&output));
        assert!(!stderr(&output).contains("a-secret-of-the-file"));
    }
    assert_eq!(up.arrived("echo"), 1);
    let output = on(&path, &["call"]).await;
    assert_eq!(output.status.code(), Some(2), "wrong usage");
    assert!(stderr(&output).contains("NAME"));
}

#[tokio::test]
async fn schema_and_help_say_what_there_is() {
    let output = run({
        let mut c = weir();
        c.arg("schema");
        c
    })
    .await;
    let schema: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(schema["$schema"].as_str().unwrap().contains("json-schema.org"), "{schema}");
    assert!(schema["properties"]["upstreams"].is_object());
    for args in [
        &["--help"][..],
        &["check", "--help"],
        &["catalog", "--help"],
        &["call", "--help"],
        &["key", "new", "--help"],
        &["stdio", "--help"],
        &["schema", "--help"],
    ] {
        let output = run({
            let mut c = weir();
            c.args(args);
            c
        })
        .await;
        let text = stdout(&output);
        assert_eq!(output.status.code(), Some(0));
        let shows = text.contains("Example") || text.contains("Exit code");
        assert!(shows, "{args:?}: {text}");
    }
    let help = run({
        let mut c = weir();
        c.arg("--help");
        c
    })
    .await;
    // As `check_names_every_problem…` sees `serve` end.
    let codes = stdout(&help).replace('\n', " ");
    assert!(codes.contains("1 problems in the configuration (of any command, serve"), "{codes}");
    let output = run({
        let mut c = weir();
        c.arg("--no-such-flag");
        c
    })
    .await;
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served_is_said_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "", "");
    let output = on(&path, &["--listen", "0.0.0.0:0"]).await;
    assert!(!output.status.success());
    assert!(stderr(&output).contains("weir key new"), "{}", stderr(&output));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = on(&path, &["--listen", &address]).await;
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output).contains(&address) && stderr(&output).contains("another gateway"),
        "{}",
        stderr(&output)
    );
    let weir = Weir::start("", "");
    assert!(!weir.log().contains("no authentication"), "{}", weir.log());
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"off\"", "\"0.0.0.0:0\"")).unwrap();
    let mut child = self::weir().arg("--config").arg(&path).stderr(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let before: Vec<_> =
        lines.map_while(Result::ok).take_while(|l| !l.contains("mcpServers")).collect();
    // For people there is something ready to paste; that it came is what the loop waited for.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(before.iter().any(|l| l.contains("has no authentication")), "{before:#?}");
}

/// `weir stdio` on this file: what is written and what comes back, until its stdin is closed.
struct Pipe {
    child: std::process::Child,
    lines: std::sync::mpsc::Receiver<Value>,
}

impl Pipe {
    fn start(path: &Path) -> Pipe {
        let mut child = weir()
            .arg("stdio")
            .arg("--config")
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        let (tx, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use std::io::BufRead as _;
            for line in stdout.lines().map_while(Result::ok) {
                // Nothing but the protocol stands on stdout.
                let message =
                    serde_json::from_str(&line).unwrap_or_else(|_| json!({"noise": line}));
                if tx.send(message).is_err() {
                    return;
                }
            }
        });
        Pipe { child, lines }
    }

    fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).unwrap();
        stdin.write_all(b"\n").unwrap();
    }

    fn hear(&mut self, id: &Value) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let message = self.lines.recv_timeout(left).expect("an answer comes");
            assert!(message["noise"].is_null(), "{message}");
            if message["id"] == *id {
                return message;
            }
        }
    }

    fn ask(&mut self, id: &Value, method: &str, params: &Value) -> Value {
        let message = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.say(&message.to_string());
        self.hear(id)
    }
}

/// Wait until a process is no more.
fn gone(pid: &str) {
    let end = Instant::now() + PATIENCE;
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < end, "{pid} outlives the gateway");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn modern_meta() -> Value {
    json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}})
}

#[tokio::test(flavor = "multi_thread")]
async fn stdio_speaks_both_eras_on_one_pipe_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let up = Scripted::fine(&["a"]).await;
    let script = dir.path().join("server.py");
    std::fs::write(&script, "import time, os\nopen(os.environ['PIDS'], 'a').write(str(os.getpid()) + '\\n')\ntime.sleep(600)\n").unwrap();
    let pids = dir.path().join("pids");
    let silent = format!(
        "[upstreams.silent]\ncommand = \"python3\"\nargs = [{script:?}]\nenv = {{ PIDS = {pids:?} }}\n"
    );
    let path = file(dir.path(), "max_body = \"64KiB\"", &(up.section("up", "") + &silent));
    tokio::task::spawn_blocking(move || {
        let mut pipe = Pipe::start(&path);
        let discovered = pipe.ask(&json!("d"), "server/discover", &json!({"_meta": modern_meta()}));
        assert_eq!(discovered["result"]["supportedVersions"], json!(["2026-07-28"]), "{discovered}");
        let hello = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
        let welcome = pipe.ask(&json!(1), "initialize", &hello);
        assert_eq!(welcome["result"]["protocolVersion"], "2025-06-18", "{welcome}");
        pipe.say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        let end = Instant::now() + PATIENCE;
        loop {
            let list = pipe.ask(&json!(2), "tools/list", &json!({}));
            let names: Vec<_> = list["result"]["tools"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
            if names.contains(&"up__a") && pids.exists() {
                break;
            }
            assert!(Instant::now() < end, "{names:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let called = pipe.ask(&json!(3), "tools/call", &json!({"name": "up__a", "arguments": {}}));
        assert_eq!(called["result"]["content"][0]["text"], "fine", "{called}");
        let called = pipe.ask(&json!("m"), "tools/call", &json!({"name": "up__a", "arguments": {}, "_meta": modern_meta()}));
        assert_eq!(called["result"]["resultType"], "complete", "{called}");
        assert_eq!(pipe.ask(&json!(4), "ping", &json!({}))["result"], json!({}));
        // Wrong lines are answered, and hurt nothing.
        pipe.say("{nonsense");
        assert_eq!(pipe.hear(&Value::Null)["error"]["code"], -32700);
        pipe.say(&format!("{{\"x\":\"{}\"}}", "y".repeat(100_000)));
        assert_eq!(pipe.hear(&Value::Null)["error"]["code"], -32600);
        assert_eq!(pipe.ask(&json!(5), "ping", &json!({}))["result"], json!({}));
        // The host closes stdin: everything ends, children too.
        drop(pipe.child.stdin.take());
        let end = Instant::now() + PATIENCE;
        while pipe.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "it ends when stdin does");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(pipe.child.wait().unwrap().success());
        for pid in std::fs::read_to_string(&pids).unwrap().lines() {
            gone(pid);
        }
    })
    .await
    .unwrap();
}

/// A child that starts a grandchild in a session of its own, and tells both process ids and its
/// environment.
fn family(dir: &Path) -> (String, std::path::PathBuf) {
    let script = dir.join("family.sh");
    let told = dir.join("told");
    std::fs::write(
        &script,
        "setsid sleep 600 &\n\
         { echo $$; echo $!; ls -A; echo --; env; } > \"$TOLD.new\"\n\
         mv \"$TOLD.new\" \"$TOLD\"\n\
         exec sleep 600\n",
    )
    .unwrap();
    let section = format!(
        "[upstreams.family]\ncommand = \"/bin/sh\"\nargs = [\"{}\"]\nenv = {{ TOLD = \"{}\" }}\ninherit_env = [\"WEIR_TEST_SEEN\"]\n",
        script.display(),
        told.display()
    );
    (section, told)
}

async fn read(told: &Path) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = std::fs::read_to_string(told) {
            return text;
        }
        assert!(Instant::now() < end, "the child started");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_descendant_outlives_the_gateway_however_it_ends() {
    for killed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (section, told) = family(dir.path());
        let env = [("WEIR_TEST_SEEN", "seen"), ("WEIR_TEST_UNSEEN", "unseen")];
        let mut weir = Weir::start_with("", &section, &env);
        let family = read(&told).await;
        // An empty folder of its own; only the variables that were named, and what every program
        // needs. The shell adds its own.
        let (pids, environment) = family.split_once("--\n").unwrap();
        let pids: Vec<&str> = pids.lines().collect();
        assert_eq!(pids.len(), 2, "{family}");
        assert!(environment.contains("WEIR_TEST_SEEN=seen"), "{environment}");
        let needed = ["PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER", "LOGNAME"];
        let known = ["TOLD", "WEIR_TEST_SEEN", "PWD", "OLDPWD", "SHLVL", "_"];
        for line in environment.lines() {
            let name = line.split('=').next().unwrap();
            assert!(needed.contains(&name) || known.contains(&name), "{line}");
        }
        tokio::task::spawn_blocking(move || {
            if killed { weir.kill() } else { assert!(weir.stop().success()) }
        })
        .await
        .unwrap();
        let pids: Vec<String> = pids.into_iter().map(str::to_owned).collect();
        tokio::task::spawn_blocking(move || pids.iter().for_each(|pid| gone(pid))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_right_after_the_start_is_heard() {
    tokio::task::spawn_blocking(|| {
        for _ in 0..20 {
            let mut weir = Weir::start("", "");
            let end = Instant::now() + PATIENCE;
            let pid = rustix::process::Pid::from_raw(i32::try_from(weir.pid()).unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            while Path::new(&format!("/proc/{}", weir.pid())).exists() && !weir.has_ended() {
                assert!(Instant::now() < end, "it did not hear SIGTERM: {}", weir.log());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stdio_ends_with_its_host_whatever_is_still_open() {
    let dir = tempfile::tempdir().unwrap();
    // Its tool asks the person, and ends when it hears what became of that.
    type Open = Option<(Value, tokio::sync::mpsc::Sender<String>)>;
    let open: std::sync::Arc<std::sync::Mutex<Open>> = std::sync::Arc::default();
    let book = open.clone();
    let up = Scripted::start(&[tool("ask", false)], move |a| {
        if a.message.get("method").is_none() && a.message["id"] == "q" {
            let (id, line) = book.lock().unwrap().take().unwrap();
            let end = json!({"jsonrpc": "2.0", "id": id, "result": {"content": []}});
            line.try_send(end.to_string()).unwrap();
            return Some(Reply::Http(202, vec![], String::new()));
        }
        a.tool()?;
        let (line, rx) = tokio::sync::mpsc::channel(8);
        let question = json!({"jsonrpc": "2.0", "id": "q", "method": "elicitation/create",
            "params": {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}});
        line.try_send(question.to_string()).unwrap();
        *book.lock().unwrap() = Some((a.message["id"].clone(), line));
        Some(Reply::Live(rx))
    })
    .await;
    let path =
        file(dir.path(), "drain_timeout = \"60s\"", &up.section("up", "call_timeout = \"10m\""));
    let asked = || open.lock().unwrap().is_some();
    tokio::task::block_in_place(|| {
        let mut pipe = Pipe::start(&path);
        let wish = json!({"notifications": {"toolsListChanged": true}, "_meta": modern_meta()});
        let message =
            json!({"jsonrpc": "2.0", "id": "l", "method": "subscriptions/listen", "params": wish});
        pipe.say(&message.to_string());
        let hello = json!({"protocolVersion": "2025-06-18", "capabilities": {"elicitation": {}}, "clientInfo": {"name": "t", "version": "1"}});
        pipe.ask(&json!(1), "initialize", &hello);
        let end = Instant::now() + PATIENCE;
        loop {
            let list = pipe.ask(&json!(2), "tools/list", &json!({})).to_string();
            if list.contains("up__ask") {
                break;
            }
            assert!(Instant::now() < end, "{list}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let call = json!({"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "up__ask", "arguments": {}}});
        pipe.say(&call.to_string());
        while !asked() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(pipe.child.stdin.take());
        // Far sooner than the call, the question and the drain would last.
        let end = Instant::now() + Duration::from_secs(30);
        while pipe.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "it ends when stdin does");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(pipe.child.wait().unwrap().success());
        assert_eq!(pipe.hear(&json!(3))["result"]["content"], json!([]), "the call was answered");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_lets_stdio_answer_what_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let up = Scripted::start(&[tool("slow", false)], |a| {
        a.tool()?;
        Some(Reply::After(Duration::from_secs(1), Box::new(a.text("done"))))
    })
    .await;
    let path = file(dir.path(), "drain_timeout = \"30s\"", &up.section("up", ""));
    tokio::task::block_in_place(|| {
        let mut pipe = Pipe::start(&path);
        let end = Instant::now() + PATIENCE;
        let list = json!({"_meta": modern_meta()});
        while !pipe.ask(&json!(1), "tools/list", &list).to_string().contains("up__slow") {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(50));
        }
        let params = json!({"name": "up__slow", "arguments": {}, "_meta": modern_meta()});
        let call = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params});
        pipe.say(&call.to_string());
        while up.arrived("slow") == 0 {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(10));
        }
        let pid = rustix::process::Pid::from_child(&pipe.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(pipe.hear(&json!(2))["result"]["content"][0]["text"], "done");
        assert!(pipe.child.wait().unwrap().success());
    });
    assert_eq!(up.asked("notifications/cancelled"), 0);
}
