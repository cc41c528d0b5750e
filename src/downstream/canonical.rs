//! A checked message becomes a call, whichever era and transport it came by.

use std::sync::Arc;

use crate::call::{Call, Consumer, Form, Strays};
use crate::observe::record::Record;
use crate::protocol::capability::Askable;
use crate::protocol::message::Frame;
use crate::protocol::meta::{Members, RequestMeta};
use crate::protocol::method::Method;
use crate::protocol::revision::{Era, Revision};
use crate::protocol::task::Tasks;

use super::Edge;

/// W3C trace context as HTTP headers bring it.
pub type TraceHeaders = Option<(Box<str>, Option<Box<str>>)>;

/// A call with its opened record.
pub struct Opened {
    /// The call, in one place: its way goes on through several hands.
    pub call: Box<Call>,
    /// Its record.
    pub record: Record,
}

/// Make a call of a request. The caller can be asked what its handshake or request declared.
pub fn open(
    edge: &Edge,
    transport: &'static str,
    consumer: &Arc<Consumer>,
    method: &'static Method,
    frame: Frame,
    meta: RequestMeta,
    revision: Revision,
    (askable, session): (Askable, Option<Arc<str>>),
    trace_headers: TraceHeaders,
) -> Opened {
    let form = match revision.era() {
        Era::Modern => Form::Canonical,
        Era::Legacy => Form::Plain,
    };
    let state = || {
        let raw = meta.rest.iter().find(|(k, _)| &**k == "tracestate").map(|(_, v)| v)?;
        serde_json::from_str::<Box<str>>(raw).ok()
    };
    // What the message itself says goes before what its carrier says.
    let context = meta.traceparent.clone().map(|p| (p, state())).or(trace_headers);
    let mut record = Record::open(
        &edge.gateway.observe,
        &consumer.name,
        method.name,
        transport,
        revision.as_str(),
        context.as_ref().map(|(p, s)| (&**p, s.as_deref())),
    );
    record.bytes_in(frame.bytes().len());
    let call = Box::new(Call {
        consumer: consumer.clone(),
        method,
        frame,
        meta,
        form,
        askable,
        strays: Strays::default(),
        tasks: Tasks::None,
        task: None,
        owner: std::sync::OnceLock::new(),
        earlier: None,
        key: std::sync::OnceLock::new(),
        asides: None,
        session,
        revision,
    });
    Opened { call, record }
}

/// The `_meta` of a request's params: `None` if there is none. An error text if it is not an
/// object or says something twice.
pub fn meta_of(frame: &Frame) -> Result<Option<RequestMeta>, String> {
    let wrong = |e| format!("params._meta: {e}");
    if frame.index().is_some() {
        return RequestMeta::of(frame).transpose().map_err(wrong);
    }
    let Some(params) = frame.params() else { return Ok(None) };
    if params.first() != Some(&b'{') {
        return Err("params must be an object".into());
    }
    let members = Members::read(&params).map_err(|e| format!("params: {e}"))?;
    match members.get("_meta") {
        None => Ok(None),
        Some(raw) => RequestMeta::read(raw.get().as_bytes()).map(Some).map_err(wrong),
    }
}
