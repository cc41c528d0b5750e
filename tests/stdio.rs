//! Children that behave badly, and the wire that bears with them.
//!
//! The children are scripts for Python's standard library; the supervisor is the real binary.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use weirkeeper::config::secret::{Scrubber, Secret, Template};
use weirkeeper::config::{Program, StdioConfig};
use weirkeeper::failure::{Delivery, Fault, Reason};
use weirkeeper::protocol::message::Kind;
use weirkeeper::upstream::transport::Unasked;
use weirkeeper::upstream::transport::pipe::PipeCounters;
use weirkeeper::upstream::transport::stdio::{BASE_ENV, Launch, StdioWire};

const PRELUDE: &str = r#"
import json, os, signal, subprocess, sys, time
def out(o):
    sys.stdout.write((o if isinstance(o, str) else json.dumps(o)) + "\n"); sys.stdout.flush()
def reply(m, r): out({"jsonrpc": "2.0", "id": m["id"], "result": r})
def tell(method, **params): out({"jsonrpc": "2.0", "method": method, "params": params})
def messages():
    for line in sys.stdin: yield json.loads(line)
def detached():
    "A process in a session of its own whose parent is gone at once."
    r, w = os.pipe()
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.close(r); os.close(w)
            while True: time.sleep(100)
        os.write(w, str(pid).encode()); os._exit(0)
    os.wait(); os.close(w)
    return int(os.read(r, 20))
"#;

const ECHO: &str = "
for m in messages():
    if 'id' in m: reply(m, m.get('params'))
";

struct World {
    state: TempDir,
    counters: Arc<PipeCounters>,
}

fn world() -> World {
    World { state: tempfile::tempdir().unwrap(), counters: Arc::default() }
}

fn config(program: &str, args: &[&str]) -> StdioConfig {
    StdioConfig {
        program: Program::Command(program.into()),
        args: args.iter().map(|a| Template::literal(a)).collect(),
        env: BTreeMap::new(),
        inherit_env: vec![],
        cwd: None,
        stderr_per_minute: 100_000,
        restart_backoff: Duration::from_secs(1),
        restart_backoff_max: Duration::from_secs(1),
    }
}

fn python(script: &str) -> StdioConfig {
    config("python3", &["-u", "-c", &format!("{PRELUDE}{script}")])
}

impl World {
    fn launch(&self, config: StdioConfig) -> Launch {
        Launch {
            upstream: "up".into(),
            config: Arc::new(config),
            shim: env!("CARGO_BIN_EXE_weir").into(),
            state_dir: self.state.path().into(),
            cache_dir: self.state.path().join("cache"),
            scrubber: Scrubber::default(),
            max_message: 1000,
            counters: self.counters.clone(),
            children: Arc::default(),
            family: Arc::default(),
        }
    }

    async fn start(&self, script: &str) -> (StdioWire, mpsc::Receiver<Unasked>) {
        StdioWire::start(self.launch(python(script))).await.unwrap()
    }

    fn work_dirs(&self) -> usize {
        std::fs::read_dir(self.state.path().join("work")).map_or(0, Iterator::count)
    }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn request(id: u64, params: &Value) -> Bytes {
    json!({"jsonrpc": "2.0", "id": id, "method": "x", "params": params}).to_string().into()
}

async fn call(wire: &StdioWire, id: u64, params: Value) -> Result<Value, Fault> {
    let frame = wire.pipe().request(id, request(id, &params), true, &|_| {}).await?;
    assert_eq!(frame.id().unwrap(), id.to_string());
    assert_eq!(frame.kind(), Kind::Result);
    Ok(serde_json::from_slice(&frame.outcome()).unwrap())
}

async fn told(unasked: &mut mpsc::Receiver<Unasked>) -> (String, Value) {
    let next = tokio::time::timeout(Duration::from_secs(30), unasked.recv());
    let Some(Unasked::Notification(f)) = next.await.expect("it says something") else {
        panic!("no notification")
    };
    (f.method().to_owned(), serde_json::from_slice(&f.params().unwrap()).unwrap())
}

fn alive(pid: u64) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn answers_come_back_and_close_leaves_nothing() {
    let w = world();
    let (wire, _unasked) = w.start(ECHO).await;
    // Line breaks between tokens are not sent as such.
    let pretty = Bytes::from_static(
        b"{\"jsonrpc\":\"2.0\",\r\n\"id\":1,\n\"method\":\"x\",\"params\":{\"a\":1.50}}",
    );
    let frame = wire.pipe().request(1, pretty, true, &|_| {}).await.unwrap();
    assert_eq!(frame.outcome(), r#"{"a": 1.5}"#);
    assert!(wire.pipe().saw_output());
    assert_eq!(w.work_dirs(), 1);
    wire.close().await;
    assert_eq!(w.work_dirs(), 0);
    let report = wire.exited().await;
    assert_eq!((report.code, report.signal, report.asked), (Some(0), None, true));
    let fault = call(&wire, 2, json!({})).await.unwrap_err();
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectionLost, Delivery::NotSent));
    assert!(wire.pipe().notify(Bytes::from_static(b"{}")).await.is_err());
    assert!(read(&w.counters.bytes_in) > 0 && read(&w.counters.bytes_out) > 0);
}

#[tokio::test]
async fn noise_wrong_ids_and_duplicates_are_survived() {
    let w = world();
    let (wire, _unasked) = w
        .start(
            "
out('Server v1 is listening'); out(''); out('{broken'); sys.stdout.buffer.write(b'\\xff\\xfe\\n')
for m in messages():
    out([{'jsonrpc': '2.0', 'id': m['id'], 'result': {}}])
    reply({'id': m['id'] + 1000}, 'wrong'); reply({'id': str(m['id'])}, 'text')
    sys.stdout.write('\\ufeff' + json.dumps({'jsonrpc': '2.0', 'id': m['id'], 'result': 'right'}) + '\\r\\n')
    sys.stdout.flush()
    reply(m, 'again')
",
        )
        .await;
    assert_eq!(call(&wire, 1, json!({})).await.unwrap(), json!("right"));
    assert_eq!(call(&wire, 2, json!({})).await.unwrap(), json!("right"));
    wire.close().await;
    assert_eq!(read(&w.counters.noise_lines), 6);
    assert_eq!(read(&w.counters.unmatched_answers), 4);
    assert_eq!(read(&w.counters.duplicate_answers), 2);
}

#[tokio::test]
async fn a_message_too_long_fails_its_request_and_no_other() {
    let w = world();
    let (wire, _unasked) = w
        .start(
            "
for m in messages():
    n = m['params']['n']
    if n == 1: out('{\"result\":\"' + 'x' * 3000000 + '\",\"jsonrpc\":\"2.0\",\"id\":1}')
    elif n == 2: out('y' * 2000); reply(m, 'fine')
",
        )
        .await;
    let (long, fine) =
        tokio::join!(call(&wire, 1, json!({"n": 1})), call(&wire, 2, json!({"n": 2})));
    let long = long.unwrap_err();
    assert_eq!((long.reason, long.delivery), (Reason::TooLarge, Delivery::Unknown));
    assert_eq!(fine.unwrap(), json!("fine"));
    assert_eq!(read(&w.counters.oversize), 2);
}

#[tokio::test]
async fn sixty_four_requests_share_one_child() {
    let w = world();
    let (wire, _unasked) = w
        .start(
            "
waiting = []
for m in messages():
    waiting.append(m)
    tell('notifications/progress', progressToken=m['id'], progress=1)
    if len(waiting) == 64:
        for m in reversed(waiting): reply(m, m['params'])
",
        )
        .await;
    let calls = (0..64u64).map(|id| {
        let wire = wire.clone();
        tokio::spawn(async move {
            let notices = AtomicU64::new(0);
            let params = json!({"n": id});
            let frame = wire
                .pipe()
                .request(id, request(id, &params), true, &|f| {
                    let p: Value = serde_json::from_slice(&f.params().unwrap()).unwrap();
                    assert_eq!(p["progressToken"], id);
                    notices.fetch_add(1, Ordering::Relaxed);
                })
                .await
                .unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&frame.outcome()).unwrap(), params);
            assert_eq!(read(&notices), 1);
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn a_crash_mid_call_is_told_with_its_reason() {
    let w = world();
    let (wire, _unasked) =
        w.start("next(messages()); print('disk on fire', file=sys.stderr); sys.exit(3)").await;
    let (one, two) = tokio::join!(call(&wire, 1, json!({})), call(&wire, 2, json!({})));
    for fault in [one.unwrap_err(), two.unwrap_err()] {
        assert_eq!((fault.reason, fault.delivery), (Reason::ConnectionLost, Delivery::Unknown));
        assert!(
            fault.text.starts_with("the server process ended with code 3 after"),
            "{}",
            fault.text
        );
        assert!(fault.cause.ends_with("stderr: disk on fire"), "{}", fault.cause);
        assert!(!fault.text.contains("fire"));
    }
    let report = wire.exited().await;
    assert_eq!((report.code, report.asked), (Some(3), false));
    assert_eq!(report.stderr, ["disk on fire"]);
    let later = call(&wire, 3, json!({})).await.unwrap_err();
    assert_eq!(later.delivery, Delivery::NotSent);
    assert_eq!(w.work_dirs(), 0);
}

#[tokio::test]
async fn a_signal_is_reported_as_one() {
    let w = world();
    let (wire, _unasked) = w.start("os.kill(os.getpid(), signal.SIGSEGV)").await;
    let report = wire.exited().await;
    assert_eq!((report.code, report.signal), (None, Some(11)));
    // 143 is a code like any other when the program itself says so.
    let (wire, _unasked) = w.start("sys.exit(143)").await;
    let report = wire.exited().await;
    assert_eq!((report.code, report.signal), (Some(143), None));
    assert!(report.text.starts_with("the server process ended with code 143"));
}

#[tokio::test]
async fn a_child_that_ends_at_once_fails_what_is_asked_of_it() {
    let w = world();
    let (wire, _unasked) = w.start("sys.exit(0)").await;
    let fault = call(&wire, 1, json!({})).await.unwrap_err();
    assert_eq!(fault.reason, Reason::ConnectionLost);
    assert!(!wire.pipe().saw_output());
}

#[tokio::test]
async fn a_child_that_closes_its_output_is_stopped() {
    let w = world();
    let (wire, _unasked) = w.start("next(messages()); os.close(1); time.sleep(1000)").await;
    let fault = call(&wire, 1, json!({})).await.unwrap_err();
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectionLost, Delivery::Unknown));
    assert_eq!(wire.exited().await.signal, Some(15));
}

#[tokio::test]
async fn a_request_dropped_while_it_hangs_is_cancelled_upstream() {
    let w = world();
    let (wire, mut unasked) =
        w.start("for m in messages(): tell('notifications/got', got=m)").await;
    for (id, cancellable) in [(1, false), (2, true)] {
        let asked = {
            let wire = wire.clone();
            tokio::spawn(async move {
                wire.pipe().request(id, request(id, &json!({})), cancellable, &|_| {}).await
            })
        };
        assert_eq!(told(&mut unasked).await.1["got"]["id"], id);
        asked.abort();
        let _ = asked.await;
    }
    let got = &told(&mut unasked).await.1["got"];
    assert_eq!(got["method"], "notifications/cancelled");
    assert_eq!(got["params"]["requestId"], 2);
}

#[tokio::test]
async fn a_child_that_does_not_read_holds_up_nobody_else() {
    let w = world();
    let (deaf, _unasked_1) = w.start("time.sleep(1000)").await;
    let (good, _unasked_2) = w.start(ECHO).await;
    let large = json!({"text": "x".repeat(100_000)});
    let stuck: Vec<_> = (0..80)
        .map(|id| {
            let (deaf, large) = (deaf.clone(), large.clone());
            tokio::spawn(async move { call(&deaf, id, large).await.unwrap_err() })
        })
        .collect();
    for id in 0..20 {
        assert_eq!(call(&good, id, json!({"n": id})).await.unwrap(), json!({"n": id}));
    }
    // Dropping one that waits costs nothing either.
    let waiting = tokio::time::timeout(Duration::from_millis(1), call(&deaf, 99, json!({}))).await;
    assert!(waiting.is_err());
    deaf.close().await;
    let mut begun = 0;
    for fault in stuck {
        begun += usize::from(fault.await.unwrap().delivery == Delivery::Unknown);
    }
    assert_eq!(begun, 1, "the one that filled the pipe");
}

#[tokio::test]
async fn the_environment_is_as_promised_and_the_directory_empty() {
    let w = world();
    // A shell's own additions are not in what it was started with.
    let script = r#"
cat /proc/$$/environ > "$1/env"; ls -A > "$1/files"; pwd > "$1/pwd"
mkdir -p mess/deep; echo x > mess/deep/file; echo '{"jsonrpc":"2.0","method":"m","params":{}}'; cat"#;
    let mut c = config("sh", &["-c", script, "sh", w.state.path().to_str().unwrap()]);
    let own =
        [("KEY".to_owned(), Template::literal("value")), ("LANG".into(), Template::literal("C"))];
    c.env = own.into();
    c.inherit_env = vec!["CARGO_PKG_NAME".into(), "NOT_SET_ANYWHERE".into()];
    let (wire, mut unasked) = StdioWire::start(w.launch(c)).await.unwrap();
    told(&mut unasked).await;
    let seen = |name: &str| std::fs::read_to_string(w.state.path().join(name)).unwrap();

    let mut want: BTreeMap<String, String> =
        BASE_ENV.iter().filter_map(|n| Some(((*n).to_owned(), std::env::var(n).ok()?))).collect();
    want.insert("KEY".into(), "value".into());
    want.insert("LANG".into(), "C".into());
    want.insert("CARGO_PKG_NAME".into(), env!("CARGO_PKG_NAME").into());
    let want: Vec<_> = want.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let env = seen("env");
    let mut got: Vec<_> = env.split_terminator('\0').collect();
    got.sort_unstable();
    assert_eq!(got, want);
    assert_eq!(seen("files"), "");
    let cwd = PathBuf::from(seen("pwd").trim_end());
    assert!(cwd.starts_with(w.state.path().join("work")), "{}", cwd.display());
    assert!(cwd.join("mess/deep/file").exists());
    wire.close().await;
    assert!(!cwd.exists());
}

#[tokio::test]
async fn a_configured_directory_is_used_and_left_alone() {
    let w = world();
    let mut c = python("for m in messages(): reply(m, os.getcwd())");
    c.cwd = Some(w.state.path().into());
    let (wire, _unasked) = StdioWire::start(w.launch(c)).await.unwrap();
    let cwd = call(&wire, 1, json!({})).await.unwrap();
    assert_eq!(Path::new(cwd.as_str().unwrap()), w.state.path().canonicalize().unwrap());
    wire.close().await;
    assert!(w.state.path().exists());
    let mut c = python("");
    c.cwd = Some(w.state.path().join("none"));
    let fault = StdioWire::start(w.launch(c)).await.err().unwrap();
    assert!(fault.cause.ends_with("none does not exist"), "{}", fault.cause);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let w = world();
    let fault = StdioWire::start(w.launch(config("no-such-server", &[]))).await.err().unwrap();
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectFailed, Delivery::NotSent));
    insta::assert_snapshot!(
        fault.cause,
        @"the server program could not be started: program `no-such-server` was not found: is it installed and on PATH?"
    );
    insta::assert_snapshot!(fault.text, @"the server program could not be started");

    // Found, executable, and still no program.
    let script = w.state.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let started = StdioWire::start(w.launch(config(script.to_str().unwrap(), &[]))).await;
    let (wire, _unasked) = started.unwrap();
    let report = wire.exited().await;
    assert!(report.never_ran);
    assert!(report.detail().contains("No such file or directory"), "{}", report.detail());
}

#[tokio::test]
async fn what_a_child_started_dies_with_it_however_it_hides() {
    let w = world();
    let script = "
far = detached()
near = subprocess.Popen(['sleep', '1000']).pid
for m in messages():
    if m['params'].get('crash'): os.kill(os.getpid(), signal.SIGKILL)
    reply(m, [os.getppid(), os.getpid(), far, near])
";
    for crash in [false, true] {
        let (wire, _unasked) = w.start(script).await;
        let pids = call(&wire, 1, json!({})).await.unwrap();
        let pids: Vec<u64> = pids.as_array().unwrap().iter().map(|p| p.as_u64().unwrap()).collect();
        assert!(pids.iter().all(|p| alive(*p)), "{pids:?}");
        if crash {
            let fault = call(&wire, 2, json!({"crash": true})).await.unwrap_err();
            assert_eq!(fault.delivery, Delivery::Unknown);
            assert_eq!(wire.exited().await.signal, Some(9));
        } else {
            wire.close().await;
        }
        assert!(pids.iter().all(|p| !alive(*p)), "crash: {crash}");
    }
}

#[tokio::test]
async fn a_child_that_ignores_everything_is_asked_twice_and_killed() {
    let w = world();
    let (wire, mut unasked) = w
        .start(
            "
signal.signal(signal.SIGTERM, lambda *a: print('term', file=sys.stderr, flush=True))
tell('notifications/ready')
for m in messages(): pass
print('eof', file=sys.stderr, flush=True)
while True: time.sleep(100)
",
        )
        .await;
    told(&mut unasked).await;
    wire.close().await;
    let report = wire.exited().await;
    assert_eq!(report.signal, Some(9));
    assert_eq!(report.stderr, ["eof", "term"]);
}

#[tokio::test]
async fn dropping_the_wire_stops_the_child() {
    let w = world();
    let (wire, mut unasked) =
        w.start("tell('notifications/pid', pid=os.getpid())\nfor m in messages(): pass").await;
    let pid = told(&mut unasked).await.1["pid"].as_u64().unwrap();
    assert!(alive(pid));
    drop(wire);
    while unasked.recv().await.is_some() {}
    assert!(!alive(pid));
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_flood_on_stderr_is_drained_rationed_and_shows_no_secret() {
    let log = Captured::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let w = world();
    let mut c = python(
        "
key = os.environ['KEY']
for n in range(20000): print('line', n, 'key', key, file=sys.stderr)
sys.stderr.write('x' * 5000000 + key + '\\n')
sys.stderr.write('broken ' + key[:7]); sys.stderr.flush(); time.sleep(0.05)
sys.stderr.write(key[7:] + ' end\\n')
out('not a message: ' + key)
for m in messages(): reply(m, 'alive')
",
    );
    let key = "sk-live-0123456789";
    c.env = [("KEY".to_owned(), Template::literal(key))].into();
    c.stderr_per_minute = 10_000;
    let mut launch = w.launch(c);
    launch.scrubber = Scrubber::new([Secret::new(key)]);
    let (wire, _unasked) = StdioWire::start(launch).await.unwrap();
    assert_eq!(call(&wire, 1, json!({})).await.unwrap(), json!("alive"));
    wire.close().await;

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("weirkeeper::child"), "{log}");
    assert!(log.contains("line 0 key «secret»"), "{log}");
    assert!(log.contains("not a message: «secret»"), "{log}");
    assert!(!log.contains("sk-live"), "{log}");
    assert!(log.contains("more on stderr than stderr_per_minute"), "{log}");
    let relayed = log.lines().filter(|l| l.contains(" key «secret»")).count();
    assert!((300..=10_000 / "line 0 key «secret»".len()).contains(&relayed), "{relayed} lines");
    let report = wire.exited().await;
    assert_eq!(report.stderr.len(), 20);
    assert_eq!(report.stderr.last().unwrap(), "broken «secret» end");
    assert!(report.stderr.iter().all(|l| !l.contains("sk-live")));
    assert_eq!(read(&w.counters.stderr_lines), 20_002);
    assert!(read(&w.counters.stderr_dropped_bytes) > 5_000_000);
}

const GATEWAY_STATE: &str = "WEIR_TEST_GATEWAY_STATE";

/// Not a test of its own: the gateway that the next test kills.
#[tokio::test]
#[ignore = "started by the_gateways_death_is_the_death_of_all"]
async fn gateway_that_waits_to_be_killed() {
    let state = PathBuf::from(std::env::var_os(GATEWAY_STATE).expect("started by the test below"));
    let w = World { state: TempDir::new_in(state).unwrap(), counters: Arc::default() };
    let (wire, _unasked) = w
        .start(
            "
signal.signal(signal.SIGTERM, signal.SIG_IGN)
far = detached()
near = subprocess.Popen(['sleep', '1000']).pid
for m in messages(): reply(m, [os.getppid(), os.getpid(), far, near])
while True: time.sleep(100)
",
        )
        .await;
    let pids = call(&wire, 1, json!({})).await.unwrap();
    writeln!(std::io::stdout(), "\nPIDS {pids}").unwrap();
    std::future::pending::<()>().await;
}

#[test]
fn the_gateways_death_is_the_death_of_all() {
    let state = tempfile::tempdir().unwrap();
    let mut gateway = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "gateway_that_waits_to_be_killed", "--ignored", "--nocapture"])
        .env(GATEWAY_STATE, state.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pids: Vec<u64> = std::io::BufReader::new(gateway.stdout.take().unwrap())
        .lines()
        .find_map(|line| Some(serde_json::from_str(line.unwrap().strip_prefix("PIDS ")?).unwrap()))
        .unwrap();
    assert!(pids.len() == 4 && pids.iter().all(|p| alive(*p)), "{pids:?}");
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    // Three seconds for the closed input, five for SIGTERM, which all of them ignore.
    for _ in 0..200 {
        if pids.iter().all(|p| !alive(*p)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("left over: {:?}", pids.iter().filter(|p| alive(**p)).collect::<Vec<_>>());
}
