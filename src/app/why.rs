//! `weir why`: ask the gateway that runs, over its admin listener.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use hyper::header::HOST;
use tokio::net::TcpStream;

use crate::admin::why::path;
use crate::gateway::why::Answer;

use super::asked::{self, reachable};
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
    let answered = tokio::time::timeout(PATIENCE, ask(address, &path));
    let (status, body) = match answered.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(why)) => return Err(failed(why)),
        Err(_) => return Err(failed(format!("not within {} s", PATIENCE.as_secs()))),
    };
    match serde_json::from_str(&body) {
        Ok(answer) if status == 200 => Ok((body, answer)),
        _ => Err(failed(format!("what is there speaks otherwise (HTTP {status})"))),
    }
}

async fn ask(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    let request = Request::get(path).header(HOST, address.to_string());
    let request = request.body(Full::default()).map_err(|e| e.to_string())?;
    let (status, body) = asked::exchange(stream, request, ANSWER_MAX).await?;
    Ok((status, String::from_utf8(body.to_vec()).map_err(|e| e.to_string())?))
}
