//! What the operator wants: [`Config`], valid by construction.
//!
//! `section.rs` reads the file key by key, `validate.rs` turns it into a [`Config`] or into
//! *every* problem found, each with its line, key and remedy. Nothing else builds a `Config`, so
//! the rest of the program never meets a zero rate or a dangling view. `schema.rs` is the same
//! reading turned into a JSON Schema.

pub mod problem;
pub mod schema;
pub mod secret;
pub mod section;
pub mod trouble;
pub mod upkeep;
pub mod validate;

pub use trouble::Trouble;
pub use validate::consumers::consumer_name;
pub use validate::{
    FILE_MAX, load, parse, parse_here, read_bounded, read_secret, read_text, state_dir,
};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderName;

use secret::{ConsumerKey, Secret, Template};

/// The whole configuration.
#[derive(Clone)]
pub struct Config {
    /// What it was read from, as it is written: with its references, not what they stand for.
    pub text: Arc<str>,
    /// `[gateway]`
    pub gateway: Gateway,
    /// `[admin]`
    pub admin: Admin,
    /// `[log]`
    pub log: Log,
    /// `[trace]`
    pub trace: Trace,
    /// `[upstreams.NAME]`, in the order of the file: lists are merged in this order.
    pub upstreams: Vec<Arc<UpstreamConfig>>,
    /// `[views.NAME]`
    pub views: BTreeMap<Arc<str>, ViewRule>,
    /// `[consumers.NAME]`; empty means: anonymous callers on loopback only, seeing everything.
    pub consumers: Vec<ConsumerConfig>,
}

/// Who a local command or pipe acts as: it reads the configuration anyway, so it sees everything.
pub const OPERATOR: &str = "operator";

/// `[gateway]`: the endpoint that agents connect to.
#[derive(Clone, PartialEq)]
pub struct Gateway {
    /// Address of the endpoint. Needs a restart to change.
    pub listen: SocketAddr,
    /// Host names (no port) accepted in `Host`, besides loopback names and the listen address.
    /// `*` accepts all.
    pub allowed_hosts: Vec<String>,
    /// Origins (`https://app.example`) accepted in `Origin`; a request without `Origin` comes
    /// from no browser and is accepted. Loopback origins are accepted on a loopback address.
    pub allowed_origins: Vec<String>,
    /// Largest request body in bytes.
    pub max_body: usize,
    /// Time for a request's headers to arrive, and for the first bytes of a connection; over
    /// HTTP/2 also the time between probes of a silent one, and for their answers.
    pub header_timeout: Duration,
    /// After how long without another request a connection of HTTP/1 is closed.
    pub idle_timeout: Duration,
    /// Time for a request's body to arrive.
    pub body_timeout: Duration,
    /// Most connections at once; one more is closed on accept.
    pub max_connections: usize,
    /// Most sessions of old clients at once; the longest idle one is ended for a new one.
    pub max_sessions: usize,
    /// After how long without a request or open stream a session of an old client ends.
    pub session_idle: Duration,
    /// Most calls in flight at once, over all upstreams.
    pub max_calls: usize,
    /// Bytes of memory, children's not included, from which on new calls are refused.
    pub max_memory: usize,
    /// Most children that start at once, and as many again that a call waits for.
    pub max_starting: usize,
    /// Most open notification streams (`subscriptions/listen`, GET) at once.
    pub max_streams: usize,
    /// Interval of keep-alive comments on open event streams.
    pub keep_alive: Duration,
    /// Most items in one page of a list.
    pub page_size: usize,
    /// Whether upstreams' `instructions` are handed on.
    pub instructions: bool,
    /// Most bytes of one upstream's instructions.
    pub instructions_max: usize,
    /// Whether the gateway's own read-only tools are offered as upstream `weir`.
    pub builtin: bool,
    /// Quiet time before a change of lists is told to clients.
    pub list_changed_debounce: Duration,
    /// How long calls are still taken after SIGTERM, so that clients and balancers can go elsewhere.
    pub drain_notice: Duration,
    /// How long calls in flight may take to finish when the gateway stops.
    pub drain_timeout: Duration,
    /// How long the new instance of a changed upstream may take to become ready; then it is given
    /// up, and the old one goes on.
    pub rollback_after: Duration,
    /// What session ids and request states are sealed with; `None`: a key made and kept in
    /// `state_dir`. Gateways that stand for one another need the same. Restart.
    pub sealing_key: Option<Template>,
    /// Where the last seen catalogs are kept, and children's working directories. Restart.
    pub state_dir: PathBuf,
    /// Where `package = …` programs are installed. Restart.
    pub cache_dir: PathBuf,
}

/// `[admin]`: metrics and health, on a listener of its own.
#[derive(Clone, PartialEq)]
pub struct Admin {
    /// Address; `None` switches the listener off. Needs a restart to change.
    pub listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Clone, PartialEq)]
pub struct Log {
    /// A level or a filter in `tracing` syntax (`info`, `warn,weirkeeper=debug`).
    pub level: String,
    /// Form of the lines. Needs a restart to change.
    pub format: LogFormat,
}

/// Form of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a terminal.
    Text,
}

/// `[trace]`
#[derive(Clone, PartialEq)]
pub struct Trace {
    /// OTLP/HTTP endpoint; `None` exports nothing. Needs a restart to change.
    pub otlp_endpoint: Option<String>,
    /// Share of calls that start a trace when the caller did not decide, 0 to 1.
    pub sample: f64,
    /// `service.name` of the resource.
    pub service_name: String,
}

/// `[upstreams.NAME]`
#[derive(Clone, PartialEq)]
pub struct UpstreamConfig {
    /// The key in the file: `[a-z][a-z0-9-]{0,15}`, so that the first `__` of a public name ends it.
    pub name: Arc<str>,
    /// Position in the file.
    pub order: usize,
    /// Whether public names carry the upstream's name; `false` for one upstream at most
    /// (`prefix = ""`).
    pub prefixed: bool,
    /// `false` takes the upstream out without deleting its section.
    pub enabled: bool,
    /// Why it gets no calls for a while, if it does not.
    pub upkeep: Option<upkeep::Upkeep>,
    /// How to reach it.
    pub transport: TransportConfig,
    /// What its processes may use.
    pub child: ChildConfig,
    /// Which revisions to try.
    pub era: EraChoice,
    /// Who shares a conversation with it that can be asked back.
    pub isolation: Isolation,
    /// Whether its `instructions` are handed on.
    pub instructions: bool,
    /// Which of its tools, prompts and resources exist for us at all.
    pub filter: Patterns,
    /// Why it is dormant: the variable or file that is missing. `None`: it runs.
    pub dormant: Option<String>,
    /// Time for the handshake or discovery.
    pub connect_timeout: Duration,
    /// Time for one list with all its pages.
    pub list_timeout: Duration,
    /// Time for a call; progress extends it by the same again.
    pub call_timeout: Duration,
    /// What progress can extend a call to at most.
    pub max_call_timeout: Duration,
    /// When a slow read gets a second attempt beside the first; `None`: never.
    pub hedge_after: Option<Duration>,
    /// How often its lists are fetched again without being told of a change.
    pub refresh: Duration,
    /// Most entries of each list; the rest is dropped and counted.
    pub max_items: usize,
    /// Most pages of each list.
    pub max_pages: usize,
    /// Largest message in bytes that it may send.
    pub max_message: usize,
    /// `[upstreams.NAME.guard]` and its neighbours.
    pub guard: GuardConfig,
    /// When one of several replicas is left out; of no meaning to a single one.
    pub ejection: EjectionConfig,
    /// Where its calls carry a key by which it knows them again; `None`: nowhere.
    pub idempotency: Option<KeyPlace>,
    /// `[upstreams.NAME.tools."PATTERN"]`, in the order of the file; the first match counts.
    pub tools: Vec<ToolRule>,
}

/// Who shares a conversation with an old upstream. One that is shared by all declares that nobody
/// can be asked anything: an upstream that asks does not say whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// One for all. Nothing can be asked back.
    Shared,
    /// One for each consumer whose client can be asked, besides the shared one for all others.
    Consumer,
    /// One for each session of such a client; for a client without sessions, one for each call.
    Session,
}

/// How to reach an upstream.
#[derive(Clone, PartialEq)]
pub enum TransportConfig {
    /// A child process that speaks over stdin and stdout.
    Stdio(StdioConfig),
    /// An endpoint with a URL.
    Http(HttpConfig),
}

/// A child process.
#[derive(Clone, PartialEq)]
pub struct StdioConfig {
    /// What to start.
    pub program: Program,
    /// Its arguments.
    pub args: Vec<Template>,
    /// Its variables; besides these it gets only [`crate::upstream::transport::stdio::BASE_ENV`].
    pub env: BTreeMap<String, Template>,
    /// Names of variables handed on from our own environment if set.
    pub inherit_env: Vec<String>,
    /// Working directory; `None`: an empty one of its own.
    pub cwd: Option<PathBuf>,
    /// Bytes of stderr relayed to the log per minute; the rest is counted.
    pub stderr_per_minute: usize,
    /// First pause before a restart; doubles, with jitter.
    pub restart_backoff: Duration,
    /// Longest pause before a restart.
    pub restart_backoff_max: Duration,
}

/// What a child process may use; can change while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChildConfig {
    /// Most memory in bytes that it and all it started may use; `None`: no ceiling.
    pub memory_max: Option<usize>,
    /// After how long without a use it is stopped, until the next call; `None`: never.
    pub idle_stop: Option<Duration>,
}

/// What a child process runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Program {
    /// A program by path or name.
    Command(String),
    /// A pinned package, installed once into the cache.
    Package(PackageSpec),
}

/// `npm:@scope/name@1.2.3` or `pypi:name@1.2.3`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackageSpec {
    /// Which registry.
    pub registry: Registry,
    /// Package name, with its scope.
    pub name: String,
    /// Exact version.
    pub version: String,
    /// Which of its programs, when it has several.
    pub bin: Option<String>,
}

/// A package registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Registry {
    /// npm
    Npm,
    /// PyPI
    Pypi,
}

/// What is spoken at a URL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UrlTransport {
    /// Streamable HTTP; HTTP+SSE if the endpoint refuses the handshake as one of that does.
    Auto,
    /// Streamable HTTP.
    Http,
    /// HTTP+SSE of 2024-11-05.
    Sse,
    /// WebSocket, which the URL's scheme says.
    WebSocket,
}

impl UrlTransport {
    /// Whether the scheme of a URL is one of WebSocket's.
    pub fn is_websocket(url: &str) -> bool {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        scheme.eq_ignore_ascii_case("ws") || scheme.eq_ignore_ascii_case("wss")
    }
}

/// An endpoint with a URL.
#[derive(Clone, PartialEq)]
pub struct HttpConfig {
    /// `http`, `https`, `ws` or `wss`, no userinfo, no fragment; may hold `${VAR}`.
    pub url: Template,
    /// All URLs, if they were given as several that stand for one another; `url` is the first.
    pub replicas: Vec<Template>,
    /// What is spoken there.
    pub transport: UrlTransport,
    /// Headers sent with every request.
    pub headers: Vec<(String, Template)>,
    /// Sent as `Authorization: Bearer …`.
    pub bearer: Option<Template>,
    /// How long an idle pooled connection is kept. Less than the 5 s after which common servers
    /// close it, so that no call is written into a closing connection.
    pub pool_idle: Duration,
    /// Time to connect, TLS included.
    pub dial_timeout: Duration,
}

/// Which revisions are tried with an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EraChoice {
    /// Probe, and remember.
    Auto,
    /// 2026-07-28 only.
    Modern,
    /// A handshake at once, no probe.
    Legacy,
}

/// Everything that stands between a call and its upstream.
#[derive(Clone, PartialEq, Debug)]
pub struct GuardConfig {
    /// `[upstreams.NAME.concurrency]`
    pub concurrency: ConcurrencyConfig,
    /// `[upstreams.NAME.rate]`; `None`: no limit.
    pub rate: Option<RateConfig>,
    /// `[upstreams.NAME.breaker]`
    pub breaker: BreakerConfig,
    /// `[upstreams.NAME.retry]`
    pub retry: RetryConfig,
    /// `[upstreams.NAME.throttle]`
    pub throttle: ThrottleConfig,
}

/// How many calls at once, and how many may wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConcurrencyConfig {
    /// Calls in flight.
    pub max: NonZeroU32,
    /// Calls waiting; one more is refused.
    pub queue: u32,
}

/// A token bucket.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RateConfig {
    /// Tokens per second; finite and > 0.
    pub per_second: f64,
    /// Bucket size.
    pub burst: NonZeroU32,
    /// Longest wait for a token; a longer one is refused at once.
    pub max_wait: Duration,
}

/// When an upstream counts as broken.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct BreakerConfig {
    /// `false`: never opens.
    pub enabled: bool,
    /// Length of the sliding window.
    pub window: Duration,
    /// Fewer calls in the window than this prove nothing.
    pub min_calls: NonZeroU32,
    /// Share of failed calls that opens, in (0, 1].
    pub failure_share: f64,
    /// A call that takes longer is slow.
    pub slow_call: Duration,
    /// Share of slow calls that opens, in (0, 1].
    pub slow_share: f64,
    /// This many failures in a row open, whatever the window says.
    pub consecutive: NonZeroU32,
    /// How long it stays open before probing.
    pub open_for: Duration,
    /// Successful probes that close it.
    pub probes: NonZeroU32,
}

/// When a replica gets no calls for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EjectionConfig {
    /// This many failures in a row.
    pub consecutive: NonZeroU32,
    /// For how long at first; doubles each time it fails again right after.
    pub first: Duration,
    /// For how long at most.
    pub longest: Duration,
}

impl Default for EjectionConfig {
    fn default() -> EjectionConfig {
        EjectionConfig {
            // Sooner than the breaker, which is there for all of them together.
            consecutive: NonZeroU32::new(3).expect("3 is not 0"),
            first: Duration::from_secs(5),
            longest: Duration::from_secs(300),
        }
    }
}

/// When a call that may be repeated is repeated.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RetryConfig {
    /// Attempts besides the first; 0 switches retries off.
    pub attempts: u32,
    /// First pause; doubles, with full jitter.
    pub backoff: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Retries per call on average over the last ten seconds, in [0, 1].
    pub budget: f64,
}

/// What counts as the upstream's wish that we slow down.
#[derive(Clone, PartialEq, Debug)]
pub struct ThrottleConfig {
    /// Texts (case-insensitive) in an `isError` result that mean throttling.
    pub texts: Vec<String>,
    /// Pause when none is named.
    pub pause: Duration,
    /// Longest pause we obey.
    pub pause_max: Duration,
}

/// What holds for some tools of an upstream.
#[derive(Clone, PartialEq, Debug)]
pub struct ToolRule {
    /// Native tool name, `*` stands for any run of characters.
    pub pattern: String,
    /// Overrides the upstream's.
    pub call_timeout: Option<Duration>,
    /// Overrides the upstream's.
    pub hedge_after: Option<Duration>,
    /// Overrides the tool's `readOnlyHint`.
    pub read_only: Option<bool>,
    /// A bucket of their own, besides the upstream's.
    pub rate: Option<RateConfig>,
    /// Overrides the upstream's.
    pub idempotency: Option<KeyPlace>,
}

/// Where a call carries the key by which its upstream knows it again, and does it once only however
/// often it comes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeyPlace {
    /// An argument of the tool, by its name. It is filled for tools whose schema declares it.
    Argument(Box<str>),
    /// A header of the request; over streamable HTTP only.
    Header(HeaderName),
}

/// What decides where the calls of an upstream carry a key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyRules {
    tools: Vec<(String, Option<KeyPlace>)>,
    others: Option<KeyPlace>,
}

impl KeyRules {
    /// Where a call of this tool carries its key.
    pub fn place(&self, native: &str) -> Option<&KeyPlace> {
        let rule = self.tools.iter().find(|(pattern, _)| matches(pattern, native));
        rule.and_then(|(_, place)| place.as_ref()).or(self.others.as_ref())
    }

    /// Whether no call carries one.
    pub fn is_empty(&self) -> bool {
        self.others.is_none() && self.tools.iter().all(|(_, place)| place.is_none())
    }
}

/// Allow and deny lists. `*` stands for any run of characters; deny wins; an empty allow list
/// allows all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Patterns {
    /// What is let through.
    pub allow: Vec<String>,
    /// What is not.
    pub deny: Vec<String>,
}

/// What keeps a name out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objection {
    /// This pattern of `deny`.
    Denied(String),
    /// No pattern of `allow` describes it.
    NotAllowed,
}

impl Patterns {
    /// Whether `name` is let through.
    pub fn admits(&self, name: &str) -> bool {
        (self.allow.is_empty() || self.allow.iter().any(|p| matches(p, name)))
            && !self.deny.iter().any(|p| matches(p, name))
    }

    /// Why `name` is not let through, if it is not.
    pub fn objection(&self, name: &str) -> Option<Objection> {
        let denied = self.deny.iter().find(|p| matches(p, name));
        match denied {
            Some(pattern) => Some(Objection::Denied(pattern.clone())),
            None => (!self.admits(name)).then_some(Objection::NotAllowed),
        }
    }
}

/// Whether `pattern` (with `*` for any run of characters) describes the whole of `text`.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (mut p, mut t) = (0, 0);
    let (pat, txt) = (pattern.as_bytes(), text.as_bytes());
    let mut back: Option<(usize, usize)> = None;
    while t < txt.len() {
        if p < pat.len() && pat[p] == b'*' {
            back = Some((p, t));
            p += 1;
        } else if p < pat.len() && pat[p] == txt[t] {
            p += 1;
            t += 1;
        } else if let Some((bp, bt)) = back {
            p = bp + 1;
            t = bt + 1;
            back = Some((bp, t));
        } else {
            return false;
        }
    }
    pat[p..].iter().all(|b| *b == b'*')
}

/// `[views.NAME]`: what a team sees.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ViewRule {
    /// Upstreams seen; `None`: all.
    pub upstreams: Option<Vec<Arc<str>>>,
    /// Patterns on public tool, prompt and resource names.
    pub patterns: Patterns,
}

/// `[consumers.NAME]`: who may call.
#[derive(Clone, PartialEq)]
pub struct ConsumerConfig {
    /// The key in the file.
    pub name: Arc<str>,
    /// Digests of its keys; two during a change of key.
    pub keys: Vec<ConsumerKey>,
    /// Its view; `None`: everything.
    pub view: Option<Arc<str>>,
    /// Its own quota.
    pub rate: Option<RateConfig>,
}

impl Config {
    /// Every resolved secret value, for scrubbing.
    pub fn secrets(&self) -> Vec<Secret> {
        let own = self.gateway.sealing_key.iter().map(|key| Secret::new(key.expose()));
        self.upstreams.iter().flat_map(|u| u.secrets()).chain(own).collect()
    }
}

impl UpstreamConfig {
    /// The secret values in this upstream's settings: everything that came from a variable or a
    /// file, and what is written into the file itself where a credential belongs.
    pub fn secrets(&self) -> Vec<Secret> {
        let mut out = self.referenced();
        if self.dormant.is_some() {
            return out;
        }
        match &self.transport {
            TransportConfig::Stdio(s) => {
                let written = s.env.iter().filter(|(name, _)| names_a_secret(name));
                out.extend(written.map(|(_, t)| Secret::new(t.expose())));
            }
            TransportConfig::Http(h) => {
                let values = h.headers.iter().map(|(_, t)| t).chain(&h.bearer);
                // The scheme before a token (`Bearer x`) is no secret, the token alone is.
                out.extend(values.flat_map(|t| t.expose().split(' ')).map(Secret::new));
            }
        }
        out
    }

    fn referenced(&self) -> Vec<Secret> {
        self.templates().into_iter().flat_map(|(_, t)| t.secrets()).collect()
    }

    /// Everything that may hold references, with its key below the section.
    pub fn templates(&self) -> Vec<(Vec<&str>, &Template)> {
        match &self.transport {
            TransportConfig::Stdio(child) => {
                let args = child.args.iter().map(|t| (vec!["args"], t));
                let env = child.env.iter().map(|(name, t)| (vec!["env", name.as_str()], t));
                args.chain(env).collect()
            }
            TransportConfig::Http(http) => {
                let named = |(name, t)| (vec!["headers", String::as_str(name)], t);
                let headers = http.headers.iter().map(|(name, t)| (name, t)).map(named);
                let bearer = http.bearer.iter().map(|t| (vec!["bearer"], t));
                let urls = http.replicas.iter().map(|t| (vec!["urls"], t));
                let url = http.replicas.is_empty().then_some((vec!["url"], &http.url));
                urls.chain(url).chain(headers).chain(bearer).collect()
            }
        }
    }

    /// The URLs of its replicas; none if it has no more than one.
    pub fn replicas(&self) -> &[Template] {
        match &self.transport {
            TransportConfig::Http(http) => &http.replicas,
            TransportConfig::Stdio(_) => &[],
        }
    }

    /// The same for one of its replicas alone.
    #[must_use]
    pub fn of_replica(&self, number: usize) -> UpstreamConfig {
        let mut own = self.clone();
        // Calls are refused before one of them is chosen.
        own.upkeep = None;
        if let TransportConfig::Http(http) = &mut own.transport {
            let all = std::mem::take(&mut http.replicas);
            if let Some(url) = all.into_iter().nth(number) {
                http.url = url;
            }
        }
        own
    }

    /// Where its calls carry a key.
    pub fn key_rules(&self) -> KeyRules {
        let tools = self.tools.iter().map(|r| (r.pattern.clone(), r.idempotency.clone()));
        let rules = KeyRules { tools: tools.collect(), others: self.idempotency.clone() };
        if rules.is_empty() { KeyRules::default() } else { rules }
    }

    /// The first tool rule that matches.
    pub fn tool_rule(&self, native: &str) -> Option<&ToolRule> {
        self.tools.iter().find(|r| matches(&r.pattern, native))
    }
}

// A variable whose literal value must not be shown. The others may hold words that every log has.
fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["KEY", "TOKEN", "SECRET", "PASS", "CREDENTIAL", "AUTH", "COOKIE"]
        .iter()
        .any(|word| name.split('_').any(|part| part.starts_with(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_hold_credentials_are_known_by_name() {
        for yes in ["CAL_API_KEY", "PRIVATE_APP_ACCESS_TOKEN", "pgpassword_x_password", "NPM_AUTH"]
        {
            assert!(names_a_secret(yes), "{yes}");
        }
        for no in ["LOG_LEVEL", "METADATA_SERVER_DETECTION", "HOME", "PATH"] {
            assert!(!names_a_secret(no), "{no}");
        }
    }

    #[test]
    fn patterns() {
        for (p, t, yes) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("*__delete_*", "calcom__delete_booking", true),
            ("calcom__*", "calcom", false),
            ("a*b*c", "axbxbxc", true),
            ("abc", "abc", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(p, t), yes, "{p} {t}");
        }
        let p = Patterns { allow: vec!["a*".into()], deny: vec!["*z".into()] };
        assert!(p.admits("ab") && !p.admits("az") && !p.admits("b"));
        assert_eq!(p.objection("ab"), None);
        assert_eq!(p.objection("az"), Some(Objection::Denied("*z".into())));
        assert_eq!(p.objection("b"), Some(Objection::NotAllowed));
    }
}
