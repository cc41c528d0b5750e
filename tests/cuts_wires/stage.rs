//! A gateway in front of the peer, by several ways, each with a relay of its own.
//!
//! Several, because the gateway lets an upstream whose connection was lost rest, longer each time:
//! a way is cut a few times, and meanwhile the others are.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use crate::harness::{PATIENCE, Weir, modern};
use crate::judge::Told;
use crate::peer::{Peer, Wire};
use crate::relay::Relay;

/// How long a caller waits whose write could not be sent.
pub const PAUSE: Duration = Duration::from_millis(100);
/// More than goes out in one piece on any wire, in bytes.
const LARGE: usize = 400 << 10;

/// One upstream.
pub struct Lane {
    pub name: String,
    pub relay: Relay,
}

pub struct Stage {
    pub weir: Weir,
    pub lanes: Vec<Lane>,
}

impl Stage {
    pub async fn start(peer: &Peer, count: usize) -> Stage {
        let mut lanes = Vec::new();
        let mut upstreams = String::new();
        for n in 0..count {
            let (name, relay) = (format!("up{n}"), Relay::to(peer.port).await);
            let transport = if peer.wire == Wire::Sse { "transport = \"sse\"\n" } else { "" };
            // Retries are wanted, so that one too many would show; nothing else may stand in the
            // way.
            write!(
                upstreams,
                "[upstreams.{name}]\nurl = {:?}\nera = \"legacy\"\n{transport}\
                 breaker = {{ enabled = false }}\nconcurrency = {{ max = 64, queue = 256 }}\n\
                 call_timeout = \"20s\"\nretry = {{ attempts = 3, budget = 1.0, \
                 backoff = \"1ms\", backoff_max = \"5ms\" }}\n",
                peer.url(relay.port)
            )
            .unwrap();
            lanes.push(Lane { name, relay });
        }
        let roots = peer.roots();
        let weir = Weir::start_with("", &upstreams, &[("SSL_CERT_FILE", roots.to_str().unwrap())]);
        let stage = Stage { weir, lanes };
        let names: Vec<_> = stage.lanes.iter().map(|lane| lane.name.as_str()).collect();
        stage.weir.ready(&names).await;
        stage
    }

    /// Send the write `id` and hear what became of it.
    pub async fn write(&self, lane: &Lane, id: &str, form: &str) -> Told {
        let name = format!("{}__pay", lane.name);
        let padding = if form == "large" { "x".repeat(LARGE) } else { String::new() };
        let arguments = json!({"id": id, "form": form, "p": padding});
        let params = json!({"name": name, "arguments": arguments});
        let asked = modern(&self.weir.url, None, "tools/call", params);
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(got) => Told::of(&got.answer(), id),
            Err(_) => Told::Nothing("no answer".into()),
        }
    }
}
