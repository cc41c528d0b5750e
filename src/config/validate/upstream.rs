//! `[upstreams.NAME]` and its tables.

mod replicas;
mod tools;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::secret::{Missing, Template};
use crate::config::section::{At, Section};
use crate::config::{
    BreakerConfig, ChildConfig, ConcurrencyConfig, EraChoice, GuardConfig, HttpConfig, Isolation,
    PackageSpec, Patterns, Program, RateConfig, Registry, RetryConfig, StdioConfig, ThrottleConfig,
    TransportConfig, UpstreamConfig, UrlTransport,
};

use super::{Env, ReadFile, seconds, upkeep};

/// Longest name: with `__` and a tool's name it has to fit in 64 characters.
const NAME_MAX: usize = 16;

/// Headers that are the protocol's or the connection's.
const OWNED_HEADERS: [&str; 10] = [
    "accept",
    "connection",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

// By its name in lower case.
fn is_owned(header: &str) -> bool {
    OWNED_HEADERS.contains(&header)
        || header.starts_with("mcp-")
        || header.starts_with("sec-websocket-")
        || header == "last-event-id"
}

/// All upstreams, in the order of the file.
pub fn all(
    root: &Section<'_>,
    builtin: bool,
    env: Env<'_>,
    read_file: ReadFile<'_>,
) -> Vec<UpstreamConfig> {
    let mut out: Vec<UpstreamConfig> = Vec::new();
    for (order, (name, s)) in
        root.tables("upstreams", "An MCP server behind the gateway.").into_iter().enumerate()
    {
        if !s.recording() {
            check_name(&s, &name, builtin);
        }
        let mut resolver = Resolver { s: &s, env, read_file, absent: vec![] };
        let upstream = one(&s, &name, order, &mut resolver);
        if !upstream.prefixed && out.iter().any(|u| !u.prefixed) {
            s.wrong(
                "prefix",
                "another upstream is unprefixed already",
                "leave `prefix` out here: one upstream at most can go without",
            );
        }
        s.finish();
        out.push(upstream);
    }
    if root.recording() { vec![] } else { out }
}

fn check_name(s: &Section<'_>, name: &str, builtin: bool) {
    let good = name.len() <= NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !good {
        s.wrong_at(&s.span, "", format!("{name:?} is no upstream name"), "use up to 16 of a-z, 0-9 and -, beginning with a letter; `_` ends the prefix of public names");
    }
    if name == "weir" && builtin {
        s.wrong_at(
            &s.span,
            "",
            "\"weir\" is the name of the gateway's own tools",
            "choose another name, or set gateway.builtin = false",
        );
    }
}

// Resolves `${VAR}` and `file:`; what is absent makes the upstream dormant, what is malformed is
// a problem.
struct Resolver<'s, 'a> {
    s: &'s Section<'a>,
    env: Env<'s>,
    read_file: ReadFile<'s>,
    absent: Vec<String>,
}

impl Resolver<'_, '_> {
    fn resolve(&mut self, key: &str, text: &At<String>) -> Template {
        if let Some(path) = text.value.strip_prefix("file:")
            && !path.starts_with('/')
        {
            self.s.wrong_at(
                &text.span,
                key,
                "names a file by a path that is not absolute",
                "write file:/path: the gateway may be started in another folder",
            );
        }
        match Template::resolve(&text.value, self.env, self.read_file) {
            Ok(template) => template,
            Err(Missing::Absent(why)) => {
                if !self.absent.contains(&why) {
                    self.absent.push(why);
                }
                // Never used while dormant; as written, it holds no secret.
                Template::literal(&text.value)
            }
            Err(Missing::Malformed(why)) => {
                self.s.wrong_at(
                    &text.span,
                    key,
                    why,
                    "write ${NAME}, ${NAME:-default}, or file:/path as the whole value",
                );
                Template::literal(&text.value)
            }
        }
    }
}

fn one(
    s: &Section<'_>,
    name: &str,
    order: usize,
    resolver: &mut Resolver<'_, '_>,
) -> UpstreamConfig {
    let prefixed = match s.text("prefix", "\"\" shows its tools under their own names; possible for one upstream. Absent: the upstream's name and __.") {
        None => true,
        Some(p) if p.value.is_empty() => false,
        Some(p) if p.value == name => true,
        Some(_) => {
            s.wrong("prefix", "is neither \"\" nor the upstream's name", "leave it out: public names begin with the upstream's name, so rename the section instead");
            true
        }
    };
    let transport = transport(s, resolver);
    let call_timeout = s.duration(
        "call_timeout",
        seconds(60),
        "Time for a call; progress gives it the same again.",
    );
    // Ten minutes: longer work belongs in tasks, and clients give up before.
    let max_call_timeout =
        s.duration("max_call_timeout", seconds(600), "What progress can extend a call to at most.");
    if max_call_timeout < call_timeout {
        s.wrong(
            "max_call_timeout",
            "is shorter than call_timeout",
            "raise it, or lower call_timeout",
        );
    }
    let era = s.choice(
        "era",
        &[("auto", EraChoice::Auto), ("modern", EraChoice::Modern), ("legacy", EraChoice::Legacy)],
        EraChoice::Auto,
        "Which revisions are tried: auto probes 2026-07-28 and falls back; legacy shakes hands at once.",
    );
    let sse = matches!(&transport, TransportConfig::Http(h) if h.transport == UrlTransport::Sse);
    if sse && era == EraChoice::Modern {
        s.wrong(
            "era",
            "does not go with transport = \"sse\", which 2026-07-28 does not have",
            "remove one of the two",
        );
    }
    let guard = guard(s);
    UpstreamConfig {
        name: name.into(),
        order,
        prefixed,
        enabled: s.flag("enabled", true, "false takes the upstream out without deleting its section."),
        upkeep: upkeep::read(s),
        era,
        isolation: s.choice(
            "isolation",
            &[
                ("shared", Isolation::Shared),
                ("consumer", Isolation::Consumer),
                ("session", Isolation::Session),
            ],
            match &transport {
                // A process for each consumer is for the operator to decide.
                TransportConfig::Stdio(_) => Isolation::Shared,
                TransportConfig::Http(_) => Isolation::Consumer,
            },
            "Who shares a conversation in which an upstream before 2026-07-28 may ask back (elicitation, sampling, roots). With shared it may not. Default: consumer with url, shared with command or package.",
        ),
        instructions: s.flag("instructions", true, "Whether its instructions are handed on."),
        filter: patterns(s, "Its own names that exist for us; * stands for anything; absent: all.", "Its own names that do not; wins over allow."),
        connect_timeout: s.duration("connect_timeout", seconds(10), "Time for the handshake or discovery."),
        list_timeout: s.duration("list_timeout", seconds(15), "Time for one list with all its pages."),
        call_timeout,
        max_call_timeout,
        hedge_after: tools::hedge_after(s, call_timeout, &guard),
        refresh: s.duration("refresh", seconds(300), "How often its lists are fetched again without being told of a change."),
        max_items: s.count("max_items", 10_000, "Most entries of each of its lists."),
        max_pages: s.count("max_pages", 1000, "Most pages of each of its lists."),
        max_message: s.size("max_message", 16 << 20, "Largest message that it may send."),
        ejection: replicas::ejection(s),
        idempotency: tools::idempotency(s, &transport),
        tools: tools::all(s, &transport, call_timeout, &guard),
        guard,
        child: ChildConfig {
            memory_max: s.maybe_size("memory_max", None, "Most memory of its process and all that it started; beyond it they are ended and started again. Absent: no ceiling."),
            idle_stop: s.maybe_duration("idle_stop", None, "After how long without calls and subscriptions its process is stopped; its lists stay and the next call starts it. Absent: never."),
        },
        dormant: (!resolver.absent.is_empty()).then(|| resolver.absent.join("; ")),
        transport,
    }
}

fn transport(s: &Section<'_>, r: &mut Resolver<'_, '_>) -> TransportConfig {
    let url = s.text("url", "Endpoint of streamable HTTP, HTTP+SSE, or with ws:// or wss:// of WebSocket; may hold ${VAR}.");
    let command =
        s.text("command", "Program to start, by path or name; it speaks over stdin and stdout.");
    let package = s.text(
        "package",
        "Pinned package to install and start: \"npm:@scope/name@1.2.3\" or \"pypi:name@1.2.3\".",
    );
    let urls = replicas::urls(s, r);
    let given = [
        ("url", url.is_some()),
        ("urls", s.has("urls")),
        ("command", command.is_some()),
        ("package", package.is_some()),
    ];
    let given: Vec<_> = given.iter().filter(|(_, g)| *g).map(|(k, _)| *k).collect();
    if given.len() != 1 && !s.recording() {
        let message = if given.is_empty() {
            "says not how it is reached".to_owned()
        } else {
            format!("has {} at once", given.join(" and "))
        };
        s.wrong_at(&s.span, "", message, "give it exactly one of url, urls, command and package");
    }
    let stdio = stdio(s, r, command, package);
    let http = http(s, r, url, urls);
    let foreign: &[&str] = match given.first() {
        Some(&("url" | "urls")) => &[
            "args",
            "env",
            "inherit_env",
            "cwd",
            "bin",
            "stderr_per_minute",
            "restart_backoff",
            "restart_backoff_max",
            "memory_max",
            "idle_stop",
        ],
        Some(_) => &["transport", "headers", "bearer", "pool_idle", "dial_timeout"],
        None => &[],
    };
    for key in foreign.iter().filter(|k| s.has(k)) {
        s.wrong(key, format!("means nothing with {}", given[0]), "remove it");
    }
    if matches!(given.first(), Some(&("url" | "urls"))) {
        TransportConfig::Http(http)
    } else {
        TransportConfig::Stdio(stdio)
    }
}

fn stdio(
    s: &Section<'_>,
    r: &mut Resolver<'_, '_>,
    command: Option<At<String>>,
    package: Option<At<String>>,
) -> StdioConfig {
    let bin = s.text("bin", "Which program of a package that has several.").map(|b| b.value);
    let program = match (command, package) {
        (_, Some(p)) => match parse_package(&p.value, bin) {
            Ok(spec) => Program::Package(spec),
            Err((message, remedy)) => {
                s.wrong("package", message, remedy);
                Program::Command(String::new())
            }
        },
        (Some(c), None) => {
            if c.value.trim().is_empty() {
                s.wrong(
                    "command",
                    "is empty",
                    "name a program, such as \"/usr/bin/my-server\"; arguments go into args",
                );
            } else if c.value.contains(' ') && !c.value.contains('/') {
                s.wrong(
                    "command",
                    "holds spaces",
                    "name only the program here and put its arguments into args = [...]",
                );
            }
            Program::Command(c.value)
        }
        (None, None) => Program::Command(String::new()),
    };
    let args = s
        .strings("args", "Its arguments; may hold ${VAR}.")
        .iter()
        .map(|a| r.resolve("args", a))
        .collect();
    let mut env = BTreeMap::new();
    for (name, value) in s.map("env", "Its variables; may hold ${VAR} or be file:/path.") {
        check_env(s, &name, &value);
        env.insert(name.clone(), r.resolve(&format!("env.{name}"), &value));
    }
    let inherit_env = s
        .strings("inherit_env", "Variables of the gateway that it gets too, if set.")
        .into_iter()
        .inspect(|v| check_env(s, &v.value, v))
        .map(|v| v.value)
        .collect();
    let cwd = s.text("cwd", "Working directory; absent: an empty one of its own.").map(|c| {
        if !PathBuf::from(&c.value).is_absolute() {
            s.wrong(
                "cwd",
                format!("{:?} is not absolute", c.value),
                "write the whole path, from /",
            );
        }
        PathBuf::from(c.value)
    });
    StdioConfig {
        program,
        args,
        env,
        inherit_env,
        cwd,
        // A vendor's stack trace is 8 KB; this is thirty of them a minute.
        stderr_per_minute: s.size(
            "stderr_per_minute",
            256 << 10,
            "Bytes of its stderr that reach the log per minute.",
        ),
        restart_backoff: s.duration(
            "restart_backoff",
            Duration::from_millis(500),
            "First pause before a restart; doubles, with jitter.",
        ),
        restart_backoff_max: s.duration(
            "restart_backoff_max",
            seconds(30),
            "Longest pause before a restart.",
        ),
    }
}

fn check_env(s: &Section<'_>, name: &str, at: &At<String>) {
    if name.is_empty() || name.contains(|c: char| c == '=' || c == '\0' || c.is_whitespace()) {
        s.wrong_at(
            &at.span,
            "env",
            format!("{name:?} is no variable name"),
            "use letters, digits and _",
        );
    }
}

fn parse_package(text: &str, bin: Option<String>) -> Result<PackageSpec, (String, String)> {
    let sample = "write \"npm:@scope/name@1.2.3\" or \"pypi:name@1.2.3\"".to_owned();
    let (registry, rest) = match text.split_once(':') {
        Some(("npm", rest)) => (Registry::Npm, rest),
        Some(("pypi", rest)) => (Registry::Pypi, rest),
        _ => return Err((format!("{text:?} names no registry"), sample)),
    };
    // The @ of a scope is no version.
    let at = rest.char_indices().skip(1).filter(|(_, c)| *c == '@').map(|(i, _)| i).last();
    let Some(at) = at else {
        return Err((
            "is not pinned: without a version the program could change under you at any start"
                .into(),
            sample,
        ));
    };
    let (name, version) = (&rest[..at], &rest[at + 1..]);
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b'@');
    let good_name = !name.is_empty()
        && name.bytes().all(legal)
        && !name.contains("..")
        && name.matches('/').count() == usize::from(name.starts_with('@'));
    if !good_name {
        return Err((format!("{name:?} is no package name"), sample));
    }
    let exact = version.starts_with(|c: char| c.is_ascii_digit())
        && version.contains('.')
        && version.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+'))
        && !version.split('.').any(|p| p == "x" || p.is_empty());
    if !exact {
        return Err((
            format!(
                "{version:?} is no exact version: a tag or range could change the program under you"
            ),
            "name one version, such as 1.2.3".into(),
        ));
    }
    Ok(PackageSpec { registry, name: name.into(), version: version.into(), bin })
}

fn http(
    s: &Section<'_>,
    r: &mut Resolver<'_, '_>,
    url: Option<At<String>>,
    urls: Vec<Template>,
) -> HttpConfig {
    let url = match url {
        Some(url) => {
            let template = r.resolve("url", &url);
            check_url(s, ("url", &url.span), template.expose(), !r.absent.is_empty());
            template
        }
        None => urls.first().cloned().unwrap_or_else(|| Template::literal("http://localhost/")),
    };
    let mut headers = Vec::new();
    for (name, value) in
        s.map("headers", "Headers sent with each request; may hold ${VAR} or be file:/path.")
    {
        let key = format!("headers.{name}");
        let lower = name.to_ascii_lowercase();
        if is_owned(&lower) {
            s.wrong_at(&value.span, &key, "is set by the gateway itself", "remove it");
        } else if lower.parse::<hyper::header::HeaderName>().is_err() {
            s.wrong_at(&value.span, &key, "is no header name", "use letters, digits and -");
        }
        let template = r.resolve(&key, &value);
        if hyper::header::HeaderValue::from_str(template.expose()).is_err() {
            s.wrong_at(
                &value.span,
                &key,
                "has a value that no header can carry",
                "use visible characters without line breaks",
            );
        }
        headers.push((name, template));
    }
    let bearer =
        s.text("bearer", "Token sent as `Authorization: Bearer`; ${VAR} or file:/path.").map(|b| {
            if let Some(name) = b.value.strip_prefix('$').filter(|n| !n.starts_with('{')) {
                let text = format!("write ${{{name}}}; as it stands it is sent as it is");
                s.wrong("bearer", "looks like a variable and is none", text);
            }
            let template = r.resolve("bearer", &b);
            if template.expose().to_ascii_lowercase().starts_with("bearer ") {
                s.wrong("bearer", "begins with `Bearer`", "give the token alone");
            }
            if hyper::header::HeaderValue::from_str(template.expose()).is_err() {
                s.wrong(
                    "bearer",
                    "has a value that no header can carry",
                    "use visible characters without line breaks",
                );
            }
            if headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("authorization")) {
                s.wrong(
                    "bearer",
                    "and headers.Authorization are both given",
                    "keep one of the two",
                );
            }
            template
        });
    let transport = s.choice(
        "transport",
        &[
            ("auto", UrlTransport::Auto),
            ("http", UrlTransport::Http),
            ("sse", UrlTransport::Sse),
        ],
        UrlTransport::Auto,
        "What is spoken at an http or https URL: auto tries streamable HTTP, then HTTP+SSE of 2024-11-05.",
    );
    let transport = if UrlTransport::is_websocket(url.expose()) {
        for key in ["transport", "pool_idle"].iter().filter(|key| s.has(key)) {
            s.wrong(key, "means nothing with a ws or wss URL, which is WebSocket", "remove it");
        }
        UrlTransport::WebSocket
    } else {
        transport
    };
    HttpConfig {
        url,
        // One alone is an upstream like any other.
        replicas: if urls.len() > 1 { urls } else { Vec::new() },
        transport,
        headers,
        bearer,
        // Node and uvicorn close idle connections after 5 s.
        pool_idle: s.duration(
            "pool_idle",
            seconds(4),
            "How long an idle connection is kept; less than the upstream keeps it.",
        ),
        dial_timeout: s.duration("dial_timeout", seconds(5), "Time to connect."),
    }
}

fn check_url(s: &Section<'_>, (key, at): (&str, &Range<usize>), url: &str, absent: bool) {
    let authority =
        url.split_once("://").map(|(_, r)| r.split(['/', '?', '#']).next().unwrap_or(""));
    if authority.is_some_and(|a| a.contains('@')) {
        s.wrong_at(
            at,
            key,
            "holds user and password",
            "put the credential into `bearer` or `headers`, as ${VAR}: URLs end up in logs",
        );
        return;
    }
    if url.contains('#') {
        s.wrong_at(at, key, "has a fragment", "remove everything from # on");
        return;
    }
    // A URL whose variable is absent is looked at when it is there.
    let parsed = url.parse::<hyper::Uri>().ok().filter(|u| {
        let scheme = u.scheme_str().unwrap_or("");
        let known = ["http", "https", "ws", "wss"].iter().any(|s| s.eq_ignore_ascii_case(scheme));
        known && u.host().is_some_and(|h| !h.is_empty())
    });
    if parsed.is_none() && !(absent && url.contains("${")) {
        s.wrong_at(
            at,
            key,
            "is no http, https, ws or wss URL",
            "write it like \"https://mcp.example.com/mcp\"",
        );
    }
}

/// `allow` and `deny`.
pub fn patterns(s: &Section<'_>, allow: &'static str, deny: &'static str) -> Patterns {
    let list = |key, doc| {
        let mut out = Vec::new();
        for item in s.strings(key, doc) {
            if item.value.is_empty() {
                s.wrong_at(
                    &item.span,
                    key,
                    "holds an empty pattern",
                    "write a name, with * for anything",
                );
            } else {
                out.push(item.value);
            }
        }
        out
    };
    Patterns { allow: list("allow", allow), deny: list("deny", deny) }
}

fn non_zero(s: &Section<'_>, key: &'static str, default: u32, doc: &'static str) -> NonZeroU32 {
    let n = s.count(key, default as usize, doc);
    NonZeroU32::new(u32::try_from(n).unwrap_or(u32::MAX)).expect("a count is at least 1")
}

/// `rate = { per_second, burst }` of a consumer, who does not wait: it is told when to come again.
pub fn quota(s: &Section<'_>, doc: &'static str) -> Option<RateConfig> {
    read_rate(s, doc, false)
}

/// `rate = { per_second, burst, max_wait }`.
pub fn rate(s: &Section<'_>, doc: &'static str) -> Option<RateConfig> {
    read_rate(s, doc, true)
}

fn read_rate(s: &Section<'_>, doc: &'static str, waits: bool) -> Option<RateConfig> {
    let there = s.has("rate");
    let s = s.table("rate", doc);
    let per_second = s.number("per_second", None, "Tokens per second.");
    let burst = non_zero(&s, "burst", 10, "Tokens that can be saved up.");
    let max_wait = if waits {
        let doc = "Longest wait for a token; a longer one is refused at once. \"0s\": no wait.";
        s.wait("max_wait", seconds(2), doc)
    } else {
        Duration::ZERO
    };
    s.finish();
    if !there {
        return None;
    }
    match per_second {
        Some(per_second) if per_second > 0.0 => Some(RateConfig { per_second, burst, max_wait }),
        Some(n) => {
            s.wrong("per_second", format!("is {n}"), "write tokens per second above 0, such as 4 or 0.5; to switch an upstream off use enabled = false");
            None
        }
        None => {
            if !s.has("per_second") {
                s.wrong_at(
                    &s.span,
                    "per_second",
                    "is missing",
                    "write tokens per second, such as 4 or 0.5",
                );
            }
            None
        }
    }
}

fn guard(s: &Section<'_>) -> GuardConfig {
    let c = s.table("concurrency", "How many calls at once.");
    let concurrency = ConcurrencyConfig {
        max: non_zero(&c, "max", 16, "Calls in flight."),
        queue: c.count_or_none("queue", 64, "Calls that may wait; one more is refused."),
    };
    c.finish();
    let rate = rate(s, "How many calls per second; absent: no limit.");
    let b = s.table("breaker", "When the upstream counts as broken.");
    let breaker = BreakerConfig {
        enabled: b.flag("enabled", true, "false: it never does."),
        window: b.duration("window", seconds(30), "Length of the sliding window."),
        min_calls: non_zero(&b, "min_calls", 10, "Fewer calls than this prove nothing."),
        failure_share: b.share("failure_share", 0.5, "Share of failed calls that opens."),
        slow_call: b.duration("slow_call", seconds(30), "A call that takes longer is slow."),
        slow_share: b.share("slow_share", 0.8, "Share of slow calls that opens."),
        consecutive: non_zero(
            &b,
            "consecutive",
            5,
            "So many failures in a row open, whatever the window says.",
        ),
        open_for: b.duration(
            "open_for",
            seconds(15),
            "How long calls are refused before one is tried.",
        ),
        probes: non_zero(&b, "probes", 1, "Tries that must succeed before all calls pass again."),
    };
    b.finish();
    let r =
        s.table("retry", "Repeating of calls that may be repeated: reads, and what never left.");
    let retry = RetryConfig {
        attempts: r.count_or_none("attempts", 2, "Attempts besides the first; 0: none."),
        backoff: r.duration(
            "backoff",
            Duration::from_millis(100),
            "First pause; doubles, with jitter.",
        ),
        backoff_max: r.duration("backoff_max", seconds(2), "Longest pause."),
        budget: r
            .number("budget", Some(0.1), "Retries per call over the last seconds, 0 to 1.")
            .unwrap_or(0.1),
    };
    if !(0.0..=1.0).contains(&retry.budget) {
        r.wrong("budget", format!("is {}", retry.budget), "write a share from 0 to 1");
    }
    r.finish();
    let t = s.table("throttle", "What counts as the upstream's wish that we slow down.");
    let mut texts = Vec::new();
    for item in t.strings("texts", "Texts in a tool's error that mean throttling, in any case.") {
        if item.value.trim().is_empty() {
            t.wrong_at(
                &item.span,
                "texts",
                "holds an empty text",
                "every error would mean throttling; write words such as \"rate limit\"",
            );
        } else {
            texts.push(item.value);
        }
    }
    let throttle = ThrottleConfig {
        texts,
        pause: t.duration("pause", seconds(10), "Pause when the upstream names none."),
        pause_max: t.duration("pause_max", seconds(300), "Longest pause that is obeyed."),
    };
    t.finish();
    GuardConfig { concurrency, rate, breaker, retry, throttle }
}
