//! What `weir plan` says is what a save then does; what a broken file leaves behind is served only
//! if told so.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use harness::scripted::{Scripted, tool};
use harness::{Weir, free_port, get, post, tool_names, upstream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

async fn plan(config: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.arg("plan").args(args).arg("--config").arg(config).stdin(Stdio::null());
    command.env_remove("WEIR_TEST_TOKEN");
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn said(output: &Output) -> (i32, String) {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let more = String::from_utf8(output.stderr.clone()).unwrap();
    (output.status.code().unwrap(), text + &more)
}

fn admin(weir: &Weir) -> &str {
    weir.admin.strip_prefix("http://").unwrap()
}

/// The file of `weir` with one text exchanged, beside it.
fn edited(weir: &Weir, changes: &[(&str, &str)]) -> PathBuf {
    let mut text = std::fs::read_to_string(weir.config_path()).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{from} is not in the file");
        text = text.replace(from, to);
    }
    let path = weir.dir.path().join("new.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_planned_is_what_a_save_does() {
    let (one, two) = (Scripted::fine(&["a", "b"]).await, Scripted::fine(&["clear"]).await);
    let token = [("WEIR_TEST_TOKEN", "s3cret-of-the-gateway")];
    let section = one.section("one", "headers = { X-Token = \"${WEIR_TEST_TOKEN}\" }");
    let weir = Weir::start_with("builtin = false", &section, &token);
    weir.ready(&["one"]).await;
    let at = ["--admin", admin(&weir)];
    let config = weir.config_path();

    // The credential is in the gateway's environment alone, and nothing differs.
    let (code, text) = said(&plan(&config, &at).await);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("changes nothing\ncompared with the gateway that runs\n"), "{text}");
    assert!(text.ends_with("no tool changes for everybody\n"), "{text}");

    // One more upstream, whose tools nobody knows yet, and one tool less.
    let more = format!("deny = [\"b\"]\n[upstreams.two]\nurl = {:?}\n", two.url);
    let headers = "headers = { X-Token = \"${WEIR_TEST_TOKEN}\" }";
    let new = edited(&weir, &[(headers, &format!("{headers}\n{more}"))]);
    let new = new.to_str().unwrap();
    let (code, text) = said(&plan(&config, &[&at[..], &[new]].concat()).await);
    assert_eq!(code, 0, "{text}");
    let text = text.replace(new, "new.toml");
    insta::assert_snapshot!(text, @r"
    new.toml would be applied
    compared with the gateway that runs

    upstreams
      settings  one              deny
      started   two              tools not known before it starts

    everybody
      2 tools, 172 B, about 43 tokens
           -> 1 tool, 86 B, about 22 tokens
      vanishes  one__b
      not known tools of two, before it starts (--connect asks it)
    ");
    assert_eq!(two.asked("initialize"), 0, "nothing was started");

    // Asked, it says what it has; and the save does just that.
    let args = [&at[..], &["--connect", "--json", new]].concat();
    let report: Value = serde_json::from_slice(&plan(&config, &args).await.stdout).unwrap();
    let changes = &report["audiences"][0]["changes"];
    assert_eq!(changes["appear"], json!(["two__clear"]), "{report:#}");
    assert_eq!(changes["vanish"], json!(["one__b"]));
    assert_eq!(report["upstreams"][1]["tools"], "asked");
    assert_eq!(two.asked("initialize"), 1);
    let size = |which: &str| report["audiences"][0][which]["bytes"].as_u64().unwrap();
    assert!(size("after") != size("before") && size("after") > 0, "{report:#}");
    assert_eq!(tool_names(&weir.url, None).await, ["one__a", "one__b"], "nothing is applied");
    std::fs::rename(new, &config).unwrap();
    weir.ready(&["one", "two"]).await;
    assert_eq!(tool_names(&weir.url, None).await, ["one__a", "two__clear"]);
    assert!(!format!("{text}{report}").contains("s3cret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_says_what_would_become_of_it() {
    let one = Scripted::fine(&["a"]).await;
    let weir = Weir::start("", &one.section("one", ""));
    weir.ready(&["one"]).await;
    let (at, config) = (["--admin", admin(&weir)], weir.config_path());
    let of = async |changes: &[(&str, &str)]| {
        let new = edited(&weir, changes);
        said(&plan(&config, &[&at[..], &[new.to_str().unwrap()]].concat()).await)
    };
    let (code, text) =
        of(&[("listen = \"127.0.0.1:0\"\nstate", "listen = \"127.0.0.1:1\"\nstate")]).await;
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("gateway.listen cannot change while running"), "{text}");
    let (code, text) = of(&[("[admin]", "page_size = 0\npage_sice = 1\n[admin]")]).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("did you mean `page_size`?") && text.contains("2 problems"), "{text}");
    let (code, text) = of(&[("[admin]", "page_size = 9\n[admin]")]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("settings\n  gateway.page_size\n"), "{text}");
    let (code, text) = said(&plan(&config, &["/nonexistent.toml"]).await);
    assert_eq!(code, 1, "{text}");
    // Nobody there: that is said, and nothing else is compared.
    let nobody = format!("127.0.0.1:{}", free_port());
    let (code, text) = said(&plan(&config, &["--admin", &nobody]).await);
    assert_eq!(code, 3, "{text}");
    assert!(weir.log().matches("configuration reloaded").count() == 0);

    // A page in a browser cannot ask.
    let url = format!("{}/plan", weir.admin);
    let wish = json!({"file": "x", "text": ""}).to_string();
    assert_eq!(post(&url, &[("content-type", "text/plain")], wish.clone()).await.status, 415);
    assert_eq!(post(&url, &[("host", "evil.example")], wish.clone()).await.status, 403);
    assert_eq!(post(&url, &[], "{}").await.status, 400);
    assert_eq!(post(&url, &[], wish).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_gateway_the_last_good_file_and_its_catalogs_are_compared() {
    let one = Scripted::fine(&["a"]).await;
    // The gateway is found by what its own file says.
    let port = free_port();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("upstreams.toml");
    let text = format!(
        "[gateway]\nlisten = \"127.0.0.1:0\"\nbuiltin = false\nstate_dir = \"{}/state\"\n[admin]\nlisten = \"127.0.0.1:{port}\"\n{}",
        dir.path().display(),
        one.section("one", "")
    );
    std::fs::write(&config, &text).unwrap();
    let (code, told) = said(&plan(&config, &[]).await);
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("compared with nothing: no last good configuration is kept"), "{told}");
    let weir = Weir::start_at(dir, &["serve"], &[]).unwrap();
    weir.ready(&["one"]).await;
    let config = weir.config_path();
    let (code, told) = said(&plan(&config, &[]).await);
    assert_eq!((code, told.contains("compared with the gateway that runs")), (0, true), "{told}");
    let catalog = weir.dir.path().join("state/catalog/one.json");
    weir.until("kept", |_| catalog.exists()).await;
    let dir = weir.into_dir();
    let config = dir.path().join("upstreams.toml");
    std::fs::write(&config, text.replace("[upstreams.one]", "[upstreams.uno]")).unwrap();
    let (code, told) = said(&plan(&config, &[]).await);
    assert_eq!(code, 0, "{told}");
    let told = told.replace(&dir.path().display().to_string(), "DIR");
    let told = told.replace(&port.to_string(), "PORT");
    insta::assert_snapshot!(told, @r"
    DIR/upstreams.toml would be applied
    compared with the last good configuration and the catalogs kept with it
      no gateway answered (127.0.0.1:PORT: Connection refused (os error 111)); references are resolved as this command sees them

    upstreams
      started   uno              tools as last seen
      retired   one

    everybody
      1 tool, 86 B, about 22 tokens
      renamed   one__a -> uno__a
    ");
}

/// An admin listener before that of `weir`, which is busy with other plans the first times.
async fn busy_before(weir: &Weir, times: usize) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (admin, asked) = (admin(weir).to_owned(), Arc::new(AtomicUsize::new(0)));
    let counted = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if counted.fetch_add(1, Ordering::SeqCst) < times {
                let mut some = [0; 4096];
                let _ = stream.read(&mut some).await;
                let no = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
                let _ = stream.write_all(no).await;
                // The rest, until the one who was refused goes.
                let _ = stream.read_to_end(&mut Vec::new()).await;
                continue;
            }
            let mut up = TcpStream::connect(&admin).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut up).await;
        }
    });
    (port, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_busy_is_asked_again_and_nobody_else_instead() {
    let one = Scripted::fine(&["a"]).await;
    let weir = Weir::start("", &one.section("one", ""));
    weir.ready(&["one"]).await;
    let (port, asked) = busy_before(&weir, 2).await;
    // The gateway is found by what the file says, and goes on listening where it does.
    let text = std::fs::read_to_string(weir.config_path()).unwrap();
    let moved = format!("[admin]\nlisten = \"127.0.0.1:{port}\"");
    assert!(text.contains("[admin]\nlisten = \"127.0.0.1:0\""), "{text}");
    let text = text.replace("[admin]\nlisten = \"127.0.0.1:0\"", &moved);
    std::fs::write(weir.config_path(), text).unwrap();
    let (code, told) = said(&plan(&weir.config_path(), &[]).await);
    assert!(told.contains("compared with the gateway that runs"), "{told}");
    assert_eq!(code, 4, "{told}");
    // Twice in vain; whose it is; what it makes of the file.
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_is_refused_at_the_start_unless_told_to_serve_the_last_good_one() {
    let one = Scripted::start(&[tool("a", true)], |_| None).await;
    let token = [("WEIR_TEST_TOKEN", "s3cret-of-the-gateway")];
    let section = one.section("one", "bearer = \"${WEIR_TEST_TOKEN}\"");

    // Nothing was ever good here.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("upstreams.toml"), "[gateway\n").unwrap();
    let log = Weir::start_at(dir, &["serve", "--last-good=/nonexistent"], &[]).map(drop);
    assert!(log.unwrap_err().contains("there is no last good configuration to serve instead"));

    let weir = Weir::start_with("builtin = false", &section, &token);
    weir.ready(&["one"]).await;
    assert_eq!(weir.status().await["config"], json!({"in_force": "file", "troubles": []}));
    let folder = weir.dir.path().join("state/config");
    let kept = || {
        let all = folder.read_dir().ok()?.map(|entry| entry.unwrap().path());
        all.into_iter().find(|path| path.extension().is_some_and(|e| e == "toml"))
    };
    weir.until("kept", |_| kept().is_some()).await;
    let kept = kept().unwrap();
    let good = std::fs::read_to_string(weir.config_path()).unwrap();
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), good, "as it is written");
    assert!(!good.contains("s3cret"));
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);

    // A start with a file that is cut off in the middle.
    let dir = weir.into_dir();
    let config = dir.path().join("upstreams.toml");
    let broken = format!("{good}\n[upstreams.two]\nurl = \"http");
    std::fs::write(&config, &broken).unwrap();
    let mut refused = Command::new(env!("CARGO_BIN_EXE_weir"));
    refused.args(["serve", "--config"]).arg(&config);
    let (code, text) = said(&refused.output().unwrap());
    assert_eq!((code, text.contains("upstreams.toml:")), (1, true), "{text}");
    let weir = Weir::start_at(dir, &["serve", "--last-good"], &token).unwrap();
    weir.ready(&["one"]).await;
    assert_eq!(tool_names(&weir.url, None).await, ["one__a"]);
    weir.logged("THE CONFIGURATION IS BROKEN").await;
    assert!(weir.log().contains("\"reason\":\"last_good\""), "{}", weir.log());
    let status = weir.status().await;
    assert_eq!(status["config"]["in_force"], "last_good", "{status:#}");
    assert_eq!(status["config"]["troubles"][0]["reason"], "last_good");
    let metrics = weir.metrics().await;
    assert!(metrics.contains("weir_config_on_last_good 1"), "{metrics}");
    assert!(metrics.contains("weir_config_troubles_total{reason=\"last_good\"} 1"), "{metrics}");
    assert!(metrics.contains("weir_config_last_reload_successful 0"), "{metrics}");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), good);

    // Broken in another way: still the last good one. Mended: the file.
    std::fs::write(weir.config_path(), format!("{good}\npage_size = 0\n")).unwrap();
    weir.until("refused", |s| s["config"]["troubles"].as_array().unwrap().len() == 2).await;
    std::fs::write(weir.config_path(), format!("{good}\n# mended\n")).unwrap();
    let status = weir.until("mended", |s| s["config"]["in_force"] == "file").await;
    assert_eq!(status["config"]["troubles"], json!([]));
    assert!(weir.metrics().await.contains("weir_config_on_last_good 0"));
    weir.until("kept anew", |_| std::fs::read_to_string(&kept).unwrap().ends_with("# mended\n"))
        .await;
    assert_eq!(get(&format!("{}/readyz", weir.admin)).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_start_is_given_up_after_rollback_after() {
    let one = Scripted::fine(&["a"]).await;
    for (after, given_up) in [("300ms", true), ("10m", false)] {
        let gateway = format!("rollback_after = \"{after}\"\nbuiltin = false");
        let weir = Weir::start(&gateway, &one.section("one", ""));
        weir.ready(&["one"]).await;
        let bad = format!("[upstreams.one]\ncommand = \"/nonexistent/{}\"\n", "program");
        weir.rewrite(&gateway, &bad);
        weir.logged("the old one keeps serving").await;
        if given_up {
            weir.logged("goes on serving").await;
            assert!(weir.log().contains("\"reason\":\"rolled_back\""), "{}", weir.log());
            let status = weir.status().await;
            let told = &upstream(&status, "one")["rolled_back"];
            assert_eq!(told["reason"], "rolled_back", "{status:#}");
            assert!(told["text"].as_str().unwrap().contains("/nonexistent/program"), "{told}");
            assert!(told["remedy"].as_str().unwrap().contains("tries it again"), "{told}");
            let metrics = weir.metrics().await;
            assert!(metrics.contains("weir_config_rolled_back_upstreams 1"), "{metrics}");
            // What a further reload would do is told, too.
            let at = admin(&weir).to_owned();
            let (code, text) = said(&plan(&weir.config_path(), &["--admin", &at]).await);
            assert_eq!(code, 0, "{text}");
            assert!(text.contains("it was given up before and is tried again"), "{text}");
        } else {
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            let status = weir.status().await;
            assert!(upstream(&status, "one")["successor"].is_object(), "{status:#}");
        }
        assert_eq!(upstream(&weir.status().await, "one")["state"], "ready");
        assert_eq!(tool_names(&weir.url, None).await, ["one__a"]);
    }
}
