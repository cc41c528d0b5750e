//! WebSocket towards an upstream: subprotocol `mcp`, one message a text frame. No revision has it;
//! it is a custom transport that keeps the messages and their order (2026-07-28
//! basic/transports/index, "custom transports").

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use hyper::header::{
    CONNECTION, HOST, HeaderValue, LOCATION, RETRY_AFTER, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Uri};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Utf8Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tokio_util::sync::CancellationToken;

use super::Unasked;
use super::http::{self, ForUpgrade};
use super::pace::Pace;
use super::pipe::{
    Heard, Inside, LAST_WORDS, Lost, Outbox, Outgoing, Pipe, PipeCounters, Table, add, closing,
    count,
};
use crate::config::HttpConfig;
use crate::config::secret::Scrubber;
use crate::failure::{Delivery, Fault, Reason};

/// The subprotocol that we name and the upstream echoes.
const SUBPROTOCOL: HeaderValue = HeaderValue::from_static("mcp");
/// How often an open socket is pinged: a dead one must not hold up calls until their deadlines.
const PING_EVERY: Duration = Duration::from_secs(15);
/// So long without a frame, a pong included, and the upstream is taken for gone: three pings.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// How long the upstream may take to close its side; what it still answers meanwhile counts.
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// How long the rest is still read after the upstream stopped taking messages.
const REST_TIME: Duration = Duration::from_secs(1);

/// What a socket is opened with.
pub struct Dial<'a> {
    /// The upstream's name, for the log.
    pub upstream: Arc<str>,
    /// URL, headers, times.
    pub config: &'a HttpConfig,
    /// Largest message in bytes that the upstream may send.
    pub max_message: usize,
    /// Time for the upgrade, after dialling.
    pub timeout: Duration,
    /// Takes the secrets out of what is logged.
    pub scrubber: Scrubber,
    /// Where to count.
    pub counters: Arc<PipeCounters>,
}

/// Open a socket. Says nothing on it yet.
///
/// # Errors
/// [`Reason::ConnectFailed`], or what the upstream's status says; no message was sent.
pub async fn connect(dial: Dial<'_>) -> Result<(Pipe, mpsc::Receiver<Unasked>), Fault> {
    let tls = http::tls_for(&http::for_upgrade(dial.config)?.uri)?;
    connect_with(dial, tls).await
}

async fn connect_with(
    dial: Dial<'_>,
    tls: ClientConfig,
) -> Result<(Pipe, mpsc::Receiver<Unasked>), Fault> {
    let max = dial.max_message;
    let socket = open(&dial, tls).await?;
    let (pipe, inside, unasked) = Pipe::new(dial.upstream, max, dial.scrubber, dial.counters);
    tokio::spawn(carry(socket, inside, max));
    Ok((pipe, unasked))
}

type Socket = WebSocketStream<http::Dialled>;

// A redirect within the origin is followed as for HTTP.
async fn open(dial: &Dial<'_>, tls: ClientConfig) -> Result<Socket, Fault> {
    let target = http::for_upgrade(dial.config)?;
    let mut uri = target.uri.clone();
    let mut hops = 0;
    loop {
        let io = http::dial(dial.config, tls.clone(), uri.clone()).await?;
        let request = upgrade(&uri, &target)?;
        let max = Some(dial.max_message);
        let bounds = WebSocketConfig::default().max_message_size(max).max_frame_size(max);
        let upgraded = client_async_with_config(request, io, Some(bounds));
        let error = match timeout(dial.timeout, upgraded).await {
            Ok(Ok((socket, _))) => return Ok(socket),
            Ok(Err(error)) => error,
            Err(_) => {
                let text = format!("no WebSocket within {:?}", dial.timeout);
                return Err(Fault::new(Reason::DeadlineExceeded, Delivery::NotSent, text));
            }
        };
        uri = match &error {
            Error::Http(response) if http::is_redirect(response.status()) => {
                let to = response.headers().get(LOCATION).map(as_http);
                http::follow(&Method::GET, response.status(), &uri, to.as_ref(), hops)?
            }
            Error::Http(response) => {
                let fault = http::of_status(response.status(), response.headers().get(RETRY_AFTER));
                return Err(Fault { delivery: Delivery::NotSent, ..fault });
            }
            error => {
                let text = "the upstream does not open a WebSocket with subprotocol mcp";
                let cause = format!("{}: {}", target.address, http::chain(error));
                let fault = Fault::new(Reason::ConnectFailed, Delivery::NotSent, text);
                return Err(fault.because(cause));
            }
        };
        hops += 1;
    }
}

// Redirects name either scheme.
fn as_http(location: &HeaderValue) -> HeaderValue {
    let swapped = location.to_str().ok().and_then(|to| {
        let (scheme, rest) = to.split_once("://")?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "ws" => "http",
            "wss" => "https",
            _ => return None,
        };
        HeaderValue::from_str(&format!("{scheme}://{rest}")).ok()
    });
    swapped.unwrap_or_else(|| location.clone())
}

// RFC 6455, 4.1.
fn upgrade(uri: &Uri, target: &ForUpgrade) -> Result<Request<()>, Fault> {
    let unfit = |error: &dyn std::fmt::Display| {
        let text = "the configured url is not a valid URL";
        Fault::new(Reason::ConnectFailed, Delivery::NotSent, text).because(error)
    };
    let authority = uri.authority().map_or("", |a| a.as_str());
    let host = HeaderValue::from_str(authority).map_err(|e| unfit(&e))?;
    let key = HeaderValue::from_str(&generate_key()).map_err(|e| unfit(&e))?;
    let scheme = if uri.scheme_str() == Some("https") { "wss" } else { "ws" };
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let to = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
    let mut request = Request::new(());
    *request.uri_mut() = to.map_err(|e| unfit(&e))?;
    request.headers_mut().clone_from(&target.headers);
    for (name, value) in [
        (HOST, host),
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        (SEC_WEBSOCKET_KEY, key),
        (SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL),
    ] {
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}

async fn carry<S>(socket: WebSocketStream<S>, inside: Inside, max: usize)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Inside { table, outbox, closing: asked, ended, .. } = inside;
    let (sink, stream) = socket.split();
    let broken = CancellationToken::new();
    let goodbye = Goodbye { asked: asked.clone(), code: Arc::default() };
    let writing = write(sink, outbox, table.clone(), goodbye.clone(), broken.clone());
    let mut writer = tokio::spawn(writing);
    let lost = tokio::select! {
        (lost, code) = read(stream, &table, max) => {
            let _ = goodbye.code.set(code);
            lost
        }
        lost = async {
            tokio::select! {
                () = asked.cancelled() => {
                    tokio::time::sleep(CLOSE_TIME).await;
                    closing()
                }
                () = broken.cancelled() => {
                    tokio::time::sleep(REST_TIME).await;
                    Lost::new("the upstream does not take messages any more")
                }
            }
        } => lost,
    };
    let lost = if asked.is_cancelled() { closing() } else { lost };
    asked.cancel();
    if timeout(CLOSE_TIME, &mut writer).await.is_err() {
        writer.abort();
    }
    table.fail_all(lost.clone());
    ended.send_replace(Some(lost));
}

// Until the end of the socket: why it ended, and what the upstream is to be told of it.
async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<S>>,
    table: &Table,
    max: usize,
) -> (Lost, CloseCode) {
    let mut pace = Pace::default();
    loop {
        // One that writes faster than we read would else never let go of the task.
        tokio::task::coop::consume_budget().await;
        let heard = if let Some(there) = stream.next().now_or_never() {
            there
        } else {
            pace.rest().await;
            let Ok(heard) = timeout(SILENCE_MAX, stream.next()).await else {
                let lost = Lost::new("the upstream gave no sign of life on its WebSocket");
                return (lost, CloseCode::Away);
            };
            heard
        };
        match heard {
            Some(Ok(Message::Text(text))) => {
                add(&table.counters.bytes_in, text.len() as u64);
                if !table.take(Heard::Whole(text.into())) {
                    pace.count();
                }
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Binary(_))) => {
                let lost = Lost::new("the upstream sent a binary frame; messages are text");
                return (lost, CloseCode::Unsupported);
            }
            Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. }))) => {
                count(&table.counters.oversize);
                return (Lost::too_large(max), CloseCode::Size);
            }
            Some(Err(error)) => {
                let lost = Lost::new("the upstream's WebSocket broke");
                return (Lost { cause: http::chain(&error), ..lost }, CloseCode::Protocol);
            }
            Some(Ok(Message::Close(frame))) => {
                let lost = Lost::new("the upstream closed its WebSocket");
                // Its reason is anybody's text; the code says enough.
                let cause = frame.map(|f| format!("code {}", u16::from(f.code)));
                return (Lost { cause: cause.unwrap_or_default(), ..lost }, CloseCode::Normal);
            }
            None => return (Lost::new("the upstream closed its WebSocket"), CloseCode::Normal),
        }
    }
}

/// When to close, and with which code.
#[derive(Clone)]
struct Goodbye {
    asked: CancellationToken,
    code: Arc<std::sync::OnceLock<CloseCode>>,
}

// Until told to stop, or until nobody takes anything any more; then `broken` says so.
async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut outbox: Outbox,
    table: Arc<Table>,
    goodbye: Goodbye,
    broken: CancellationToken,
) {
    let mut tick = tokio::time::interval(PING_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.reset();
    let lost = loop {
        let next = tokio::select! {
            biased;
            () = goodbye.asked.cancelled() => {
                let last = last_words(&mut sink, &mut outbox, &table.counters);
                let _ = timeout(LAST_WORDS, last).await;
                break closing();
            }
            next = outbox.next() => Some(next),
            _ = tick.tick() => None,
        };
        let (frame, awaited) = match next {
            None => (Message::Ping(bytes::Bytes::new()), None),
            Some(Outgoing { message, awaited }) => {
                add(&table.counters.bytes_out, message.len() as u64);
                match Utf8Bytes::try_from(message) {
                    Ok(text) => (Message::Text(text), awaited),
                    // What we send was read as JSON, which is UTF-8.
                    Err(_) => continue,
                }
            }
        };
        let stop = async {
            goodbye.asked.cancelled().await;
            // Small words of our own are the last ones then.
            if awaited.is_none() {
                tokio::time::sleep(LAST_WORDS).await;
            }
        };
        let outcome = tokio::select! {
            biased;
            () = stop => break closing(),
            outcome = sink.send(frame) => outcome,
        };
        if let Err(error) = outcome {
            // Closed by then: not a byte was written.
            if matches!(
                error,
                Error::ConnectionClosed
                    | Error::AlreadyClosed
                    | Error::Protocol(ProtocolError::SendAfterClosing)
            ) {
                awaited.inspect(|(_, slot)| slot.unsend());
            }
            broken.cancel();
            break Lost::new("the upstream does not take messages any more");
        }
    };
    outbox.close(&table, lost);
    let code = goodbye.code.get().copied().unwrap_or(CloseCode::Normal);
    let frame = CloseFrame { code, reason: Utf8Bytes::default() };
    let _ = timeout(CLOSE_TIME, sink.send(Message::Close(Some(frame)))).await;
}

async fn last_words<S: AsyncRead + AsyncWrite + Unpin>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    outbox: &mut Outbox,
    counters: &PipeCounters,
) -> Result<(), Error> {
    while let Some(message) = outbox.aside() {
        add(&counters.bytes_out, message.len() as u64);
        // Our own words are UTF-8.
        let Ok(text) = Utf8Bytes::try_from(message) else { continue };
        sink.send(Message::Text(text)).await?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
