//! TLS, with a certificate of the test's own.

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::PrivateKeyDer;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::*;

/// An upstream that answers with the HTTP version it was asked in.
async fn start(protocols: &[&str]) -> (String, RootCertStore, tokio::task::JoinHandle<()>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/mcp", listener.local_addr().unwrap().port());
    let task = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(socket).await else { return };
                let service = service_fn(|request: Request<Incoming>| async move {
                    let version = format!("{:?}", request.version());
                    let body = OK.replace("\"a\":1", &format!("\"v\":\"{version}\""));
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    response
                        .headers_mut()
                        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                    Ok::<_, std::convert::Infallible>(response)
                });
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (url, roots, task)
}

fn trusting(url: &str, roots: RootCertStore) -> HttpWire {
    HttpWire::with_roots("crm".into(), &settings(url), MAX, Arc::default(), roots).unwrap()
}

#[tokio::test]
async fn http_2_is_spoken_where_it_is_offered() {
    for (protocols, version) in
        [(&["h2", "http/1.1"][..], "HTTP/2.0"), (&["http/1.1"], "HTTP/1.1"), (&[], "HTTP/1.1")]
    {
        let (url, roots, server) = start(protocols).await;
        let wire = trusting(&url, roots);
        for _ in 0..2 {
            let answer = request(&wire).await.unwrap();
            assert!(body(&answer.frame).contains(version), "{}", body(&answer.frame));
        }
        server.abort();
    }
}

#[tokio::test]
async fn an_unknown_certificate_means_nothing_was_sent() {
    let (url, _, server) = start(&["h2"]).await;
    let (_, other_roots, other) = start(&["h2"]).await;
    let HttpFault { fault, .. } = fault(&trusting(&url, other_roots)).await;
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectFailed, Delivery::NotSent));
    assert!(fault.cause.contains("certificate"), "{}", fault.cause);
    server.abort();
    other.abort();
}

#[tokio::test]
async fn a_dial_is_bounded_with_all_its_steps() {
    // Takes the connection and says nothing: TCP stands, TLS never does.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    let mut config = settings(&url);
    config.dial_timeout = Duration::from_millis(50);
    let wire =
        HttpWire::with_roots("crm".into(), &config, MAX, Arc::default(), RootCertStore::empty())
            .unwrap();
    let HttpFault { fault, .. } = fault(&wire).await;
    assert_eq!((fault.reason, fault.delivery), (Reason::ConnectFailed, Delivery::NotSent));
    assert!(fault.cause.contains("no connection within 50ms"), "{}", fault.cause);
    drop(listener);
}
