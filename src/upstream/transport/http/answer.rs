//! What an HTTP response means.

use bytes::Bytes;
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::{HeaderMap, StatusCode, Uri};

use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::message::Frame;

use super::HttpFault;
use super::retry_after;

/// One message out of a body or event.
pub fn parse(bytes: Bytes) -> Result<Frame, Fault> {
    Frame::scan(bytes).map_err(|e| {
        Fault::new(Reason::Garbled, Delivery::Unknown, "the upstream's answer is no valid message")
            .because(e)
    })
}

/// The answer is to what we asked.
pub fn check_id(frame: &Frame, id: u64) -> Result<(), Fault> {
    if frame.id().is_some_and(|got| got == id.to_string().as_bytes()) {
        return Ok(());
    }
    Err(Fault::new(
        Reason::Garbled,
        Delivery::Unknown,
        "the upstream's answer has another id than the request",
    ))
}

/// The connection broke while the answer was on its way.
pub fn broken() -> Fault {
    Fault::new(
        Reason::ConnectionLost,
        Delivery::Unknown,
        "the connection broke before the answer was complete",
    )
}

/// The fault that a status stands for when the body carries no MCP message.
pub fn status_fault(status: StatusCode, headers: &HeaderMap) -> HttpFault {
    let code = status.as_u16();
    let after = headers
        .get(RETRY_AFTER)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| retry_after::parse(v, std::time::SystemTime::now()));
    let fault = match code {
        401 | 403 => Fault::new(
            Reason::CredentialRefused,
            Delivery::Refused,
            format!("the upstream refuses the gateway's credential (HTTP {code})"),
        ),
        429 | 503 => Fault::new(
            Reason::Throttled,
            Delivery::Refused,
            format!("the upstream asks for a pause (HTTP {code})"),
        )
        .retry_after(after),
        // A proxy in front of the upstream says these while the upstream may be at work.
        500.. => Fault::new(
            Reason::UpstreamStatus,
            Delivery::Unknown,
            format!("the upstream fails with HTTP {code}"),
        ),
        _ => Fault::new(
            Reason::UpstreamStatus,
            Delivery::Refused,
            format!("the upstream answers with HTTP {code}"),
        ),
    };
    HttpFault { fault, status: Some(code) }
}

/// Where a redirect leads, if it stays with the same origin: a credential never goes elsewhere.
pub fn redirect(from: &Uri, location: Option<&HeaderValue>) -> Result<Uri, Fault> {
    let refuse = |text: &str| Fault::new(Reason::UpstreamStatus, Delivery::Refused, text);
    let location = location
        .and_then(|v| v.to_str().ok())
        .ok_or_else(|| refuse("the upstream redirects without saying where"))?;
    let to: Uri = if location.starts_with('/') && !location.starts_with("//") {
        let mut parts = from.clone().into_parts();
        parts.path_and_query =
            Some(location.parse().map_err(|_| refuse("the upstream redirects to no valid URL"))?);
        Uri::from_parts(parts).map_err(|_| refuse("the upstream redirects to no valid URL"))?
    } else {
        location.parse().map_err(|_| refuse("the upstream redirects to no valid URL"))?
    };
    let origin = |u: &Uri| {
        let scheme = u.scheme_str().unwrap_or("").to_owned();
        let port = u.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        (scheme, u.host().unwrap_or("").to_ascii_lowercase(), port)
    };
    if origin(from) != origin(&to) {
        return Err(refuse("the upstream redirects to another origin, which is not followed"));
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_with_their_origin() {
        let from: Uri = "https://a.example/mcp".parse().unwrap();
        let to = |l: &str| {
            redirect(&from, Some(&HeaderValue::from_str(l).unwrap())).map(|u| u.to_string()).ok()
        };
        assert_eq!(to("/mcp/").as_deref(), Some("https://a.example/mcp/"));
        assert_eq!(to("https://A.example:443/x").as_deref(), Some("https://A.example:443/x"));
        for elsewhere in [
            "https://b.example/mcp",
            "http://a.example/mcp",
            "//b.example/x",
            "https://a.example:8443/",
        ] {
            assert_eq!(to(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn statuses_say_whether_something_may_have_happened() {
        let f =
            |code: u16| status_fault(StatusCode::from_u16(code).unwrap(), &HeaderMap::new()).fault;
        assert_eq!(
            (f(401).reason, f(401).delivery),
            (Reason::CredentialRefused, Delivery::Refused)
        );
        assert_eq!((f(429).reason, f(429).delivery), (Reason::Throttled, Delivery::Refused));
        assert_eq!((f(502).reason, f(502).delivery), (Reason::UpstreamStatus, Delivery::Unknown));
        assert_eq!((f(404).reason, f(404).delivery), (Reason::UpstreamStatus, Delivery::Refused));
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        let after = status_fault(StatusCode::SERVICE_UNAVAILABLE, &headers).fault.retry_after;
        assert_eq!(after, Some(std::time::Duration::from_secs(7)));
    }
}
