//! Upstreams that are child processes.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Weir, upstream};
use crate::until;

/// A script, and the line that starts it.
fn script(dir: &Path, text: &str) -> String {
    let path = dir.join("child.sh");
    std::fs::write(&path, text).unwrap();
    format!(
        "command = \"/bin/sh\"\nargs = [\"{}\", \"one\", \"${{WEIR_TEST_ARG:-two words}}\"]\n",
        path.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_environment_and_folder_reach_the_child() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    std::fs::create_dir(&own).unwrap();
    let told = dir.path().join("told");
    let text =
        "{ echo \"$1|$2\"; pwd; env; } > \"$TOLD.new\"; mv \"$TOLD.new\" \"$TOLD\"; sleep 600";
    let env = [("WEIR_TEST_IN", "inherited"), ("WEIR_TEST_OUT", "not named")];
    for (more, here) in [
        ("inherit_env = [\"WEIR_TEST_IN\"]\n".to_owned(), false),
        (format!("cwd = {own:?}\n"), true),
    ] {
        let _ = std::fs::remove_file(&told);
        let section = "[upstreams.up]\n".to_owned()
            + &script(dir.path(), text)
            + &more
            + &format!("env = {{ TOLD = {told:?}, SECRET = \"x-${{WEIR_TEST_IN}}\" }}\n");
        let _weir = Weir::start_with("", &section, &env);
        until("started", || told.exists()).await;
        let seen = std::fs::read_to_string(&told).unwrap();
        let lines: Vec<_> = seen.lines().collect();
        assert_eq!(lines[0], "one|two words");
        assert_eq!(
            Path::new(lines[1]) == own.canonicalize().unwrap(),
            here,
            "{more}: {}",
            lines[1]
        );
        assert!(lines.contains(&"SECRET=x-inherited"), "{seen}");
        assert_eq!(lines.contains(&"WEIR_TEST_IN=inherited"), !here, "{seen}");
        assert!(!seen.contains("not named"), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stderr_is_relayed_within_its_bound() {
    for (bound, all) in [("1KiB", false), ("1MiB", true)] {
        let dir = tempfile::tempdir().unwrap();
        let text = "n=0; while [ $n -lt 200 ]; do n=$((n+1)); echo \"line $n of the child's own words\" >&2; done; echo THE-END >&2; sleep 600";
        let section = "[upstreams.up]\n".to_owned()
            + &script(dir.path(), text)
            + &format!("stderr_per_minute = \"{bound}\"\n");
        let weir = Weir::start("", &section);
        weir.logged("line 1 of").await;
        if all {
            weir.logged("THE-END").await;
            assert!(weir.log().contains("line 200 of"));
        } else {
            let end = Instant::now() + crate::harness::PATIENCE;
            loop {
                let metrics = weir.metrics().await;
                let line = metrics
                    .lines()
                    .find(|l| l.starts_with("weir_upstream_stderr_dropped_bytes_total{"))
                    .unwrap()
                    .to_owned();
                if line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 4000.0 {
                    break;
                }
                assert!(Instant::now() < end, "{line}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(!weir.log().contains("line 200 of"), "{}", weir.log());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_pause_as_long_as_they_should() {
    // How often a child that dies at once is started within a second and a half.
    let mut starts = Vec::new();
    for more in [
        "restart_backoff = \"10ms\"\nrestart_backoff_max = \"20ms\"\n",
        "restart_backoff = \"10ms\"\nrestart_backoff_max = \"30s\"\n",
        "restart_backoff = \"20s\"\nrestart_backoff_max = \"30s\"\n",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("starts");
        let section = "[upstreams.up]\n".to_owned()
            + &script(dir.path(), "echo x >> \"$STARTS\"; exit 3")
            + &format!("era = \"legacy\"\nenv = {{ STARTS = {log:?} }}\n{more}");
        let weir = Weir::start("", &section);
        until("started", || log.exists()).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        starts.push(std::fs::read_to_string(&log).unwrap().lines().count());
        if starts.len() == 1 {
            let status = weir
                .until("a crash loop", |s| upstream(s, "up")["crash_loop"] == Value::Bool(true))
                .await;
            assert!(
                upstream(&status, "up")["why"].as_str().unwrap().contains("crash loop"),
                "{status:#}"
            );
        }
    }
    assert!(starts[0] > starts[1] && starts[1] > starts[2] && starts[2] == 1, "{starts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_is_installed_and_its_program_chosen() {
    // An installer that makes a package with two programs, without any network.
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let npm = "#!/bin/sh\nPATH=/usr/bin:/bin\nmkdir -p \"$3/node_modules/tiny\"\n\
        echo '{\"version\":\"1.0.0\",\"bin\":{\"one\":\"one.js\",\"two\":\"two.js\"}}' > \"$3/node_modules/tiny/package.json\"\n\
        echo '#!/usr/bin/env node' > \"$3/node_modules/tiny/one.js\"\n\
        echo '#!/usr/bin/env node' > \"$3/node_modules/tiny/two.js\"\n";
    // Stands for node, and says which program it was to run.
    let node = "#!/bin/sh\necho \"ran $1\" >&2\nsleep 600\n";
    for (name, text) in [("npm", npm), ("node", node)] {
        std::fs::write(bin.join(name), text).unwrap();
        std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let file = |more: &str| format!("[upstreams.up]\npackage = \"npm:tiny@1.0.0\"\n{more}\n");
    let weir = Weir::start_with("", &file(""), &[("PATH", &path)]);
    // Names the choices.
    weir.logged("set `bin` to one of `one`, `two`").await;
    weir.until("undecided", |s| upstream(s, "up")["state"] == "down").await;
    weir.rewrite("", &file("bin = \"two\""));
    weir.logged("two.js").await;
    assert!(!weir.log().contains("ran one"), "{}", weir.log());
}
