//! Log lines, on stderr: stdout belongs to MCP when a client runs us over stdio.
//!
//! A line is formatted where it arises and then handed to a thread of its own over a bounded
//! queue. A reader of stderr that has stopped reading therefore costs lines, which are counted,
//! and never a call.

mod line;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::{EnvFilter, Registry};

use crate::config::LogFormat;
use crate::config::secret::Scrubber;

use line::Style;

/// Most lines that wait for the reader of stderr: some seconds of a busy gateway.
pub const LINES_MAX: usize = 8192;
/// Most bytes of waiting lines, so that long lines cannot fill the memory either.
pub const BYTES_MAX: usize = 8 << 20;
/// After it has written lines, the thread sleeps so long before it looks for more: a busy gateway
/// writes many with one system call then, and no call has to wake a thread.
const PACE: Duration = Duration::from_millis(5);
/// How long the last handle waits for the queue to empty when it is dropped.
const FLUSH_WAIT: Duration = Duration::from_secs(1);

/// How long a panic waits for its line to be written.
const PANIC_WAIT: Duration = Duration::from_millis(100);
/// The name of the thread that writes.
const WRITER: &str = "weir-log";

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is neither a level nor a filter.
    #[error("`{level}` is neither a level nor a filter ({why})")]
    Level {
        /// As written.
        level: String,
        /// What is wrong with it.
        why: String,
    },
    /// Someone else in the process has set up logging already.
    #[error("logging is set up already")]
    Taken,
    /// The thread that writes could not be started.
    #[error("the thread that writes log lines cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// The running log. Clones share it; the last one to go waits shortly for waiting lines.
#[derive(Clone)]
pub struct LogHandle(Arc<Inner>);

struct Inner {
    level: Arc<ArcSwap<EnvFilter>>,
    queue: Queue,
}

/// The level, which can be changed: read without a lock, since each call asks.
struct Changeable(Arc<ArcSwap<EnvFilter>>);

impl Layer<Registry> for Changeable {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        Layer::<Registry>::register_callsite(&**self.0.load(), metadata)
    }

    fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, Registry>) -> bool {
        Layer::<Registry>::enabled(&**self.0.load(), metadata, context)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Layer::<Registry>::max_level_hint(&**self.0.load())
    }
}

/// Writes events as lines and queues them.
struct Lines {
    style: Style,
    queue: Queue,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.style.line(event, |line| self.queue.line(line));
    }
}

/// Send all events of this process to stderr, and its panics too.
///
/// # Errors
/// A level that cannot be read, or a process that logs already.
pub fn init(level: &str, format: LogFormat) -> Result<LogHandle, LogError> {
    let stderr = io::stderr();
    let colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let (subscriber, handle) = build(level, format, colour, stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Taken)?;
    let (before, queue) = (std::panic::take_hook(), handle.0.queue.clone());
    std::panic::set_hook(Box::new(move |panic| {
        // The thread that writes cannot write of its own end.
        if std::thread::current().name() == Some(WRITER) {
            return before(panic);
        }
        panicked(panic);
        // It may be the last that this process says.
        queue.flush(PANIC_WAIT);
    }));
    Ok(handle)
}

// What a panic says may hold anything, so it goes where secrets are taken out; and a reader of JSON
// lines finds no other line between them.
fn panicked(panic: &std::panic::PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let payload = panic.payload();
    let said = payload.downcast_ref::<&str>().copied();
    let text = said.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or_default();
    let thread = std::thread::current();
    tracing::error!(
        target: "weirkeeper::panic", %place, thread = thread.name(), text,
        "panicked: a defect of the gateway; please report it"
    );
}

fn build(
    level: &str,
    format: LogFormat,
    colour: bool,
    sink: impl Write + Send + 'static,
) -> Result<(impl Subscriber + Send + Sync, LogHandle), LogError> {
    let level = Arc::new(ArcSwap::from_pointee(filter(level)?));
    let queue = Queue::start(sink)?;
    let lines = Lines { style: Style { format, colour }, queue: queue.clone() };
    let subscriber = tracing_subscriber::registry().with(Changeable(level.clone())).with(lines);
    Ok((subscriber, LogHandle(Arc::new(Inner { level, queue }))))
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let filter = EnvFilter::builder()
        .parse(level)
        .map_err(|e| LogError::Level { level: level.to_owned(), why: e.to_string() })?;
    // Whatever is filtered out besides, a defect is told.
    Ok(filter.add_directive("weirkeeper::panic=error".parse().expect("a directive")))
}

impl LogHandle {
    /// Change the level from the next event on.
    ///
    /// # Errors
    /// A level that cannot be read; the old one stays.
    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        self.0.level.store(Arc::new(filter(level)?));
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }

    /// From now on take these secrets out of every line, whatever code wrote it. The net below
    /// the rule that nothing logs a secret in the first place.
    pub fn scrub(&self, scrubber: Scrubber) {
        self.0.queue.shared.scrubber.store(Arc::new(scrubber));
    }

    /// Lines that were dropped because the reader was too slow.
    pub fn dropped(&self) -> u64 {
        self.0.queue.shared.dropped.load(Ordering::Relaxed)
    }

    /// Wait until all lines so far are written, `bound` at most. Blocks the thread. `false`: the
    /// reader was too slow.
    pub fn flush(&self, bound: Duration) -> bool {
        self.0.queue.flush(bound)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.flush(FLUSH_WAIT);
    }
}

/// The way to the thread that writes.
#[derive(Clone)]
struct Queue {
    tx: SyncSender<Item>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    dropped: AtomicU64,
    bytes: AtomicUsize,
    scrubber: ArcSwap<Scrubber>,
}

enum Item {
    Line(Box<[u8]>),
    Flush(SyncSender<()>),
}

impl Queue {
    fn start(sink: impl Write + Send + 'static) -> io::Result<Queue> {
        let (tx, rx) = mpsc::sync_channel(LINES_MAX);
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        std::thread::Builder::new()
            .name(WRITER.into())
            .spawn(move || drain(&rx, &theirs, BufWriter::new(sink)))?;
        Ok(Queue { tx, shared })
    }

    fn line(&self, line: &[u8]) {
        let waiting = self.shared.bytes.fetch_add(line.len(), Ordering::Relaxed);
        if waiting + line.len() <= BYTES_MAX && self.tx.try_send(Item::Line(line.into())).is_ok() {
            return;
        }
        self.shared.bytes.fetch_sub(line.len(), Ordering::Relaxed);
        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn flush(&self, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        let (done, wait) = mpsc::sync_channel(1);
        let mut item = Item::Flush(done);
        loop {
            match self.tx.try_send(item) {
                Ok(()) => break,
                Err(mpsc::TrySendError::Disconnected(_)) => return false,
                Err(mpsc::TrySendError::Full(back)) => {
                    if Instant::now() >= until {
                        return false;
                    }
                    item = back;
                    // Full: the writer is behind by the whole queue, a finer wait gains nothing.
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        wait.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok()
    }
}

/// The thread. Errors of the sink are nowhere to be told and end nothing: a later line may pass.
fn drain(rx: &Receiver<Item>, shared: &Shared, mut out: impl Write) {
    let mut unflushed = false;
    loop {
        let item = match rx.try_recv() {
            Ok(item) => item,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                let _ = out.flush();
                if std::mem::take(&mut unflushed) {
                    std::thread::sleep(PACE);
                    continue;
                }
                match rx.recv() {
                    Ok(item) => item,
                    Err(_) => break,
                }
            }
        };
        match item {
            Item::Line(line) => {
                unflushed = true;
                let scrubber = shared.scrubber.load();
                let _ = match std::str::from_utf8(&line) {
                    Ok(text) => out.write_all(scrubber.scrub(text).as_bytes()),
                    Err(_) => {
                        let text = String::from_utf8_lossy(&line);
                        out.write_all(scrubber.scrub(&text).as_bytes())
                    }
                };
                shared.bytes.fetch_sub(line.len(), Ordering::Relaxed);
            }
            Item::Flush(done) => {
                let _ = out.flush();
                let _ = done.try_send(());
            }
        }
    }
    let _ = out.flush();
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use crate::config::secret::Secret;

    use super::*;

    /// What was written; can be made to stall like a reader that stopped.
    #[derive(Clone, Default)]
    struct Sink {
        text: Arc<Mutex<Vec<u8>>>,
        stall: Arc<Mutex<()>>,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _wait = self.stall.lock();
            self.text.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.text.lock().unwrap().clone()).unwrap()
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn lines_are_json_and_the_level_changes_while_running() {
        let sink = Sink::default();
        let (subscriber, log) = build("info", LogFormat::Json, false, sink.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("quiet");
            tracing::info!(upstream = "stripe", bytes = 7, "first");
            log.set_level("debug").unwrap();
            tracing::debug!("second");
            assert!(log.set_level("weirkeeper=loud").is_err());
            tracing::debug!("third");
        });
        assert!(log.flush(LONG));
        let lines: Vec<serde_json::Value> =
            sink.text().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let messages: Vec<_> = lines.iter().map(|l| l["message"].as_str().unwrap()).collect();
        assert_eq!(messages, ["first", "second", "third"]);
        assert_eq!(lines[0]["upstream"], "stripe");
        assert_eq!(lines[0]["bytes"], 7);
        assert_eq!(lines[0]["level"], "INFO");
    }

    #[test]
    fn colour_only_where_asked_for() {
        for (colour, escapes) in [(true, true), (false, false)] {
            let sink = Sink::default();
            let (subscriber, log) = build("info", LogFormat::Text, colour, sink.clone()).unwrap();
            tracing::subscriber::with_default(subscriber, || tracing::info!("hello"));
            drop(log);
            assert_eq!(sink.text().contains('\u{1b}'), escapes);
            assert!(sink.text().contains("hello"));
        }
    }

    #[test]
    fn a_reader_that_stopped_costs_lines_and_no_time() {
        let sink = Sink::default();
        let (subscriber, log) = build("info", LogFormat::Text, false, sink.clone()).unwrap();
        let stalled = sink.stall.lock().unwrap();
        let extra = 2000;
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..LINES_MAX + extra {
                tracing::info!(n, "{}", "x".repeat(64));
            }
        });
        let dropped = log.dropped() as usize;
        // The thread holds what filled its buffer, besides the queue.
        assert!(dropped > 0 && dropped <= extra, "{dropped}");
        assert!(!log.flush(Duration::ZERO));
        drop(stalled);
        assert!(log.flush(LONG));
        assert_eq!(sink.text().lines().count(), LINES_MAX + extra - dropped);
    }

    #[test]
    fn waiting_bytes_are_bounded_too() {
        let sink = Sink::default();
        let queue = Queue::start(sink.clone()).unwrap();
        let stalled = sink.stall.lock().unwrap();
        let line = vec![b'x'; BYTES_MAX / 4];
        for _ in 0..20 {
            queue.line(&line);
        }
        assert!(queue.shared.dropped.load(Ordering::Relaxed) >= 15);
        drop(stalled);
        assert!(queue.flush(LONG));
        assert_eq!(queue.shared.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn secrets_are_taken_out_of_any_line() {
        let sink = Sink::default();
        let (subscriber, log) = build("info", LogFormat::Json, false, sink.clone()).unwrap();
        log.scrub(Scrubber::new([Secret::new("sk_live_\"1234")]));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(header = "Bearer sk_live_\"1234", "sent");
        });
        assert!(log.flush(LONG));
        assert!(sink.text().contains("Bearer «secret»"), "{}", sink.text());
        assert!(!sink.text().contains("1234"));
    }

    #[test]
    fn a_panic_is_a_line_like_any_other() {
        let sink = Sink::default();
        // A filter that names something else.
        let (subscriber, log) =
            build("weirkeeper::guard=debug", LogFormat::Json, false, sink.clone()).unwrap();
        log.scrub(Scrubber::new([Secret::new("sk_live_5678")]));
        tracing::subscriber::with_default(subscriber, || {
            // Another test's panic in this moment is told to nobody; the test fails all the same.
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(panicked));
            for said in ["no sk_live_5678", "none"] {
                let _ = std::panic::catch_unwind(|| assert!(said.is_empty(), "{said}"));
            }
            let _ = std::panic::catch_unwind(|| panic!("as it is"));
            std::panic::set_hook(before);
        });
        assert!(log.flush(LONG));
        let text = sink.text();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let texts: Vec<_> = lines.iter().map(|l| l["text"].as_str().unwrap()).collect();
        assert_eq!(texts, ["no «secret»", "none", "as it is"]);
        assert!(lines.iter().all(|l| l["level"] == "ERROR"), "{text}");
        assert!(lines[0]["place"].as_str().unwrap().contains("log.rs:"), "{text}");
    }

    #[test]
    fn an_unreadable_level_is_said() {
        let Err(e) = build("weirkeeper=loud", LogFormat::Text, false, io::sink()) else {
            panic!("accepted");
        };
        insta::assert_snapshot!(e, @r#"`weirkeeper=loud` is neither a level nor a filter (error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5)"#);
    }
}
