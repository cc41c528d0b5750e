//! `weir why`: ask the gateway that runs, over its admin listener.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::admin::why::path;
use crate::gateway::why::Answer;

use super::{AppError, ServeOptions, read};

/// How long the gateway may take; it answers from memory.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer: a page of text, with room.
const ANSWER_MAX: usize = 1 << 20;

/// What the running gateway says, as it says it and read. `admin`: where it listens, if not where
/// the file says.
///
/// # Errors
/// When the file has problems, or no gateway answers.
pub async fn why(
    options: &ServeOptions,
    admin: Option<SocketAddr>,
    consumer: &str,
    tool: &str,
) -> Result<(String, Answer), AppError> {
    let address = match admin {
        Some(address) => address,
        None => read(options)?.0.admin.listen.ok_or_else(|| {
            AppError::Unknown(
                "admin.listen is \"off\", so the gateway cannot be asked; set an address".into(),
            )
        })?,
    };
    let address = reachable(address);
    let failed = |what: String| {
        AppError::Start(format!(
            "no gateway answers at {address}, its admin.listen: {what}; is it running? --admin \
             names another address"
        ))
    };
    let path = path(consumer, tool);
    let asked = tokio::time::timeout(PATIENCE, ask(address, &path));
    let (status, body) = match asked.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => return Err(failed(e.to_string())),
        Err(_) => return Err(failed(format!("not within {} s", PATIENCE.as_secs()))),
    };
    match serde_json::from_str(&body) {
        Ok(answer) if status == 200 => Ok((body, answer)),
        _ => Err(failed(format!("what is there speaks otherwise (HTTP {status})"))),
    }
}

// An address that stands for all of the machine is asked at home.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn ask(address: SocketAddr, path: &str) -> Result<(u16, String), AnyError> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request =
        Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await?.to_bytes();
        Ok::<_, AnyError>((status, String::from_utf8(body.to_vec())?))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => {
            ended?;
            // What had come before its end may be all.
            exchange.await
        }
    }
}
