//! Where a redirect leads, and whether we go there.
//!
//! Decided: a message is sent on only for 307 and 308, whose sender says that it has done nothing
//! and wants the same request elsewhere. 301 and 302 let a client turn a POST into a GET, which
//! would lose the message, and 302 and 303 may mean that the request *was* carried out, so a POST
//! is never repeated for them. A GET follows 301 and 302 as well. Nothing leaves the origin: the
//! configured credential is for that one only (RFC 9110, 15.4).

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode, Uri};

use crate::failure::{Delivery, Fault, Reason};

/// Most redirects in a row. One for a missing slash and one for a moved path are known; more is a
/// circle.
pub const REDIRECTS_MAX: usize = 3;

/// Whether the status is one that names another place.
pub fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The place to send the same request to, after `hops` redirects were followed already.
pub fn follow(
    method: &Method,
    status: StatusCode,
    from: &Uri,
    location: Option<&HeaderValue>,
    hops: usize,
) -> Result<Uri, Fault> {
    let delivery = match status.as_u16() {
        302 | 303 if method == Method::POST => Delivery::Unknown,
        _ => Delivery::Refused,
    };
    let refuse = |text: &str| Fault::new(Reason::UpstreamStatus, delivery, text);
    let to = location
        .and_then(|value| value.to_str().ok())
        .and_then(|value| resolve(from, value))
        .ok_or_else(|| refuse("the upstream redirects to no usable address"))?;
    if origin(from) != origin(&to) {
        return Err(refuse("redirect to another origin refused"));
    }
    let kept = match status.as_u16() {
        307 | 308 => true,
        301 | 302 => method == Method::GET,
        _ => false,
    };
    if !kept {
        let code = status.as_u16();
        return Err(refuse(&format!("redirect refused: HTTP {code} would lose the message")));
    }
    if hops >= REDIRECTS_MAX {
        return Err(refuse("too many redirects"));
    }
    Ok(to)
}

/// The place that a reference names, if it is one of the same origin.
pub fn within(from: &Uri, reference: &str) -> Result<Uri, Elsewhere> {
    let to = resolve(from, reference).ok_or(Elsewhere::Nowhere)?;
    if origin(from) == origin(&to) { Ok(to) } else { Err(Elsewhere::OtherOrigin) }
}

/// Why a reference is not followed.
pub enum Elsewhere {
    /// It names no usable address.
    Nowhere,
    /// The configured credential is not for that one.
    OtherOrigin,
}

fn origin(uri: &Uri) -> (String, String, u16) {
    let scheme = uri.scheme_str().unwrap_or("").to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    (scheme, uri.host().unwrap_or("").to_ascii_lowercase(), port)
}

// The forms of a reference that servers send (RFC 3986, 4.2). Dot segments and credentials in the
// authority have no honest use here and are not resolved.
fn resolve(from: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?.trim();
    let path = location.split('?').next()?;
    if location.is_empty() || path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return None;
    }
    let scheme = from.scheme_str()?;
    let authority = from.authority()?.as_str();
    let has_scheme = location.split(['/', '?']).next()?.contains(':');
    let absolute = if has_scheme {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", from.path())
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let to: Uri = absolute.parse().ok()?;
    (to.scheme().is_some() && !to.authority()?.as_str().contains('@')).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(method: &Method, code: u16, from: &str, location: &str) -> Result<String, Fault> {
        let value = HeaderValue::from_str(location).unwrap();
        let from = from.parse().unwrap();
        follow(method, StatusCode::from_u16(code).unwrap(), &from, Some(&value), 0)
            .map(|uri| uri.to_string())
    }

    #[test]
    fn every_form_of_reference_within_the_origin() {
        for (location, wanted) in [
            ("/mcp/", "https://crm.example/mcp/"),
            ("//CRM.example:443/x", "https://CRM.example:443/x"),
            ("https://crm.example/y?z=1#top", "https://crm.example/y?z=1"),
            ("?z=2", "https://crm.example/a/mcp?z=2"),
            ("other", "https://crm.example/a/other"),
        ] {
            let to = go(&Method::POST, 307, "https://crm.example/a/mcp?k=1", location);
            assert_eq!(to.unwrap(), wanted, "{location}");
        }
    }

    #[test]
    fn another_origin_is_refused_whatever_differs() {
        for location in [
            "http://crm.example/mcp",
            "https://crm.example:8443/mcp",
            "https://crm.example.evil.example/mcp",
            "//evil.example/mcp",
        ] {
            let fault = go(&Method::POST, 308, "https://crm.example/mcp", location).unwrap_err();
            assert_eq!(fault.text, "redirect to another origin refused", "{location}");
            assert_eq!((fault.reason, fault.delivery), (Reason::UpstreamStatus, Delivery::Refused));
        }
    }

    #[test]
    fn addresses_with_tricks_are_refused() {
        for location in
            ["", "#", "https://a@crm.example/", "/a/../b", "./b", "..", "mailto:a", " ", "/\"<>"]
        {
            let fault = go(&Method::POST, 307, "https://crm.example/mcp", location).unwrap_err();
            assert!(!fault.text.contains("crm.example"), "{location}: {}", fault.text);
        }
    }

    #[test]
    fn a_message_is_sent_again_only_where_nothing_was_done() {
        let at = |method: &Method, code| go(method, code, "http://a/b", "/c");
        for code in [307, 308] {
            assert!(at(&Method::POST, code).is_ok() && at(&Method::DELETE, code).is_ok());
        }
        for (code, delivery) in
            [(301, Delivery::Refused), (302, Delivery::Unknown), (303, Delivery::Unknown)]
        {
            assert_eq!(at(&Method::POST, code).unwrap_err().delivery, delivery, "{code}");
        }
        assert!(at(&Method::GET, 301).is_ok() && at(&Method::GET, 302).is_ok());
        assert!(at(&Method::GET, 303).is_err() && at(&Method::DELETE, 302).is_err());
    }

    #[test]
    fn circles_end() {
        let value = HeaderValue::from_static("/b");
        let from = "http://a/b".parse().unwrap();
        let status = StatusCode::TEMPORARY_REDIRECT;
        let at = |hops| follow(&Method::POST, status, &from, Some(&value), hops);
        assert!(at(REDIRECTS_MAX - 1).is_ok());
        assert_eq!(at(REDIRECTS_MAX).unwrap_err().text, "too many redirects");
    }
}
