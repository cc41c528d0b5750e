//! What is told unasked: changed resources and changed lists.

use super::{Mark, check};
use crate::caller::{Ask, Caller};
use crate::peer::{OTHER, Peer, WATCHED, meta};
use crate::text::{Message, quoted};

fn public(peer: &Peer, uri: &str) -> String {
    format!("{}+{uri}", peer.at.name())
}

/// Wish to hear of changes: of lists, and of one or both resources of each upstream.
pub async fn watch(
    caller: &Caller,
    peers: &[std::sync::Arc<Peer>],
    other: bool,
) -> Result<(), String> {
    let uris = if other { &[WATCHED, OTHER][..] } else { &[WATCHED] };
    let uris: Vec<String> =
        peers.iter().flat_map(|peer| uris.iter().map(|uri| public(peer, uri))).collect();
    if !caller.at.is_modern() {
        for uri in uris {
            let params = format!(r#""uri":{}"#, quoted(&uri));
            let said = caller.ask(&Ask::new("resources/subscribe", params)).await?;
            check(said.raw(&["result"]).as_deref() == Some("{}"), || said.0.clone())?;
        }
        return Ok(());
    }
    let uris: Vec<String> = uris.iter().map(|uri| quoted(uri)).collect();
    let filter = format!(
        r#""notifications":{{"toolsListChanged":true,"resourceSubscriptions":[{}]}}"#,
        uris.join(",")
    );
    caller.listen(&Ask::new("subscriptions/listen", filter)).await?;
    let acknowledged = |all: &[Message]| {
        let ack = all.iter().find(|m| m.method().ends_with("acknowledged"));
        ack.and_then(|ack| ack.raw(&["params", "notifications", "resourceSubscriptions"]))
            .is_some_and(|honoured| crate::text::items(&honoured).len() == uris.len())
    };
    caller.hears("the acknowledgement of all", acknowledged).await
}

/// The upstream has told of both resources, the other one first: who watches is told.
pub async fn changed_resources(caller: &Caller, peer: &Peer, other: bool) -> Mark {
    let is = |uri: &str, message: &Message| {
        message.method() == "notifications/resources/updated"
            && message.text(&["params", "uri"]) == Some(public(peer, uri))
    };
    let heard = caller
        .hears(&format!("that {} changed", public(peer, WATCHED)), |all| {
            all.iter().any(|m| is(WATCHED, m))
        })
        .await;
    let all = caller.heard.borrow().clone();
    heard
        .and_then(|()| in_form(caller, all.iter().filter(|m| is(WATCHED, m))))
        .and_then(|()| {
            let told = all.iter().any(|m| is(OTHER, m));
            check(told == other, || format!("told of the other resource: {told}"))
        })
        .into()
}

/// The upstream has told of a new tool: all are told, and see it.
pub async fn changed_lists(caller: &Caller, peer: &Peer, before: usize) -> Mark {
    let mut seen = before;
    loop {
        let more = caller.hears("that tools changed", |all| count(all) > seen).await;
        let form = more.and_then(|()| {
            let all = caller.heard.borrow();
            seen = count(&all);
            in_form(caller, all.iter().filter(|m| m.method() == CHANGED))
        });
        if let Err(text) = form {
            return Mark::Fails(text);
        }
        match caller.all("tools/list", "tools", "name").await {
            Ok((tools, _)) if tools.contains_key(&format!("{}__fresh", peer.at.name())) => {
                return Mark::Works;
            }
            // It was told of something before that.
            Ok(_) => {}
            Err(text) => return Mark::Fails(text),
        }
    }
}

const CHANGED: &str = "notifications/tools/list_changed";

fn count(all: &[Message]) -> usize {
    all.iter().filter(|m| m.method() == CHANGED).count()
}

/// How often a caller was told so far that tools changed.
pub fn told(caller: &Caller) -> usize {
    count(&caller.heard.borrow())
}

// The newest revision names the listen request in each message of its stream, with the id's own
// text; the others do not.
fn in_form<'a>(caller: &Caller, mut all: impl Iterator<Item = &'a Message>) -> Result<(), String> {
    let id = meta("subscriptionId");
    let expected = caller.listening();
    all.try_for_each(|message| {
        let named = message.raw(&["params", "_meta", &id]);
        check(named == expected, || format!("{} on the stream {expected:?}", message.0))
    })
}
