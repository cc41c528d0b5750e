//! WebSocket.

use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::{Weir, call, reason, upstream};
use crate::peer::{Peer, State, serve};
use crate::{outcome, text, until, weir};

#[tokio::test(flavor = "multi_thread")]
async fn the_upgrade_carries_what_is_configured() {
    let up = Peer::websocket(false).await;
    let more = "bearer = \"${UP_KEY}\"\nheaders = { X-Team = \"px\" }";
    let weir = Weir::start_with("", &up.section("up", more), &[("UP_KEY", "the-secret-key")]);
    weir.ready(&["up"]).await;
    let heads = up.state.heads.lock().unwrap().clone();
    let head = |name: &str| heads[0].iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
    assert_eq!(head("authorization"), Some("Bearer the-secret-key"));
    assert_eq!(head("x-team"), Some("px"));
    assert_eq!(head("sec-websocket-protocol"), Some("mcp"));
    assert_eq!(head("path"), Some("/mcp?k=v"));
    assert!(!weir.log().contains("the-secret-key"));
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_frames_end_the_connection() {
    let up = Peer::websocket(true).await;
    let weir = weir(&up, "").await;
    let answer = call(&weir.url, "up__binary", json!({})).await;
    assert_eq!((reason(&answer), outcome(&answer)), ("connection_lost", "unknown"), "{answer}");
    until("connected again", || up.state.connections() == 2).await;
    assert_eq!(up.state.arrived("binary"), 1);
}

/// A server that answers an upgrade with these bytes.
async fn answering(head: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    format!("[upstreams.up]\nurl = \"ws://{address}/secret-path\"\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_upgrades_say_why() {
    for (head, why) in [
        ("HTTP/1.1 401 X\r\ncontent-length: 0\r\n\r\n", "credential"),
        ("HTTP/1.1 429 X\r\ncontent-length: 0\r\n\r\n", "pause"),
        ("HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n", "HTTP 404"),
        ("HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n", "HTTP 200"),
        (
            "HTTP/1.1 307 X\r\nlocation: wss://elsewhere.example/\r\ncontent-length: 0\r\n\r\n",
            "another origin",
        ),
        ("nonsense\r\n\r\n", "does not open a WebSocket"),
    ] {
        let weir = Weir::start("", &answering(head).await);
        let status = weir.until("down", |s| upstream(s, "up")["state"] == "down").await;
        let text = upstream(&status, "up")["why"].as_str().unwrap();
        assert!(text.contains(why), "{head}: {text}");
        assert!(!weir.log().contains("secret-path"), "{}", weir.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_within_the_origin_is_followed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let state = State::new(false);
    let shared = state.clone();
    tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        let _ = first.read(&mut buffer).await;
        let head = format!(
            "HTTP/1.1 307 X\r\nlocation: ws://{address}/there\r\ncontent-length: 0\r\n\r\n"
        );
        first.write_all(head.as_bytes()).await.unwrap();
        let (next, _) = listener.accept().await.unwrap();
        serve(next, shared).await;
    });
    let weir = Weir::start("", &format!("[upstreams.up]\nurl = \"ws://{address}/here\"\n"));
    weir.ready(&["up"]).await;
    assert!(state.heads.lock().unwrap()[0].contains(&("path".into(), "/there".into())));
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_with_a_known_certificate_only() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let chain = vec![made.cert.der().clone()];
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let state = State::new(true);
    let shared = state.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, state) = (acceptor.clone(), shared.clone());
            tokio::spawn(async move {
                if let Ok(tls) = acceptor.accept(stream).await {
                    serve(tls, state).await;
                }
            });
        }
    });
    let file = format!("[upstreams.up]\nurl = \"wss://localhost:{port}/mcp\"\n");
    let dir = tempfile::tempdir().unwrap();
    let roots = dir.path().join("roots.pem");
    std::fs::write(&roots, pem(made.cert.der())).unwrap();
    let weir = Weir::start_with("", &file, &[("SSL_CERT_FILE", roots.to_str().unwrap())]);
    weir.ready(&["up"]).await;
    assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
    drop(weir);
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&roots, pem(other.cert.der())).unwrap();
    let before = state.connections();
    let weir = Weir::start_with("", &file, &[("SSL_CERT_FILE", roots.to_str().unwrap())]);
    weir.until("down", |s| upstream(s, "up")["state"] == "down").await;
    assert_eq!(state.connections(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_hangs_up_on_the_probe_is_met_again_the_old_way() {
    let up = Peer::websocket(false).await;
    up.state.touchy.store(true, std::sync::atomic::Ordering::SeqCst);
    let weir = weir(&up, "").await;
    assert_eq!((up.state.asked("server/discover"), up.state.connections()), (1, 2));
    assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
    up.state.say_all(|| crate::peer::Out::Cut);
    until("connected again", || up.state.connections() == 3).await;
    weir.ready(&["up"]).await;
    assert_eq!(up.state.asked("server/discover"), 1, "remembered");
}
