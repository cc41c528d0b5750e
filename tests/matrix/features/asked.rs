//! An upstream asks in the middle of a call: its caller is asked, and nobody else; the upstream
//! gets the very answer.

use weirkeeper::protocol::revision::Revision;

use super::{Asked, Mark, check, text_of, tool};
use crate::axes::Feature;
use crate::caller::Caller;
use crate::peer::Peer;
use crate::peer::tools::question as asked_of;
use crate::text::{Message, members};

/// The kind as the tool knows it, and what is answered.
fn kind(feature: Feature) -> (&'static str, &'static str) {
    match feature {
        Feature::Form => (
            "form",
            r#"{"action":"accept","content":{"n":1.10,"big":123456789012345678901234567890}}"#,
        ),
        Feature::Url => ("url", r#"{"action":"accept","x-odd":1e400}"#),
        Feature::Sampling => (
            "sampling",
            r#"{"role":"assistant","content":{"type":"text","text":"ho"},"model":"m","x-odd":1.10}"#,
        ),
        _ => ("roots", r#"{"roots":[{"uri":"file:///r","x-odd":1e400}]}"#),
    }
}

/// Have the upstream ask.
pub async fn question(caller: &Caller, peer: &Peer, feature: Feature) -> Mark {
    let (kind, answer) = kind(feature);
    let asked = Asked::default();
    let call = tool(peer, "ask", &format!(r#"{{"kind":"{kind}"}}"#));
    let respond = |method: &str, params: &Message| {
        asked.lock().unwrap().push((method.to_owned(), params.0.clone()));
        answer.to_owned()
    };
    let said = match caller.converse(&call, &respond).await {
        Ok(said) => said.last().cloned().unwrap(),
        Err(text) => return Mark::Fails(text),
    };
    let asked = asked.into_inner().unwrap();
    if let Some(rule) = feature.forbidden(caller.at, peer.at) {
        return match refusal(caller, peer, feature, &said, &asked) {
            Ok(()) => Mark::Refused(rule),
            Err(text) => Mark::Fails(text),
        };
    }
    exactly(caller, peer, kind, &asked)
        .and_then(|()| check(text_of(&said)? == answer, || format!("it got {}", said.0)))
        .into()
}

// The question as the upstream put it.
fn exactly(
    caller: &Caller,
    peer: &Peer,
    kind: &str,
    asked: &[(String, String)],
) -> Result<(), String> {
    let named = peer.at.revision >= Revision::R2025_11_25;
    let (method, params) = asked_of(kind, named, peer.at.is_modern());
    let [(got_method, got)] = asked else { return Err(format!("asked {asked:?}")) };
    let (mut expected, mut seen) = (members(&params), members(got));
    // 2025-11-25 client/elicitation: every URL has an id there, and nowhere else.
    if kind == "url" && caller.at.revision == Revision::R2025_11_25 {
        check(seen.remove("elicitationId").is_some(), || format!("no id: {got}"))?;
        expected.remove("elicitationId");
    }
    // 2025-06-18 client/elicitation: forms are all there is, and nothing says so.
    if kind == "form" && caller.at.revision == Revision::R2025_06_18 {
        expected.remove("mode");
    }
    check(got_method == method && seen == expected, || format!("asked {got} for {params}"))
}

// What cannot exist is asked of nobody, and who wants to ask is told so.
fn refusal(
    caller: &Caller,
    peer: &Peer,
    feature: Feature,
    said: &Message,
    asked: &[(String, String)],
) -> Result<(), String> {
    check(asked.is_empty(), || format!("asked {asked:?}"))?;
    if peer.at.is_modern() {
        // It refuses by itself what was not declared; that is about us, not about an old caller.
        let code = said.raw(&["error", "code"]);
        return check(code.as_deref() == Some("-32603"), || said.0.clone());
    }
    let older = caller.at.revision.min(peer.at.revision);
    // The mode is not declared, or nothing of the kind is.
    let code =
        if feature == Feature::Url && older >= Revision::R2025_06_18 { "-32602" } else { "-32601" };
    let told = Message(text_of(said)?).raw(&["code"]);
    check(told.as_deref() == Some(code), || format!("not refused with {code}: {}", said.0))
}
