//! Requests that are ready to be sent but for their id and nonce, and what a right answer is.

use std::collections::HashMap;

use memchr::memmem;
use serde_json::json;

use crate::client::{params, request};
use crate::job::{Ask, Era, Route};
use crate::mock::MARK;
use crate::wire::{self, Answer, Pattern};

/// Stand-ins in a request, of the length of what takes their place.
const ID: &str = "1000000000";
const NONCE: &str = "nonce-0123456789";

/// A request.
pub struct Request {
    /// As it is sent.
    pub bytes: Vec<u8>,
    /// Where its id stands.
    pub id_at: Option<usize>,
    /// Where its nonce stands.
    pub nonce_at: Option<usize>,
    /// Who is to answer.
    upstream: String,
}

impl Request {
    /// A request for a route.
    pub fn new(
        ask: &Ask,
        route: &Route,
        key: Option<&str>,
        session: Option<&str>,
        era: Era,
    ) -> Request {
        if let Ask::File { .. } = ask {
            let bytes = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", route.path, route.addr);
            let upstream = route.upstream.clone();
            return Request { bytes: bytes.into_bytes(), id_at: None, nonce_at: None, upstream };
        }
        let (method, name, body) = body(ask, &route.tool, era);
        let bytes =
            request((route.addr, &route.path), key, session, era, Some((method, name)), &body);
        Request::find(bytes, &route.upstream)
    }

    /// A call as a line on a pipe.
    pub fn line(ask: &Ask, tool: &str, upstream: &str) -> Request {
        let (_, _, mut body) = body(ask, tool, Era::Legacy);
        body.push('\n');
        Request::find(body.into_bytes(), upstream)
    }

    fn find(bytes: Vec<u8>, upstream: &str) -> Request {
        let id_at = memmem::rfind(&bytes, format!("\"id\":{ID}").as_bytes()).map(|at| at + 5);
        let nonce_at = memmem::find(&bytes, NONCE.as_bytes());
        Request { bytes, id_at, nonce_at, upstream: upstream.into() }
    }

    /// The nonce as it stands.
    pub fn nonce(&self) -> &[u8] {
        self.nonce_at.map_or(&[], |at| &self.bytes[at..at + NONCE.len()])
    }
}

// Method, name, and the message.
fn body<'a>(ask: &Ask, tool: &'a str, era: Era) -> (&'static str, Option<&'a str>, String) {
    let (method, name, own) = match ask {
        Ask::Call { size, sse, delay_ms } => {
            let mut arguments = json!({"nonce": NONCE, "size": size});
            if *sse {
                arguments["sse"] = json!(true);
            }
            if *delay_ms > 0 {
                arguments["delay_ms"] = json!(delay_ms);
            }
            ("tools/call", Some(tool), json!({"name": tool, "arguments": arguments}))
        }
        Ask::List { .. } | Ask::File { .. } => ("tools/list", None, json!({})),
    };
    let own = params(era, own);
    let body =
        format!("{{\"jsonrpc\":\"2.0\",\"id\":{ID},\"method\":\"{method}\",\"params\":{own}}}");
    (method, name, body)
}

/// Knows what right answers are.
pub struct Check {
    ask: Ask,
    pattern: Pattern,
    text: memmem::Finder<'static>,
    id: memmem::Finder<'static>,
    // Of each request, the first answer, and where its id stands.
    first: HashMap<String, (Vec<u8>, Option<usize>)>,
    bytes: usize,
}

impl Check {
    /// For answers to this.
    pub fn new(ask: Ask) -> Check {
        Check {
            ask,
            pattern: Pattern::default(),
            text: memmem::Finder::new(b"\"text\":\""),
            id: memmem::Finder::new(b"\"id\":"),
            first: HashMap::new(),
            bytes: 0,
        }
    }

    /// How large the last answer was.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Check an answer.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(
        &mut self,
        answer: &Answer<'_>,
        request: &Request,
        id: u64,
        nonce: &[u8],
    ) -> Result<(), String> {
        let message = wire::message(answer);
        self.bytes = message.len();
        let wrong = |what: &str| {
            let text = String::from_utf8_lossy(&message[..message.len().min(300)]);
            Err(format!("{what}: HTTP {} {text}", answer.head.status))
        };
        if answer.head.status != 200 {
            return wrong("the status");
        }
        let checked = match self.ask {
            Ask::Call { .. } => self.message(message, request, id, nonce).map_err(Into::into),
            _ => self.same(message, request, id),
        };
        checked.or_else(|what| wrong(&what))
    }

    /// Check the message of an answer to a call.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn message(
        &self,
        message: &[u8],
        request: &Request,
        id: u64,
        nonce: &[u8],
    ) -> Result<(), &'static str> {
        let Ask::Call { size, .. } = self.ask else { return Err("no call") };
        if !self.has_id(message, id) {
            return Err("the id");
        }
        let Some(at) = self.text.find(message) else { return Err("no text") };
        let text = &message[at + 8..];
        let name = request.upstream.as_bytes();
        let begin = name.len() + 1 + nonce.len() + 1;
        if text.len() < begin + size + 1 || text[begin + size] != b'"' {
            return Err("the length of the text");
        }
        if !text.starts_with(name) || text[name.len()] != b' ' {
            return Err("another upstream");
        }
        if &text[name.len() + 1..begin - 1] != nonce || text[begin - 1] != b' ' {
            return Err("the nonce");
        }
        if !self.pattern.matches(nonce, &text[begin..begin + size]) {
            return Err("the text");
        }
        Ok(())
    }

    fn has_id(&self, message: &[u8], id: u64) -> bool {
        let Some(at) = self.id.find(message) else { return false };
        let mut digits = [0; 10];
        crate::upstream::put_number(&mut digits, id as usize);
        let rest = &message[at + 5..];
        rest.starts_with(&digits) && !rest.get(10).is_some_and(u8::is_ascii_digit)
    }

    // The first answer is read; all others are equal to it but for the id.
    fn same(&mut self, message: &[u8], request: &Request, id: u64) -> Result<(), String> {
        let (listed, tools) = match self.ask {
            Ask::List { tools } => (true, tools),
            Ask::File { tools } => (false, tools),
            Ask::Call { .. } => return Err("a call is no list".into()),
        };
        if listed && !self.has_id(message, id) {
            return Err("the id".into());
        }
        let Some((first, id_at)) = self.first.get(&request.upstream) else {
            let list: serde_json::Value =
                serde_json::from_slice(message).map_err(|e| format!("no JSON: {e}"))?;
            let named = |t: &&serde_json::Value| {
                t["description"].as_str().is_some_and(|d| d.starts_with(MARK))
            };
            let all = list["result"]["tools"].as_array();
            let found = all.map_or(0, |all| all.iter().filter(named).count());
            if found != tools {
                return Err(format!("{found} tools instead of {tools}"));
            }
            let at = self.id.find(message).filter(|_| listed).map(|at| at + 5);
            self.first.insert(request.upstream.clone(), (message.to_vec(), at));
            return Ok(());
        };
        let equal = match id_at {
            None => first == message,
            Some(at) => {
                message.len() == first.len()
                    && message[..*at] == first[..*at]
                    && message[at + 10..] == first[at + 10..]
            }
        };
        if equal { Ok(()) } else { Err("another list than before".into()) }
    }
}
