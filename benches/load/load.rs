//! The role that makes the load: connections over plain sockets and epoll, each with one request
//! at a time, every answer checked to its last byte.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::TcpStream;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::ask::{Check, Request};
use crate::client::Client;
use crate::job::{Ask, Era, Job, Report};
use crate::upstream::put_number;
use crate::wire::{Got, Inbox, Incoming};

/// Events taken at once.
const EVENTS: usize = 256;
/// Before a cell is measured, so long it runs unmeasured.
const WARM_UP: f64 = 0.1;
/// How long answers that are under way at the end may still take.
const LAST_WAIT: Duration = Duration::from_secs(10);
/// Different requests of one connection: enough to reach many tools, few enough to stay in the
/// processor's cache, since the load is not what is measured.
const REQUESTS_MAX: usize = 16;
/// No patience at all.
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Ids are numbers of ten digits, so that requests have one length.
const FIRST_ID: u64 = 1_000_000_000;

struct Connection {
    stream: TcpStream,
    inbox: Inbox,
    incoming: Incoming,
    requests: Vec<Request>,
    // Which request is next, or under way.
    turn: usize,
    id: u64,
    nonce: [u8; 16],
    // Since when an answer is waited for.
    since: Option<Instant>,
    dead: bool,
}

/// Connections that are ready to be used.
pub struct Load {
    rate: Option<f64>,
    poll: OwnedFd,
    connections: Vec<Connection>,
    check: Check,
    random: u64,
    under_way: usize,
    dead: usize,
    // In tenths of a microsecond.
    latencies: Vec<u32>,
    report: Report,
}

impl Load {
    /// Connect, shake hands, warm up.
    ///
    /// # Errors
    /// What went wrong.
    pub fn prepare(job: Job) -> Result<Load, String> {
        // Timers are late by 50 µs otherwise, which a paced cell would show.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let poll = epoll::create(CreateFlags::CLOEXEC).map_err(|e| e.to_string())?;
        let mut connections = Vec::new();
        for n in 0..job.connections {
            let connection = connect(&job, n)?;
            let token = EventData::new_u64(n as u64);
            epoll::add(&poll, &connection.stream, token, EventFlags::IN)
                .map_err(|e| e.to_string())?;
            connections.push(connection);
        }
        let mut load = Load {
            rate: job.rate,
            poll,
            connections,
            check: Check::new(job.ask),
            random: 0x9e37_79b9_7f4a_7c15,
            under_way: 0,
            dead: 0,
            latencies: Vec::new(),
            report: Report::default(),
        };
        load.go(WARM_UP);
        match std::mem::take(&mut load.report) {
            Report { calls: 0, first_error, .. } => {
                Err(first_error.unwrap_or_else(|| "nothing was answered".into()))
            }
            report => {
                // What is wrong while warming up is wrong, too.
                load.report = Report { calls: 0, seconds: 0.0, ..report };
                Ok(load)
            }
        }
    }

    /// Run for so many seconds; ends when nothing is under way.
    pub fn go(&mut self, seconds: f64) -> Report {
        self.latencies.clear();
        let began = Instant::now();
        let end = began + Duration::from_secs_f64(seconds);
        match self.rate {
            None => self.closed(end),
            Some(rate) => self.paced(began, end, rate),
        }
        self.report.seconds = began.elapsed().as_secs_f64();
        self.report.bytes = self.check.bytes();
        self.report.p50 = percentile(&mut self.latencies, 0.50);
        self.report.p99 = percentile(&mut self.latencies, 0.99);
        self.report.longest = percentile(&mut self.latencies, 1.0);
        self.report.clone()
    }

    // Each connection asks again as soon as it has its answer.
    fn closed(&mut self, end: Instant) {
        for n in 0..self.connections.len() {
            self.send(n, Instant::now());
        }
        let mut now = Instant::now();
        self.events(end + LAST_WAIT, |load, n| {
            if n.is_some() {
                now = Instant::now();
            }
            match n {
                Some(n) if now < end => load.send(n, now),
                _ => {}
            }
            // Nothing to wake up for but answers.
            (None, now >= end)
        });
    }

    // Requests are sent when it is their time, whether others are answered or not; one for which
    // no connection is free waits, and its latency counts from the time it was due.
    fn paced(&mut self, began: Instant, end: Instant, rate: f64) {
        let every = Duration::from_secs_f64(1.0 / rate);
        let mut due = began;
        let mut waiting: VecDeque<Instant> = VecDeque::new();
        let mut idle: VecDeque<usize> = (0..self.connections.len()).collect();
        self.events(end + LAST_WAIT, |load, n| {
            idle.extend(n);
            let now = Instant::now();
            while due <= now && due < end {
                waiting.push_back(due);
                due += every;
            }
            while !waiting.is_empty() && !idle.is_empty() {
                if let (Some(at), Some(n)) = (waiting.pop_front(), idle.pop_front()) {
                    load.send(n, at);
                }
            }
            let over = due >= end && waiting.is_empty();
            ((due < end).then_some(due), over)
        });
    }

    // Take events until nothing is under way and `next` says that it is over. It is told who has
    // got an answer, and says when to be called again at the latest.
    fn events(
        &mut self,
        latest: Instant,
        mut next: impl FnMut(&mut Load, Option<usize>) -> (Option<Instant>, bool),
    ) {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        loop {
            let (wake, over) = next(self, None);
            if (over && self.under_way == 0) || self.dead == self.connections.len() {
                return;
            }
            if Instant::now() > latest {
                for _ in 0..self.under_way {
                    self.report.wrong(|| "no answer".into());
                }
                return;
            }
            let until = wake.unwrap_or(latest).saturating_duration_since(Instant::now());
            let until = Timespec {
                tv_sec: until.as_secs() as i64,
                tv_nsec: i64::from(until.subsec_nanos()),
            };
            let mut patience = Some(&until);
            if wake.is_some() {
                // Epoll rounds up to milliseconds, which would be the latency of a paced call.
                let _ = poll(&mut [PollFd::new(&self.poll, PollFlags::IN)], Some(&until));
                patience = Some(&NOW);
            }
            events.clear();
            let room = rustix::buffer::spare_capacity(&mut events);
            if epoll::wait(&self.poll, room, patience).is_err() {
                continue;
            }
            for event in &events {
                let n = event.data.u64() as usize;
                if self.receive(n) {
                    next(self, Some(n));
                }
            }
        }
    }

    fn send(&mut self, n: usize, since: Instant) {
        let connection = &mut self.connections[n];
        if connection.dead {
            return;
        }
        connection.id += 1;
        connection.turn = (connection.turn + 1) % connection.requests.len();
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        hex(self.random, &mut connection.nonce);
        let request = &mut connection.requests[connection.turn];
        if let Some(at) = request.id_at {
            put_number(&mut request.bytes[at..at + 10], connection.id as usize);
        }
        if let Some(at) = request.nonce_at {
            request.bytes[at..at + 16].copy_from_slice(&connection.nonce);
        }
        connection.since = Some(since);
        self.under_way += 1;
        // A request is far smaller than a socket's buffer, and there is one at a time.
        match connection.stream.write(&request.bytes) {
            Ok(sent) if sent == request.bytes.len() => {}
            Ok(_) => self.fail(n, "a request did not fit the socket"),
            Err(e) => self.fail(n, &format!("write: {e}")),
        }
    }

    // True when an answer is complete.
    fn receive(&mut self, n: usize) -> bool {
        let connection = &mut self.connections[n];
        match connection.inbox.read(&mut connection.stream) {
            Ok(Got::Some) => {}
            Ok(Got::Later) => return false,
            Ok(Got::End) => {
                self.fail(n, "the connection was closed");
                return false;
            }
            Err(e) => {
                self.fail(n, &format!("read: {e}"));
                return false;
            }
        }
        let (answer, whole) = match connection.incoming.next(connection.inbox.bytes()) {
            Ok(None) => return false,
            Ok(Some(found)) => found,
            Err(e) => {
                self.fail(n, &e);
                return false;
            }
        };
        let Some(since) = connection.since.take() else {
            self.fail(n, "an answer that nobody asked for");
            return false;
        };
        self.under_way -= 1;
        let request = &connection.requests[connection.turn];
        match self.check.check(&answer, request, connection.id, &connection.nonce) {
            Ok(()) => {
                self.report.calls += 1;
                let tenths = since.elapsed().as_nanos() / 100;
                self.latencies.push(u32::try_from(tenths).unwrap_or(u32::MAX));
            }
            Err(e) => self.report.wrong(|| e),
        }
        connection.incoming.reset();
        connection.inbox.consume(whole);
        true
    }

    fn fail(&mut self, n: usize, what: &str) {
        let connection = &mut self.connections[n];
        connection.dead = true;
        self.dead += 1;
        self.under_way -= usize::from(connection.since.take().is_some());
        let _ = epoll::delete(&self.poll, &connection.stream);
        self.report.wrong(|| what.to_owned());
    }
}

fn connect(job: &Job, n: usize) -> Result<Connection, String> {
    // A connection stays with one address; with one that has everything it goes through the tools.
    let home = &job.routes[n % job.routes.len()];
    let near: Vec<_> = job.routes.iter().filter(|r| r.addr == home.addr).collect();
    let from = (n / 200 + 1) as u8;
    let key = job.key.as_deref();
    // A file has no session.
    let era = if matches!(job.ask, Ask::File { .. }) { Era::Modern } else { job.era };
    let client = Client::new(home.addr, &home.path, key, era, from)?;
    let session = client.session().map(str::to_owned);
    let requests = (0..near.len().min(REQUESTS_MAX))
        .map(|k| {
            let route = near[(n * 7 + k * 37) % near.len()];
            Request::new(&job.ask, route, key, session.as_deref(), job.era)
        })
        .collect();
    let stream = client.into_stream();
    stream.set_nonblocking(true).map_err(|e| e.to_string())?;
    Ok(Connection {
        stream,
        inbox: Inbox::default(),
        incoming: Incoming::default(),
        requests,
        turn: 0,
        id: FIRST_ID,
        nonce: [b'0'; 16],
        since: None,
        dead: false,
    })
}

fn hex(mut n: u64, out: &mut [u8; 16]) {
    for byte in out {
        *byte = b"0123456789abcdef"[(n & 15) as usize];
        n >>= 4;
    }
}

/// In microseconds, of tenths of one.
fn percentile(latencies: &mut [u32], share: f64) -> f64 {
    if latencies.is_empty() {
        return 0.0;
    }
    let at = ((latencies.len() as f64 * share) as usize).min(latencies.len() - 1);
    f64::from(*latencies.select_nth_unstable(at).1) / 10.0
}
