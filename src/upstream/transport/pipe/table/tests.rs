use std::sync::atomic::AtomicU64;

use super::*;
use crate::upstream::transport::UNASKED_MAX;

struct World {
    table: Table,
    unasked: mpsc::Receiver<Unasked>,
    asides: mpsc::Receiver<Bytes>,
}

fn world() -> World {
    let (unasked_tx, unasked) = mpsc::channel(UNASKED_MAX);
    let (asides_tx, asides) = mpsc::channel(4);
    let scrubber = Scrubber::default();
    let table = Table::new("up".into(), 100, scrubber, Arc::default(), unasked_tx, asides_tx);
    World { table, unasked, asides }
}

impl World {
    fn sent(&self, id: u64) -> Ticket<'_> {
        let ticket = self.table.enter(id, true).unwrap();
        assert!(ticket.slot.begin());
        ticket
    }

    fn line(&self, text: &str) {
        self.table.take(Heard::Whole(Bytes::copy_from_slice(text.as_bytes())));
    }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

async fn outcome(ticket: &Ticket<'_>) -> Result<Frame, Fault> {
    ticket.slot.outcome(&|_| {}).await
}

#[tokio::test(start_paused = true)]
async fn a_log_message_is_a_call_s_where_there_is_one_at_a_time() {
    let mut w = world();
    let log = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"error"}}"#;
    let mut unasked = std::mem::replace(&mut w.unasked, mpsc::channel(1).1);
    let one = w.sent(1);
    w.line(log);
    assert!(matches!(unasked.try_recv(), Ok(Unasked::Notification(_))), "anybody's");
    w.table.carries_one_call();
    w.line(log);
    w.line(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    let seen = Mutex::new(0);
    let notice = |_: Frame| *seen.lock().unwrap() += 1;
    one.slot.outcome(&notice).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), 1, "before the answer");
    let (_two, _three) = (w.sent(2), w.sent(3));
    w.line(log);
    assert!(unasked.try_recv().is_ok(), "of two it is nobody's");
}

#[tokio::test(start_paused = true)]
async fn answers_find_their_requests_and_nothing_else_does() {
    let w = world();
    let (one, two) = (w.sent(1), w.sent(2));
    for noise in [
        "",
        "  ",
        "Listening…",
        "[]",
        "{",
        "[{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}]",
        r#"{"level":"info","id":1,"error":"none"}"#,
    ] {
        w.line(noise);
    }
    assert_eq!(read(&w.table.counters.noise_lines), 7);
    for stray in ["3", "\"1\"", "1.0", "-1", "01"] {
        w.line(&format!(r#"{{"jsonrpc":"2.0","id":{stray},"result":{{}}}}"#));
    }
    // `01` is no JSON.
    assert_eq!(read(&w.table.counters.unmatched_answers), 4);
    assert_eq!(read(&w.table.counters.noise_lines), 8);
    w.line(r#"{"jsonrpc":"2.0","id":2,"result":{"n":2}}"#);
    w.line(r#"{"jsonrpc":"2.0","id":2,"result":{"n":3}}"#);
    w.line(r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m"}}"#);
    assert_eq!(outcome(&two).await.unwrap().outcome(), r#"{"n":2}"#);
    assert_eq!(outcome(&one).await.unwrap().kind(), Kind::Error);
    assert_eq!(read(&w.table.counters.duplicate_answers), 1);
    assert!(w.table.saw_output());
}

#[tokio::test(start_paused = true)]
async fn useless_answers_fail_their_own_request_only() {
    let w = world();
    let (one, two, three) = (w.sent(1), w.sent(2), w.sent(3));
    w.line(r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#);
    w.table.take(Heard::TooLong(Glance::at(br#"{"result":1,"jsonrpc":"2.0","id":2}"#)));
    w.table.take(Heard::TooLong(Glance::at(b"xxxxxxxxx")));
    let garbled = outcome(&one).await.unwrap_err();
    assert_eq!((garbled.reason, garbled.delivery), (Reason::Garbled, Delivery::Unknown));
    let large = outcome(&two).await.unwrap_err();
    assert_eq!((large.reason, large.delivery), (Reason::TooLarge, Delivery::Unknown));
    assert_eq!(read(&w.table.counters.oversize), 2);
    // The last one under way owns an error without an id.
    w.line(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"m"}}"#);
    assert_eq!(outcome(&three).await.unwrap().error_code(), Some(-32700));
}

#[tokio::test(start_paused = true)]
async fn an_error_without_id_among_two_is_nobodys() {
    let w = world();
    let _both = (w.sent(1), w.sent(2));
    w.line(r#"{"jsonrpc":"2.0","error":{"code":-32700,"message":"m"}}"#);
    assert_eq!(read(&w.table.counters.unmatched_answers), 1);
}

#[tokio::test(start_paused = true)]
async fn notices_reach_their_request_before_its_answer() {
    let mut w = world();
    let ticket = w.sent(7);
    let progress = |token: &str, n: usize| {
        w.line(&format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":{n}}}}}"#
        ));
    };
    progress("7", 1);
    progress("8", 2);
    progress("\"7\"", 3);
    w.line(r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":7}}}"#);
    w.line(r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#);
    w.line(r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#);
    w.line(r#"{"jsonrpc":"2.0","id":7,"result":{}}"#);
    let seen = Mutex::new(Vec::new());
    ticket.slot.outcome(&|f| seen.lock().unwrap().push(f.method().to_owned())).await.unwrap();
    assert_eq!(
        *seen.lock().unwrap(),
        ["notifications/progress", "notifications/tools/list_changed"]
    );
    drop(ticket);
    let mut kinds = Vec::new();
    while let Ok(unasked) = w.unasked.try_recv() {
        kinds.push(match unasked {
            Unasked::Request(_) => 'r',
            Unasked::Notification(_) => 'n',
        });
    }
    assert_eq!(kinds, ['n', 'n', 'n', 'r']);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_unasked_messages_is_dropped_and_requests_are_refused() {
    let mut w = world();
    for _ in 0..UNASKED_MAX + 5 {
        w.line(r#"{"jsonrpc":"2.0","method":"notifications/x"}"#);
    }
    assert_eq!(read(&w.table.counters.dropped_notices), 5);
    w.line(r#"{"jsonrpc":"2.0","id":"s1","method":"ping"}"#);
    let refusal = Frame::scan(w.asides.try_recv().unwrap()).unwrap();
    assert_eq!((refusal.kind(), refusal.id().unwrap()), (Kind::Error, "\"s1\"".into()));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_request_is_cancelled_only_if_it_was_sent_and_may_be() {
    let mut w = world();
    drop(w.table.enter(1, true).unwrap()); // never begun
    let initialize = w.table.enter(2, false).unwrap();
    initialize.slot.begin();
    drop(initialize);
    assert!(w.asides.try_recv().is_err());
    drop(w.sent(3));
    let cancelled = w.asides.try_recv().unwrap();
    assert_eq!(
        cancelled,
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":3,"reason":"the caller no longer waits"}}"#
    );
    w.line(r#"{"jsonrpc":"2.0","id":3,"result":{}}"#);
    assert_eq!(read(&w.table.counters.late_answers), 1);
    let four = w.sent(4);
    w.line(r#"{"jsonrpc":"2.0","id":4,"result":{}}"#);
    drop(four); // answered, though nobody looked
    assert!(w.asides.try_recv().is_err());
    assert!(w.table.lock().waiting.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_never_begun_is_known_not_to_have_arrived() {
    let w = world();
    let (sent, queued) = (w.sent(1), w.table.enter(2, true).unwrap());
    w.table.fail_unsent(Lost::new("stopped"));
    assert_eq!(outcome(&queued).await.unwrap_err().delivery, Delivery::NotSent);
    assert!(!queued.slot.begin());
    w.line(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    assert!(outcome(&sent).await.is_ok());
    assert_eq!(w.table.enter(3, true).err().unwrap().delivery, Delivery::NotSent);

    let w = world();
    let (sent, queued) = (w.sent(1), w.table.enter(2, true).unwrap());
    assert!(w.table.enter(1, true).is_err());
    w.table.fail_all(Lost::new("ended"));
    assert_eq!(outcome(&sent).await.unwrap_err().delivery, Delivery::Unknown);
    assert_eq!(outcome(&queued).await.unwrap_err().delivery, Delivery::NotSent);
    assert!(w.table.check().is_err());
}

#[tokio::test(start_paused = true)]
async fn recent_answers_are_remembered_within_a_bound() {
    let w = world();
    for id in 0..1000 {
        let ticket = w.sent(id);
        w.line(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
        assert!(outcome(&ticket).await.is_ok());
    }
    assert_eq!(w.table.lock().recent.len(), RECENT_MAX);
}
