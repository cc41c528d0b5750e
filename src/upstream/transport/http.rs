//! Streamable HTTP towards an upstream: one POST per message, the answer as JSON or as events.
//!
//! Each upstream has a client and pool of its own, so one that hangs cannot use up another's.
//! A request whose future is dropped closes its response stream; in the newest revision that *is*
//! the cancellation. The pool repeats a request only if the connection was found closed before
//! any of it was written (hyper hands such a request back unsent), so no write goes twice.

pub mod answer;
pub mod client;
pub mod retry_after;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, USER_AGENT,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use tokio::sync::mpsc;

use crate::config::HttpConfig;
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::header;
use crate::protocol::message::{Frame, Kind};
use crate::protocol::sse;

use super::{OnNotice, Unasked};
use client::Client;

/// Most redirects that are followed.
const REDIRECTS_MAX: usize = 3;
/// How much of an error's body is read.
const ERROR_BODY_MAX: usize = 64 << 10;
/// How long the end of a session may take: nobody waits for it.
const DELETE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the wire counted.
#[derive(Default, Debug)]
pub struct HttpCounters {
    /// Bytes of request bodies.
    pub sent_bytes: AtomicU64,
    /// Bytes of response bodies.
    pub received_bytes: AtomicU64,
    /// Answers to nothing that was asked.
    pub unmatched_answers: AtomicU64,
    /// Messages that nobody had room for.
    pub dropped_messages: AtomicU64,
}

/// One endpoint.
#[derive(Clone)]
pub struct HttpWire(Arc<Inner>);

struct Inner {
    client: Client,
    uri: Uri,
    headers: HeaderMap,
    max_message: usize,
    counters: Arc<HttpCounters>,
}

/// One message and the headers that belong to it.
pub struct Outgoing<'a> {
    /// Its JSON-RPC id.
    pub id: u64,
    /// The message.
    pub message: Bytes,
    /// Headers besides the configured ones.
    pub headers: &'a [(HeaderName, HeaderValue)],
}

/// The answer to a request.
pub struct Answer {
    /// The message: a result or an error.
    pub frame: Frame,
    /// HTTP status it came with.
    pub status: u16,
    /// `Mcp-Session-Id` of the response.
    pub session: Option<HeaderValue>,
}

/// A fault and the HTTP status behind it.
#[derive(Debug)]
pub struct HttpFault {
    /// What went wrong.
    pub fault: Fault,
    /// HTTP status, if there was one.
    pub status: Option<u16>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum RequestError {
    /// A fault.
    Fault(HttpFault),
    /// The event stream ended first. An old session can be asked for the rest.
    StreamEnded {
        /// The last event id seen.
        last_event_id: Option<String>,
        /// How long the upstream wants us to wait.
        retry: Option<Duration>,
    },
}

impl From<Fault> for RequestError {
    fn from(fault: Fault) -> Self {
        RequestError::Fault(HttpFault { fault, status: None })
    }
}

/// Why there is no stream.
#[derive(Debug)]
pub enum StreamRefused {
    /// The upstream has none (405, or another refusal that will not change).
    NotOffered,
    /// Not now.
    Fault(Fault),
}

impl StreamRefused {
    /// Whether asking again is of no use.
    pub fn for_good(&self) -> bool {
        matches!(self, StreamRefused::NotOffered)
    }
}

impl HttpWire {
    /// A wire to the configured endpoint; connects when used.
    pub fn new(
        upstream: Arc<str>,
        config: &HttpConfig,
        max_message: usize,
        counters: Arc<HttpCounters>,
    ) -> Result<HttpWire, Fault> {
        let wrong = |what: &str| {
            Fault::new(Reason::ConnectFailed, Delivery::NotSent, format!("the {what} is not valid"))
        };
        let uri: Uri = config.url.expose().parse().map_err(|_| wrong("configured URL"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let name: HeaderName = name.parse().map_err(|_| wrong("configured header name"))?;
            let mut value = HeaderValue::from_str(value.expose())
                .map_err(|_| wrong("value of a configured header"))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        if let Some(bearer) = &config.bearer {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", bearer.expose()))
                .map_err(|_| wrong("value of bearer"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("weirkeeper/", env!("CARGO_PKG_VERSION"))),
        );
        let client = Client::new(&upstream, config, uri.scheme_str() == Some("https"))?;
        Ok(HttpWire(Arc::new(Inner { client, uri, headers, max_message, counters })))
    }

    /// Send one request and wait for its answer. Notifications on the response stream go to
    /// `on_notice`, requests to `unasked`.
    pub async fn request(
        &self,
        out: Outgoing<'_>,
        on_notice: OnNotice<'_>,
        unasked: &mpsc::Sender<Unasked>,
    ) -> Result<Answer, RequestError> {
        let id = out.id;
        let response = self.post(out).await?;
        let status = response.status().as_u16();
        let session = response.headers().get(header::SESSION_ID).cloned();
        if !response.status().is_success() {
            return self.refused(id, response).await;
        }
        let frame = match media_type(response.headers()).as_deref() {
            Some("application/json") => {
                let bytes = self.collect(response.into_body(), self.0.max_message).await?;
                let frame = answer::parse(bytes)?;
                answer::check_id(&frame, id)?;
                frame
            }
            Some("text/event-stream") => {
                self.from_events(id, response.into_body(), on_notice, unasked).await?
            }
            _ => {
                return Err(Fault::new(
                    Reason::Garbled,
                    Delivery::Unknown,
                    "the upstream's answer is neither JSON nor an event stream",
                )
                .into());
            }
        };
        Ok(Answer { frame, status, session })
    }

    /// Send one notification or response.
    pub async fn notify(&self, out: Outgoing<'_>) -> Result<(), Fault> {
        let response = match self.post(out).await {
            Ok(response) => response,
            Err(RequestError::Fault(f)) => return Err(f.fault),
            Err(RequestError::StreamEnded { .. }) => return Ok(()),
        };
        if response.status().is_success() {
            return Ok(());
        }
        Err(answer::status_fault(response.status(), response.headers()).fault)
    }

    /// Open the stream of an old session (2025-11-25 basic/transports, "listening for messages").
    pub async fn stream(
        &self,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<EventStream, StreamRefused> {
        let mut request = self.build(Method::GET, &self.0.uri, headers, Bytes::new());
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        let response = self.0.client.send(request).await.map_err(StreamRefused::Fault)?;
        let events = media_type(response.headers()).as_deref() == Some("text/event-stream");
        match response.status() {
            status if status.is_success() && events => Ok(EventStream {
                body: response.into_body(),
                reader: sse::Reader::new(self.0.max_message),
                ready: Vec::new().into_iter(),
            }),
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(StreamRefused::Fault(answer::status_fault(status, response.headers()).fault))
            }
            _ => Err(StreamRefused::NotOffered),
        }
    }

    /// End a session; what comes of it is of no interest.
    pub async fn delete(&self, headers: &[(HeaderName, HeaderValue)]) {
        let request = self.build(Method::DELETE, &self.0.uri, headers, Bytes::new());
        let _ = tokio::time::timeout(DELETE_TIMEOUT, self.0.client.send(request)).await;
    }

    fn build(
        &self,
        method: Method,
        uri: &Uri,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = self.0.headers.clone();
        for (name, value) in headers {
            request.headers_mut().insert(name, value.clone());
        }
        request
    }

    async fn post(&self, out: Outgoing<'_>) -> Result<Response<Incoming>, RequestError> {
        let mut uri = self.0.uri.clone();
        self.0.counters.sent_bytes.fetch_add(out.message.len() as u64, Ordering::Relaxed);
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.build(Method::POST, &uri, out.headers, out.message.clone());
            let headers = request.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
            let response = self.0.client.send(request).await?;
            // Only these two keep the method and the body (RFC 9110, 15.4).
            if !matches!(
                response.status(),
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
            ) {
                return Ok(response);
            }
            uri = answer::redirect(&uri, response.headers().get(LOCATION))?;
        }
        Err(Fault::new(Reason::UpstreamStatus, Delivery::Refused, "too many redirects").into())
    }

    async fn refused(&self, id: u64, response: Response<Incoming>) -> Result<Answer, RequestError> {
        let status = response.status();
        let fault = answer::status_fault(status, response.headers());
        let session = response.headers().get(header::SESSION_ID).cloned();
        // What was refused for its rate or its key is that, whatever else the body says.
        if matches!(fault.fault.reason, Reason::Throttled | Reason::CredentialRefused) {
            return Err(RequestError::Fault(fault));
        }
        let Ok(bytes) = self.collect(response.into_body(), ERROR_BODY_MAX).await else {
            return Err(RequestError::Fault(fault));
        };
        match Frame::scan(bytes) {
            Ok(frame)
                if frame.kind() == Kind::Error
                    && (frame.id().is_none() || answer::check_id(&frame, id).is_ok()) =>
            {
                Ok(Answer { frame, status: status.as_u16(), session })
            }
            _ => Err(RequestError::Fault(fault)),
        }
    }

    async fn collect(&self, body: Incoming, max: usize) -> Result<Bytes, Fault> {
        match http_body_util::Limited::new(body, max).collect().await {
            Ok(collected) => {
                let bytes = collected.to_bytes();
                self.0.counters.received_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Ok(bytes)
            }
            Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(Fault::new(
                Reason::TooLarge,
                Delivery::Unknown,
                format!("the upstream's answer is larger than {max} bytes (max_message)"),
            )),
            Err(e) => Err(answer::broken().because(e)),
        }
    }

    async fn from_events(
        &self,
        id: u64,
        mut body: Incoming,
        on_notice: OnNotice<'_>,
        unasked: &mpsc::Sender<Unasked>,
    ) -> Result<Frame, RequestError> {
        let mut reader = sse::Reader::new(self.0.max_message);
        let mut events = Vec::new();
        let (mut last_event_id, mut retry) = (None, None);
        while let Some(frame) = body.frame().await {
            let chunk = match frame.map_err(|e| answer::broken().because(e))?.into_data() {
                Ok(chunk) => chunk,
                Err(_trailers) => continue,
            };
            self.0.counters.received_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            reader.feed(chunk, &mut events).map_err(|e| {
                Fault::new(Reason::TooLarge, Delivery::Unknown, format!("{e} (max_message)"))
            })?;
            for event in events.drain(..) {
                last_event_id = event.id.or(last_event_id);
                retry = event.retry.map(Duration::from_millis).or(retry);
                if event.data.is_empty() {
                    continue;
                }
                let message = answer::parse(event.data)?;
                match message.kind() {
                    Kind::Notification => on_notice(message),
                    Kind::Request => {
                        if unasked.try_send(Unasked::Request(message)).is_err() {
                            self.0.counters.dropped_messages.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Kind::Result | Kind::Error if answer::check_id(&message, id).is_ok() => {
                        return Ok(message);
                    }
                    Kind::Error if message.id().is_none() => return Ok(message),
                    Kind::Result | Kind::Error => {
                        self.0.counters.unmatched_answers.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
        Err(RequestError::StreamEnded { last_event_id, retry })
    }
}

/// The stream of an old session.
pub struct EventStream {
    body: Incoming,
    reader: sse::Reader,
    ready: std::vec::IntoIter<sse::Event>,
}

impl EventStream {
    /// The next message; `None` when the stream has ended or is broken.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            for event in self.ready.by_ref() {
                if event.data.is_empty() {
                    continue;
                }
                if let Ok(frame) = Frame::scan(event.data) {
                    return Some(frame);
                }
            }
            let chunk = match self.body.frame().await?.ok()?.into_data() {
                Ok(chunk) => chunk,
                Err(_trailers) => continue,
            };
            let mut events = Vec::new();
            self.reader.feed(chunk, &mut events).ok()?;
            self.ready = events.into_iter();
        }
    }
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next()?.trim().to_ascii_lowercase())
}
