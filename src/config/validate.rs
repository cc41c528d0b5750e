//! The file becomes a [`Config`], or a list of everything that is wrong with it.

pub(super) mod consumers;
mod upkeep;
mod upstream;

use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use super::problem::{Problem, Problems, place};
use super::secret::{Missing, Template};
use super::section::{Reader, Section};
use super::{Admin, Config, Gateway, Log, LogFormat, Trace};

/// The environment.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;
/// The disk, for `file:` references.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> std::io::Result<String>;

/// Largest file that is read.
pub const FILE_MAX: u64 = 4 << 20;
/// Largest secret that a `file:` reference may hold.
const SECRET_MAX: u64 = 64 << 10;

/// Read the configuration at `path`.
///
/// # Errors
/// Every problem of the file, or why it can't be read.
pub fn load(path: &Path, env: Env<'_>) -> Result<Config, Problems> {
    parse(&read_text(path)?, &path.display().to_string(), env, &read_secret)
}

/// Parse a text with this process's environment and files. `path` stands for the file in problems.
///
/// # Errors
/// Every problem of the text.
pub fn parse_here(text: &str, path: &Path) -> Result<Config, Problems> {
    let env = |name: &str| std::env::var(name).ok();
    parse(text, &path.display().to_string(), &env, &read_secret)
}

/// Read what a `file:` reference names.
///
/// # Errors
/// When it is not there, no regular file, or larger than a secret is.
pub fn read_secret(path: &str) -> std::io::Result<String> {
    let mut options = std::fs::OpenOptions::new();
    // A pipe that nobody writes to would be waited for.
    options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"));
    }
    bounded(file, SECRET_MAX)
}

/// Read the text of a configuration.
///
/// # Errors
/// Why it can't be read, as the one problem of the file.
pub fn read_text(path: &Path) -> Result<String, Problems> {
    let name = path.display().to_string();
    let unreadable = |message: String, remedy: &str| Problems {
        file: name.clone(),
        all: vec![Problem {
            line: 0,
            column: 0,
            key: String::new(),
            message,
            remedy: remedy.into(),
        }],
    };
    read_bounded(path, FILE_MAX).map_err(|e| {
        unreadable(
            format!("cannot be read: {e}"),
            "name the file with --config PATH; the shipped upstreams.toml is a start",
        )
    })
}

/// The `state_dir` that a text names, or the default one. The text may be broken: what can be read
/// of it counts.
pub fn state_dir(text: &str, env: Env<'_>) -> PathBuf {
    let (table, _) = DeTable::parse_recoverable(text);
    let reader = Reader::new(text);
    let root = Section::root(&reader, Some(table.get_ref()));
    dir(&root.table("gateway", ""), "state_dir", env, "XDG_STATE_HOME", ".local/state", "")
}

/// Read a text of `max` bytes at most.
///
/// # Errors
/// When it cannot be read, is longer, or is no text.
pub fn read_bounded(path: &Path, max: u64) -> std::io::Result<String> {
    bounded(std::fs::File::open(path)?, max)
}

// What a file says of its size need not be true: a device says 0 and never ends.
fn bounded(file: std::fs::File, max: u64) -> std::io::Result<String> {
    let mut text = String::new();
    if file.take(max + 1).read_to_string(&mut text)? as u64 > max {
        return Err(std::io::Error::other(format!("larger than {max} bytes")));
    }
    Ok(text)
}

/// Read a configuration's text. `name` stands for the file in problems.
pub fn parse(
    text: &str,
    name: &str,
    env: Env<'_>,
    read_file: ReadFile<'_>,
) -> Result<Config, Problems> {
    let (table, syntax) = DeTable::parse_recoverable(text);
    let reader = Reader::new(text);
    if !syntax.is_empty() {
        // What is behind a syntax error may be misread, so only the syntax is told.
        let all = syntax
            .iter()
            .map(|e| {
                let (line, column) = place(text, e.span().map_or(0, |s| s.start));
                Problem {
                    line,
                    column,
                    key: String::new(),
                    message: e.message().to_owned(),
                    remedy: "mend the TOML here; strings need quotes, tables are [a.b]".into(),
                }
            })
            .collect();
        return Err(Problems { file: name.into(), all });
    }
    let mut config = read(&Section::root(&reader, Some(table.get_ref())), env, read_file);
    config.text = text.into();
    let all = reader.problems();
    if all.is_empty() { Ok(config) } else { Err(Problems { file: name.into(), all }) }
}

/// Read all sections. What has a problem gets a stand-in; the caller looks at the problems.
pub(super) fn read(root: &Section<'_>, env: Env<'_>, read_file: ReadFile<'_>) -> Config {
    let gateway =
        gateway(&root.table("gateway", "The endpoint that agents connect to."), env, read_file);
    let admin_section = root.table("admin", "Metrics and health, on a listener of their own.");
    let admin = admin(&admin_section);
    if admin.listen.is_some_and(|a| a == gateway.listen && a.port() != 0) {
        admin_section.wrong(
            "listen",
            "is the same address as gateway.listen",
            "give the two listeners different ports",
        );
    }
    let log = log(&root.table("log", "Log lines, on stderr."));
    let trace = trace(&root.table("trace", "Traces, sent as OTLP over HTTP."));
    let upstreams = upstream::all(root, gateway.builtin, env, read_file);
    let views = consumers::views(root, &upstreams);
    let consumers = consumers::all(root, &views);
    if consumers.is_empty() && !gateway.listen.ip().is_loopback() && !root.recording() {
        let section = root.table("gateway", "");
        section.wrong(
            "listen",
            "without consumers anybody who reaches this address could call every tool",
            "add a consumer (`weir key new NAME`), or listen on 127.0.0.1",
        );
    }
    root.finish();
    Config {
        text: Arc::default(),
        gateway,
        admin,
        log,
        trace,
        upstreams: upstreams.into_iter().map(Arc::new).collect(),
        views,
        consumers,
    }
}

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// Least length of a configured sealing key in bytes: as much as 128 random bits in base64.
const SEALING_KEY_MIN: usize = 22;

fn sealing_key(s: &Section<'_>, env: Env<'_>, read_file: ReadFile<'_>) -> Option<Template> {
    let text = s.text("sealing_key", "What session ids and request states are sealed with, such as ${WEIR_SEALING_KEY} or file:/path; gateways that stand for one another need the same. Absent: one is made and kept in state_dir. Needs a restart.")?;
    let wrong = |what: String| {
        s.wrong_at(
            &text.span,
            "sealing_key",
            what,
            "set it to 32 random bytes, such as `openssl rand -base64 32` prints",
        );
        None
    };
    match Template::resolve(&text.value, env, read_file) {
        Ok(key) if key.expose().len() < SEALING_KEY_MIN => wrong("is too short".into()),
        Ok(key) => Some(key),
        Err(Missing::Absent(why) | Missing::Malformed(why)) => wrong(why),
    }
}

fn gateway(s: &Section<'_>, env: Env<'_>, read_file: ReadFile<'_>) -> Gateway {
    let out = Gateway {
        listen: s.parsed(
            "listen",
            SocketAddr::from(([127, 0, 0, 1], 8080)),
            "127.0.0.1:8080",
            "Address of the endpoint; clients use http://ADDRESS/mcp. Needs a restart.",
        ),
        allowed_hosts: names(s, "allowed_hosts", "Host names accepted in `Host` besides loopback and the listen address; \"*\" accepts all."),
        allowed_origins: origins(s),
        // Requests are small; tool arguments with an inlined document reach a megabyte or two.
        max_body: s.size("max_body", 4 << 20, "Largest request body."),
        header_timeout: s.duration("header_timeout", seconds(30), "Time for a request's headers to arrive; HTTP/2 connections that are silent for so long are probed."),
        // Longer than the 600 s for which Google's load balancers keep a connection, the longest of
        // the common ones: who closes first must be the one that sends, or a request is lost.
        idle_timeout: s.duration("idle_timeout", seconds(620), "Time without another request after which a connection of HTTP/1 is closed; longer than a load balancer before it keeps its own."),
        body_timeout: s.duration("body_timeout", seconds(30), "Time for a request's body to arrive."),
        // Room for 10,000 idle clients and the rest.
        max_connections: s.count("max_connections", 12_000, "Most connections at once; one more is closed. Needs a restart."),
        max_sessions: s.count("max_sessions", 10_000, "Most sessions of old clients; the longest idle makes room for a new one."),
        session_idle: s.duration("session_idle", seconds(1800), "After how long without request or stream a session ends."),
        max_calls: s.count("max_calls", 4096, "Most calls in flight over all upstreams."),
        // Ten thousand sessions and four thousand calls take half of it.
        max_memory: s.size("max_memory", 1 << 30, "Memory of the gateway itself, children not included, from which on new calls are refused."),
        // An interpreter takes a core for a second or two while it starts: four of them keep a
        // small machine busy, and leave each enough of it to make its connect_timeout.
        max_starting: s.count("max_starting", 4, "Most child processes that start at once; as many again may start because a call waits for them."),
        max_streams: s.count("max_streams", 12_000, "Most open notification streams."),
        // Load balancers cut silent connections after 30 to 60 s.
        keep_alive: s.duration("keep_alive", seconds(15), "Interval of keep-alive comments on event streams."),
        page_size: s.count("page_size", 1000, "Most items in one page of a list."),
        instructions: s.flag("instructions", true, "Whether upstreams' instructions are handed on."),
        instructions_max: s.size("instructions_max", 4 << 10, "Most bytes of one upstream's instructions."),
        builtin: s.flag("builtin", true, "Whether the gateway's own read-only tools are offered (weir__status, weir__search, weir__why)."),
        list_changed_debounce: s.duration("list_changed_debounce", Duration::from_millis(250), "Quiet time before a change of lists is told to clients."),
        // Who runs one gateway alone would only wait for nobody.
        drain_notice: s.wait("drain_notice", Duration::ZERO, "How long calls are still taken after SIGTERM, each answer saying that the connection ends and /readyz that the gateway is not ready: for those who run several."),
        drain_timeout: s.duration("drain_timeout", seconds(10), "How long calls in flight may take to finish when the gateway stops or an upstream is taken out."),
        // Most servers start within ten seconds; the first start of a package installs it.
        rollback_after: s.duration("rollback_after", seconds(30), "How long the new instance of a changed upstream may take to become ready; then it is given up and the old one goes on."),
        sealing_key: sealing_key(s, env, read_file),
        state_dir: dir(s, "state_dir", env, "XDG_STATE_HOME", ".local/state", "Where last seen catalogs are kept. Needs a restart."),
        cache_dir: dir(s, "cache_dir", env, "XDG_CACHE_HOME", ".cache", "Where packages are installed. Needs a restart."),
    };
    s.finish();
    out
}

fn names(s: &Section<'_>, key: &'static str, doc: &'static str) -> Vec<String> {
    let mut out = Vec::new();
    for item in s.strings(key, doc) {
        if item.value.is_empty()
            || item.value.contains('/')
            || item.value.contains(char::is_whitespace)
        {
            s.wrong_at(
                &item.span,
                key,
                format!("{:?} is no host name", item.value),
                "write a name without scheme or port: \"mcp.example.com\"",
            );
        } else {
            out.push(item.value);
        }
    }
    out
}

fn origins(s: &Section<'_>) -> Vec<String> {
    let doc = "Origins (\"https://app.example\") accepted from browsers; \"*\" accepts all.";
    let mut out = Vec::new();
    for item in s.strings("allowed_origins", doc) {
        let rest = item.value.split_once("://").map(|(_, r)| r);
        if item.value == "*" || rest.is_some_and(|r| !r.is_empty() && !r.contains('/')) {
            out.push(item.value);
        } else {
            s.wrong_at(
                &item.span,
                "allowed_origins",
                format!("{:?} is no origin", item.value),
                "write scheme and host, no path: \"https://app.example\"",
            );
        }
    }
    out
}

fn dir(
    s: &Section<'_>,
    key: &'static str,
    env: Env<'_>,
    variable: &str,
    below_home: &str,
    doc: &'static str,
) -> PathBuf {
    if let Some(text) = s.text(key, doc) {
        let path = PathBuf::from(&text.value);
        if path.is_absolute() {
            return path;
        }
        s.wrong(key, format!("{:?} is not absolute", text.value), "write the whole path, from /");
    }
    let base = env(variable)
        .map(PathBuf::from)
        .filter(|p| p.is_absolute())
        .or_else(|| env("HOME").map(|h| Path::new(&h).join(below_home)))
        // No home, as in some containers: better than nowhere, and lost on a restart of those.
        .unwrap_or_else(std::env::temp_dir);
    base.join("weir")
}

fn admin(s: &Section<'_>) -> Admin {
    let default = SocketAddr::from(([127, 0, 0, 1], 8081));
    let doc =
        "Address of /metrics, /livez, /readyz and /status; \"off\" for none. Needs a restart.";
    let listen = match s.text("listen", doc) {
        None => Some(default),
        Some(text) if matches!(text.value.as_str(), "" | "off") => None,
        Some(text) => match text.value.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                s.wrong(
                    "listen",
                    format!("{:?} is no address", text.value),
                    "write IP and port, \"127.0.0.1:8081\", or \"off\"",
                );
                Some(default)
            }
        },
    };
    s.finish();
    Admin { listen }
}

fn log(s: &Section<'_>) -> Log {
    let doc =
        "A level (error, warn, info, debug, trace) or a filter such as \"warn,weirkeeper=debug\".";
    let mut level = "info".to_owned();
    if let Some(text) = s.text("level", doc) {
        if text.value.parse::<tracing_subscriber::EnvFilter>().is_ok()
            && !text.value.trim().is_empty()
            && known_level(&text.value)
        {
            level = text.value;
        } else {
            s.wrong(
                "level",
                format!("{:?} is no level", text.value),
                "write error, warn, info, debug or trace",
            );
        }
    }
    let format = s.choice(
        "format",
        &[("json", LogFormat::Json), ("text", LogFormat::Text)],
        LogFormat::Text,
        "Form of the lines. Needs a restart.",
    );
    s.finish();
    Log { level, format }
}

// A bare word is read as a target by the filter; here it can only be a mistyped level.
fn known_level(text: &str) -> bool {
    text.split(',').all(|part| {
        let level = part.rsplit('=').next().unwrap_or("").trim();
        ["off", "error", "warn", "info", "debug", "trace"]
            .contains(&level.to_ascii_lowercase().as_str())
    })
}

fn trace(s: &Section<'_>) -> Trace {
    let otlp_endpoint = s.text("otlp_endpoint", "OTLP/HTTP endpoint, such as http://127.0.0.1:4318; absent exports nothing. Needs a restart.").and_then(|t| {
        let ok = t.value.starts_with("http://") || t.value.starts_with("https://");
        if !ok {
            s.wrong("otlp_endpoint", "is no http or https URL", "write it like \"http://127.0.0.1:4318\"");
        }
        ok.then_some(t.value)
    });
    let sample = s
        .number(
            "sample",
            Some(1.0),
            "Share of calls that start a trace when the caller did not decide, 0 to 1.",
        )
        .unwrap_or(1.0);
    if !(0.0..=1.0).contains(&sample) {
        s.wrong("sample", format!("is {sample}"), "write a share from 0 to 1");
    }
    let service_name = s
        .text("service_name", "Name of this service in traces; \"weirkeeper\" if absent.")
        .map_or_else(|| "weirkeeper".into(), |t| t.value);
    s.finish();
    Trace { otlp_endpoint, sample, service_name }
}
