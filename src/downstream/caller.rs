//! Who called last on a connection.

use std::sync::{Arc, Mutex};

use hyper::header::{AUTHORIZATION, HOST};
use subtle::ConstantTimeEq as _;

use crate::call::Consumer;
use crate::protocol::header;

use super::checks::Told;
use super::headers::{Head, Headers};

/// Who called last on a connection: mostly the one who calls next, and in the same words. Its host
/// need not be looked at again then, nor its key digested, which would cost more than reading the
/// call.
#[derive(Default)]
pub struct LastCaller {
    known: Mutex<Option<Known>>,
    said: Mutex<Option<Said>>,
}

// What was found out about a head that its connection keeps.
struct Said {
    head: Arc<Head>,
    told: Arc<Told>,
    // Who says it, under this snapshot.
    caller: (u64, Arc<Consumer>),
}

struct Known {
    // Of this snapshot: a host may be taken back with the next, and so may a key.
    snapshot: u64,
    host: Box<[u8]>,
    keyed: Keyed,
    key: Box<[u8]>,
    consumer: Arc<Consumer>,
}

/// Where a key stands. The same text means another key in another header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyed {
    /// `Authorization`
    Authorization,
    /// `X-API-Key`
    ApiKey,
}

/// What a caller is known by: its host, and the header with its key.
pub type Words<'a> = (&'a [u8], (Keyed, &'a [u8]));

/// Those of a request; `None` if it lacks one of them, or says its host twice.
pub fn words<'a>(headers: &'a Headers, authority: Option<&'a str>) -> Option<Words<'a>> {
    let mut hosts = headers.get_all(&HOST);
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host,
        (None, _) => authority?.as_bytes(),
        _ => return None,
    };
    let key = match headers.get(&AUTHORIZATION) {
        Some(key) => (Keyed::Authorization, key),
        None => (Keyed::ApiKey, headers.get(&header::API_KEY)?),
    };
    Some((host, key))
}

impl LastCaller {
    /// What this head says, and who said the very same last, if that was under this snapshot.
    pub fn told(&self, snapshot: u64, head: &Arc<Head>) -> (Arc<Told>, Option<Arc<Consumer>>) {
        if head.is_kept
            && let Some(said) = &*self.said.lock().expect("no panic while held")
            && Arc::ptr_eq(&said.head, head)
        {
            let (number, consumer) = &said.caller;
            return (said.told.clone(), (*number == snapshot).then(|| consumer.clone()));
        }
        (Arc::new(Told::of(head)), None)
    }

    /// Remember who says this head. Its host and its key were checked.
    pub fn says(&self, snapshot: u64, head: &Arc<Head>, told: &Arc<Told>, who: &Arc<Consumer>) {
        if head.is_kept {
            let caller = (snapshot, who.clone());
            let said = Said { head: head.clone(), told: told.clone(), caller };
            *self.said.lock().expect("no panic while held") = Some(said);
        }
    }

    /// Whether anybody has said who they are.
    pub fn is_known(&self) -> bool {
        self.known.lock().expect("no panic while held").is_some()
    }

    /// Who said these words last, if that was under this snapshot.
    pub fn find(&self, snapshot: u64, (host, (keyed, key)): Words<'_>) -> Option<Arc<Consumer>> {
        let known = self.known.lock().expect("no panic while held");
        let known = known.as_ref().filter(|known| known.snapshot == snapshot)?;
        // Behind a proxy the next caller may be another one.
        let is_same = *known.host == *host && known.keyed == keyed && is_same_key(&known.key, key);
        is_same.then(|| known.consumer.clone())
    }

    /// Remember who said them. What they say was checked.
    pub fn keep(&self, snapshot: u64, (host, (keyed, key)): Words<'_>, consumer: &Arc<Consumer>) {
        let (host, key, consumer) = (host.into(), key.into(), consumer.clone());
        let known = Known { snapshot, host, keyed, key, consumer };
        *self.known.lock().expect("no panic while held") = Some(known);
    }
}

// In a time that does not tell where they differ; eight bytes at a time.
fn is_same_key(known: &[u8], said: &[u8]) -> bool {
    if known.len() != said.len() {
        return false;
    }
    let ((known, known_rest), (said, said_rest)) = (known.as_chunks::<8>(), said.as_chunks::<8>());
    let words = known.iter().zip(said).fold(known_rest.ct_eq(said_rest), |same, (known, said)| {
        same & u64::from_ne_bytes(*known).ct_eq(&u64::from_ne_bytes(*said))
    });
    bool::from(words)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> Headers {
        lines.iter().map(|(name, value)| (*name, value.as_bytes())).collect()
    }

    #[test]
    fn only_who_says_all_of_it_again_is_known() {
        let consumer = Arc::new(Consumer { name: "px".into(), view: None });
        let last = LastCaller::default();
        let mine = headers(&[("Host", "a"), ("Authorization", "Bearer 0123456789")]);
        assert!(last.find(7, words(&mine, None).unwrap()).is_none());
        last.keep(7, words(&mine, None).unwrap(), &consumer);
        let knows = |snapshot, lines: &[(&str, &str)]| {
            let headers = headers(lines);
            words(&headers, None).is_some_and(|words| last.find(snapshot, words).is_some())
        };
        let (host, key) = (("host", "a"), ("authorization", "Bearer 0123456789"));
        assert!(knows(7, &[host, key]) && !knows(8, &[host, key]));
        assert!(!knows(7, &[("host", "b"), key]));
        assert!(!knows(7, &[host, host, key]) && !knows(7, &[key]) && !knows(7, &[host]));
        assert!(!knows(7, &[host, ("authorization", "Bearer 0123456780")]));
        assert!(!knows(7, &[host, ("authorization", "Bearer 01234567890")]));
        assert!(!knows(7, &[host, ("x-api-key", "Bearer 0123456789")]));
    }

    #[test]
    fn a_head_that_is_kept_is_its_senders_under_one_snapshot() {
        let head = |is_kept| {
            let (parts, ()) = hyper::Request::post("/mcp").body(()).unwrap().into_parts();
            Arc::new(Head { is_kept, ..Head::from(parts) })
        };
        let consumer = Arc::new(Consumer { name: "px".into(), view: None });
        let (mine, other, passing) = (head(true), head(true), head(false));
        let last = LastCaller::default();
        for head in [&mine, &passing] {
            let (told, who) = last.told(7, head);
            assert!(who.is_none());
            last.says(7, head, &told, &consumer);
        }
        let who = |snapshot, head| last.told(snapshot, head).1.map(|who| who.name.clone());
        assert_eq!(who(7, &mine).as_deref(), Some("px"));
        assert_eq!((who(8, &mine), who(7, &other), who(7, &passing)), (None, None, None));
    }

    #[test]
    fn keys_are_compared_whole() {
        let key: Vec<u8> = (1..=20).collect();
        for length in 0..=key.len() {
            let known = &key[..length];
            assert!(is_same_key(known, known));
            for at in 0..length {
                let mut other = known.to_vec();
                other[at] ^= 0x80;
                assert!(!is_same_key(known, &other), "{length} {at}");
            }
        }
    }
}
