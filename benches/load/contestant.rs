//! Who takes part, and how each is started.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::stage::{Setup, free_port};

/// The bench's own consumer has this key.
pub const KEY: &str = "weir_bench";
/// And the file its digest.
const DIGEST: &str = "sha256:248777e387cf8da4e76ee08c1c83a903f8d7a7ef76c02c4c367e8f898700e3d5";
/// Environment variables of this prefix name other gateways.
const PEER: &str = "LOAD_PEER_";

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contestant {
    /// Nobody: the load goes to the mock servers.
    Direct,
    /// nginx as a plain reverse proxy.
    Nginx,
    /// The gateway with all its features on.
    Weir,
    /// Another gateway: the nth of the environment.
    Peer(usize),
}

/// Other gateways: name and command line.
pub fn peers() -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = std::env::vars()
        .filter_map(|(k, v)| Some((k.strip_prefix(PEER)?.to_owned(), v)))
        .filter(|(k, v)| !k.ends_with("_CONFIG") && !v.is_empty())
        .collect();
    all.sort();
    all
}

/// What a contestant is called in the tables.
pub fn name(who: Contestant) -> String {
    match who {
        Contestant::Direct => "direct".into(),
        Contestant::Nginx => "nginx".into(),
        Contestant::Weir => "weir".into(),
        Contestant::Peer(n) => peers().get(n).map(|p| p.0.to_lowercase()).unwrap_or_default(),
    }
}

/// The gateway's program.
pub fn weir() -> PathBuf {
    std::env::var_os("WEIR_BIN").map_or_else(|| env!("CARGO_BIN_EXE_weir").into(), PathBuf::from)
}

/// How a contestant is started.
pub struct Launch {
    /// Its command line.
    pub command: Vec<String>,
    /// Variables it gets besides ours.
    pub env: Vec<(String, String)>,
    /// The path of its endpoint.
    pub path: String,
    /// The key it wants.
    pub key: Option<String>,
    /// Whether to wait until it listens.
    pub wait: bool,
}

/// Where a contestant's words go: nowhere, or into a file of its folder with `LOAD_LOG=1`. They
/// are made and written either way.
///
/// # Errors
/// What the system says.
pub fn log(dir: &Path) -> Result<Stdio, String> {
    let path = if std::env::var_os("LOAD_LOG").is_some() {
        dir.join("log")
    } else {
        PathBuf::from("/dev/null")
    };
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    Ok(file.map_err(|e| e.to_string())?.into())
}

/// Write a contestant's files into `dir`, and say how it is started.
///
/// # Errors
/// What went wrong.
pub fn launch(
    who: Contestant,
    setup: Setup,
    port: u16,
    dir: &Path,
    upstreams: &BTreeMap<Setup, Vec<SocketAddr>>,
    more: &str,
) -> Result<Launch, String> {
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|e| e.to_string())?;
        Ok::<_, String>(path.display().to_string())
    };
    let plain = |command: Vec<String>| Launch {
        command,
        env: vec![],
        path: "/mcp".into(),
        key: None,
        wait: true,
    };
    match who {
        Contestant::Direct => Err("nobody needs no start".into()),
        Contestant::Nginx => {
            let config = write("nginx.conf", &nginx(port, dir, upstreams))?;
            let prefix = dir.display().to_string();
            let command = ["nginx", "-p", &prefix, "-e", "stderr", "-c", &config];
            Ok(plain(command.map(Into::into).into()))
        }
        Contestant::Weir => {
            let http = upstreams.get(&setup).map_or(&[][..], Vec::as_slice);
            let config =
                write("upstreams.toml", &weir_config(port, free_port()?, dir, http, setup, more))?;
            let program = weir().display().to_string();
            let command = vec![program, "serve".into(), "--config".into(), config];
            Ok(Launch { key: Some(KEY.into()), ..plain(command) })
        }
        Contestant::Peer(n) => {
            let (name, line) = peers().get(n).cloned().ok_or("no such peer")?;
            let template = std::env::var(format!("{PEER}{name}_CONFIG"));
            let http = &upstreams[&setup];
            let config = match template {
                Ok(path) => {
                    let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
                    let ending = Path::new(&path).extension().and_then(|e| e.to_str());
                    let text = fill(&text, port, "", http);
                    write(&format!("config.{}", ending.unwrap_or("yaml")), &text)?
                }
                Err(_) => String::new(),
            };
            let line = fill(&line, port, &config, http);
            Ok(plain(line.split_whitespace().map(Into::into).collect()))
        }
    }
}

// Put in what a peer's command line or file refers to. A line that names an upstream which is not
// there is left out.
fn fill(text: &str, port: u16, config: &str, upstreams: &[SocketAddr]) -> String {
    let mut text = text.replace("{port}", &port.to_string()).replace("{config}", config);
    // For what else it listens at.
    for n in 1..=3 {
        let further = free_port().unwrap_or_default().to_string();
        text = text.replace(&format!("{{port{n}}}"), &further);
    }
    for (n, addr) in upstreams.iter().enumerate() {
        text = text.replace(&format!("{{upstream{n}}}"), &format!("http://{addr}/mcp"));
    }
    text.lines().filter(|l| !l.contains("{upstream")).fold(String::new(), |all, l| all + l + "\n")
}

// A plain reverse proxy as one would write it, but for counts of requests after which connections
// are closed, and for buffers that hold an answer of 64 KiB.
fn nginx(port: u16, dir: &Path, upstreams: &BTreeMap<Setup, Vec<SocketAddr>>) -> String {
    let dir = dir.display();
    let (mut pools, mut places) = (String::new(), String::new());
    for (setup, addrs) in upstreams {
        for (n, addr) in addrs.iter().enumerate() {
            let name = format!("{}-{n}", setup.name());
            let _ = writeln!(
                pools,
                "  upstream {name} {{ server {addr}; keepalive 300; \
                 keepalive_requests 1000000000; keepalive_timeout 300s; }}"
            );
            let _ = writeln!(
                places,
                "    location /{}/{n}/ {{ proxy_pass http://{name}/; }}",
                setup.name()
            );
        }
    }
    format!(
        "worker_processes 1;\ndaemon off;\npid {dir}/nginx.pid;\nerror_log stderr crit;\n\
         events {{ worker_connections 20000; }}\nworker_rlimit_nofile 20000;\n\
         http {{\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  tcp_nodelay on;\n  \
         keepalive_timeout 300s;\n  keepalive_requests 1000000000;\n  \
         default_type application/json;\n  \
         client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n  \
         fastcgi_temp_path {dir}/fastcgi;\n  uwsgi_temp_path {dir}/uwsgi;\n  \
         scgi_temp_path {dir}/scgi;\n  \
         proxy_http_version 1.1;\n  proxy_set_header Connection \"\";\n  \
         proxy_buffer_size 16k;\n  proxy_buffers 16 16k;\n  proxy_busy_buffers_size 128k;\n\
         {pools}  server {{\n    listen 127.0.0.1:{port};\n    \
         location /lists/ {{ alias {dir}/lists/; }}\n{places}  }}\n}}\n"
    )
}

// Every guard is on and none gets in the way.
fn weir_config(
    port: u16,
    admin: u16,
    dir: &Path,
    http: &[SocketAddr],
    setup: Setup,
    more: &str,
) -> String {
    let dir = dir.display();
    // Ten thousand tools are one answer, whose cost is compared by the byte.
    let pages = if setup == Setup::Thousands { "page_size = 20000\n" } else { "" };
    let mut out = format!(
        "[gateway]\nlisten = \"127.0.0.1:{port}\"\nstate_dir = \"{dir}/state\"\n\
         cache_dir = \"{dir}/cache\"\n{pages}\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n"
    );
    let rate = "{ per_second = 10000000, burst = 10000000 }";
    for (n, addr) in http.iter().enumerate() {
        let _ = write!(
            out,
            "\n[upstreams.u{n}]\nurl = \"http://{addr}/mcp\"\nrate = {rate}\n\
             concurrency = {{ max = 1024, queue = 1024 }}\nmax_message = \"128MiB\"\n"
        );
    }
    let _ = write!(
        out,
        "{more}\n[views.bench]\ndeny = [\"*__never_*\"]\n\n\
         [consumers.bench]\nkey = \"{DIGEST}\"\nview = \"bench\"\nrate = {rate}\n"
    );
    out
}
