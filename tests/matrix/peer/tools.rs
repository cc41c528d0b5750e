//! What a peer offers, and what its tools do.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{LEVELS, Line, Peer, Talk, meta, rank};
use crate::text::{Message, notification, quoted, raw, response};

/// Tools by name, as the peer lists them. The numbers are such as no float holds.
pub const TOOLS: [(&str, &str); 7] = [
    (
        "echo",
        r#"{"name":"echo","inputSchema":{"type":"object","properties":{"n":{"type":"number","multipleOf":1.10,"maximum":1e400,"minimum":-123456789012345678901234567890}},"x-unknown":{"b":1.0,"a":2}},"annotations":{"readOnlyHint":true,"x-odd":1.10},"x-unknown":[1e400,null]}"#,
    ),
    ("broke", r#"{"name":"broke","inputSchema":{"type":"object"}}"#),
    ("steps", r#"{"name":"steps","inputSchema":{"type":"object"}}"#),
    ("logs", r#"{"name":"logs","inputSchema":{"type":"object"}}"#),
    ("ask", r#"{"name":"ask","inputSchema":{"type":"object"}}"#),
    ("hang", r#"{"name":"hang","inputSchema":{"type":"object"}}"#),
    ("fresh", r#"{"name":"fresh","inputSchema":{"type":"object"},"x-odd":1.10}"#),
];

pub const PROMPTS: [(&str, &str); 3] = [
    ("greet", r#"{"name":"greet","x-odd":1.10}"#),
    ("part", r#"{"name":"part","arguments":[{"name":"who","x-odd":1e400}]}"#),
    ("pause", r#"{"name":"pause"}"#),
];

pub const RESOURCES: [(&str, &str); 3] = [
    ("file:///watched", r#"{"uri":"file:///watched","name":"w","size":10.0,"x-odd":1e400}"#),
    ("file:///other", r#"{"uri":"file:///other","name":"o"}"#),
    ("file:///third", r#"{"uri":"file:///third","name":"t"}"#),
];

pub const TEMPLATES: [(&str, &str); 3] = [
    ("file:///a/{n}", r#"{"uriTemplate":"file:///a/{n}","name":"a","x-odd":1.10}"#),
    ("file:///b/{n}", r#"{"uriTemplate":"file:///b/{n}","name":"b"}"#),
    ("file:///c/{n}", r#"{"uriTemplate":"file:///c/{n}","name":"c"}"#),
];

/// Members of results.
pub const GREETING: &str =
    r#""messages":[{"role":"user","content":{"type":"text","text":"hi"},"x-odd":1.10}]"#;
pub const CONTENTS: &str =
    r#""contents":[{"uri":"file:///watched","text":"w","x-odd":1e400}],"x-unknown":1.10"#;

/// What stands in the result of `echo` besides its text.
pub const UNKNOWN: &str = r#"{"b":1.0,"a":123456789012345678901234567890}"#;
/// The error of `broke`, but for the braces.
pub const BROKE: &str = r#"{"code":-31050,"message":"broke","data":null,"x-unknown":1.10}"#;
/// The token with which a peer of the newest revision finds its call again.
pub const STATE: &str = r#""state \u00e9 1.10""#;

/// The member and the items of a list.
pub fn list(method: &str, changed: bool) -> Option<(&'static str, Vec<&'static str>)> {
    let raw = |all: &[(&'static str, &'static str)]| all.iter().map(|(_, raw)| *raw).collect();
    Some(match method {
        "tools/list" => {
            let count = if changed { TOOLS.len() } else { TOOLS.len() - 1 };
            ("tools", raw(&TOOLS[..count]))
        }
        "prompts/list" => ("prompts", raw(&PROMPTS)),
        "resources/list" => ("resources", raw(&RESOURCES)),
        "resources/templates/list" => ("resourceTemplates", raw(&TEMPLATES)),
        _ => return None,
    })
}

pub fn not_found(modern: bool) -> String {
    let code = if modern { -32602 } else { -32002 };
    format!(r#"{{"code":{code},"message":"Resource not found","data":{{"n":1.10}}}}"#)
}

/// The params of the question of this kind.
pub fn question(kind: &str, at_least_2025_11: bool, modern: bool) -> (&'static str, String) {
    match kind {
        "form" => {
            let mode = if at_least_2025_11 { r#""mode":"form","# } else { "" };
            let schema = r#"{"type":"object","properties":{"n":{"type":"number","minimum":1.10}},"x-unknown":1e400}"#;
            let params = format!(r#"{{{mode}"message":"sure?","requestedSchema":{schema}}}"#);
            ("elicitation/create", params)
        }
        "url" => {
            let id = if modern { "" } else { r#","elicitationId":"e-1""# };
            let params = format!(
                r#"{{"mode":"url","message":"go","url":"https://pay.example/?n=1.10","x-odd":1e400{id}}}"#
            );
            ("elicitation/create", params)
        }
        "sampling" => {
            let text = r#"{"role":"user","content":{"type":"text","text":"hi"}}"#;
            let params = format!(r#"{{"messages":[{text}],"maxTokens":10,"temperature":0.10}}"#);
            ("sampling/createMessage", params)
        }
        _ => ("roots/list", "{}".into()),
    }
}

impl Peer {
    /// Carry out a call.
    pub(super) async fn call(
        &self,
        talk: &Arc<Talk>,
        line: &Line,
        id: &str,
        params: &Message,
        cancelled: &CancellationToken,
    ) {
        let say = |text: String| self.say(line, text);
        let text = |text: &str| {
            let content = format!(r#""content":[{{"type":"text","text":{}}}]"#, quoted(text));
            response(id, "result", &self.result(&content, false))
        };
        let arguments = params.raw(&["arguments"]).unwrap_or("{}".into());
        match params.text(&["name"]).unwrap_or_default().as_str() {
            "echo" => {
                let content = format!(
                    r#""content":[{{"type":"text","text":{},"x-odd":1e400}}],"_meta":{{"example.com/n":1.10}},"x-unknown":{UNKNOWN}"#,
                    quoted(&arguments)
                );
                say(response(id, "result", &self.result(&content, false)));
            }
            "broke" => say(response(id, "error", BROKE)),
            "steps" => {
                let token = params.raw(&["_meta", "progressToken"]).unwrap_or("null".into());
                for step in [r#""progress":0.10"#, STEP] {
                    let params = format!(r#"{{"progressToken":{token},{step}}}"#);
                    say(notification("notifications/progress", &params));
                }
                say(text("done"));
            }
            "logs" => {
                let wanted = if self.at.is_modern() {
                    params.text(&["_meta", &meta("logLevel")]).map(|l| rank(&l))
                } else {
                    Some(talk.level.load(Ordering::SeqCst))
                };
                for level in LEVELS {
                    if wanted.is_some_and(|wanted| rank(level) >= wanted) {
                        let data = r#"{"n":1.10}"#;
                        let log = format!(r#"{{"level":"{level}","logger":"l","data":{data}}}"#);
                        say(notification("notifications/message", &log));
                    }
                }
                say(text("logged"));
            }
            "ask" => match self.ask(talk, line, params, &arguments, cancelled).await {
                Ok(answer) => say(text(&answer)),
                Err(whole) => say(response(id, whole.0, &whole.1)),
            },
            "hang" => {
                let nonce = raw(&arguments, &["nonce"]).unwrap_or_default();
                self.note(format!("hangs {nonce}"));
                // Over HTTP the newest revision has no other word for it than the end of the stream.
                if self.at.is_stateless() {
                    line.closed().await;
                    self.note(format!("cancelled {nonce} stream"));
                } else {
                    cancelled.cancelled().await;
                    self.note(format!("cancelled {nonce} notification"));
                }
            }
            other => self.fault(&format!("called the tool {other}")),
        }
    }

    // The answer as it came, or what the call ends with for now.
    async fn ask(
        &self,
        talk: &Talk,
        line: &Line,
        params: &Message,
        arguments: &str,
        cancelled: &CancellationToken,
    ) -> Result<String, (&'static str, String)> {
        use weirkeeper::protocol::revision::Revision;
        let kind = Message(arguments.to_owned()).text(&["kind"]).unwrap_or_default();
        let named = self.at.revision >= Revision::R2025_11_25;
        let (method, question) = question(&kind, named, self.at.is_modern());
        if self.at.is_modern() {
            if let Some(answer) = params.raw(&["inputResponses", "q"]) {
                if params.raw(&["requestState"]).as_deref() != Some(STATE) {
                    self.fault("another requestState than the one given");
                }
                return Ok(answer);
            }
            let declared = params.raw(&["_meta", &meta("clientCapabilities")]).unwrap_or_default();
            let needed: &[&str] = match kind.as_str() {
                "form" => &["elicitation", "form"],
                "url" => &["elicitation", "url"],
                "sampling" => &["sampling"],
                _ => &["roots"],
            };
            if raw(&declared, needed).is_none() {
                let lacks = needed
                    .iter()
                    .rev()
                    .fold("{}".to_owned(), |inner, name| format!(r#"{{"{name}":{inner}}}"#));
                return Err((
                    "error",
                    format!(
                        r#"{{"code":-32021,"message":"Missing capability","data":{{"requiredCapabilities":{lacks}}}}}"#
                    ),
                ));
            }
            let request = format!(r#"{{"method":"{method}","params":{question}}}"#);
            return Err((
                "result",
                format!(
                    r#"{{"resultType":"input_required","inputRequests":{{"q":{request}}},"requestState":{STATE}}}"#
                ),
            ));
        }
        let id = format!(r#""q-{}""#, self.ids.fetch_add(1, Ordering::SeqCst));
        let (tx, answer) = oneshot::channel();
        talk.asked.lock().unwrap().insert(id.clone(), tx);
        let request =
            format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{question}}}"#);
        self.say(line, request);
        tokio::select! {
            answer = answer => {
                let answer = answer.expect("it is only taken out to be answered");
                Ok(answer.raw(&["result"]).or(answer.raw(&["error"])).unwrap_or_default())
            }
            () = cancelled.cancelled() => Err(("error", r#"{"code":-1,"message":"cancelled"}"#.into())),
        }
    }
}

/// The last step of `steps`.
pub const STEP: &str = r#""progress":1.10,"total":30.00,"message":"half""#;
