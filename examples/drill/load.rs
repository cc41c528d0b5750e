//! Load on a gateway, and how long its answers take.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::client::{self, Client};

/// What came of some load.
#[derive(Clone, Debug, Default)]
pub struct Wave {
    /// Good answers.
    pub calls: u64,
    /// For how long.
    pub seconds: f64,
    /// Of good answers, in microseconds, in order.
    pub times: Vec<u32>,
    /// Answers that were none, and what they were.
    pub errors: Vec<String>,
}

impl Wave {
    /// Good answers a second.
    pub fn rate(&self) -> f64 {
        self.calls as f64 / self.seconds
    }

    /// A quantile, in milliseconds.
    pub fn quantile(&self, q: f64) -> f64 {
        let at = ((self.times.len() as f64 * q) as usize).min(self.times.len().saturating_sub(1));
        self.times.get(at).map_or(f64::NAN, |us| f64::from(*us) / 1000.0)
    }

    /// Both.
    pub fn add(&mut self, other: Wave) {
        self.calls += other.calls;
        self.seconds = self.seconds.max(other.seconds);
        self.times.extend(other.times);
        self.errors.extend(other.errors);
        self.times.sort_unstable();
    }

    fn note(&mut self, begun: Instant, wrong: Option<String>) {
        match wrong {
            None => {
                self.calls += 1;
                self.times.push(begun.elapsed().as_micros() as u32);
            }
            Some(e) => self.errors.push(e),
        }
    }
}

/// The middle one.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.into_iter().collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What is asked.
#[derive(Clone)]
pub enum Ask {
    /// Calls of these tools in turn, each of which answers with its id.
    Calls(Arc<Vec<String>>),
    /// These requests in turn, whose answers hold this.
    Say(Arc<Vec<(Vec<u8>, &'static str)>>),
}

impl Ask {
    /// Calls of `echo` of these upstreams.
    pub fn echo(upstreams: &[String]) -> Ask {
        Ask::Calls(Arc::new(upstreams.iter().map(|u| format!("{u}__echo")).collect()))
    }

    /// One question, and what is wrong with its answer.
    pub async fn once(&self, client: &mut Client, n: u64) -> Option<String> {
        match self {
            Ask::Calls(tools) => {
                let id = format!("n{n}");
                let tool = &tools[n as usize % tools.len()];
                match client.ask(&client::call(client.at, tool, &id)).await {
                    Err(e) => Some(format!("{tool}: no answer: {e}")),
                    // Nobody else's answer.
                    Ok(a)
                        if memchr::memmem::find(&a.body, format!("\"{id}\"").as_bytes())
                            .is_some() =>
                    {
                        None
                    }
                    Ok(a) => {
                        Some(format!("{tool}: {} {}", a.status, String::from_utf8_lossy(&a.body)))
                    }
                }
            }
            Ask::Say(all) => {
                let (request, wanted) = &all[n as usize % all.len()];
                match client.ask(request).await {
                    Err(e) => Some(format!("no answer: {e}")),
                    Ok(a) if memchr::memmem::find(&a.body, wanted.as_bytes()).is_some() => None,
                    Ok(a) => Some(format!("{} {}", a.status, String::from_utf8_lossy(&a.body))),
                }
            }
        }
    }
}

/// One question after the other on each of so many connections.
pub async fn closed(at: SocketAddr, ask: Ask, connections: usize, time: Duration) -> Wave {
    let begun = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut all = Vec::new();
    for _ in 0..connections {
        let (ask, next) = (ask.clone(), next.clone());
        all.push(tokio::spawn(async move {
            let mut client = Client::new(at);
            let mut wave = Wave::default();
            while begun.elapsed() < time {
                let since = Instant::now();
                let wrong = ask.once(&mut client, next.fetch_add(1, Ordering::Relaxed)).await;
                wave.note(since, wrong);
            }
            wave
        }));
    }
    together(all, begun).await
}

/// So many questions a second, whether or not the ones before are answered: each time is counted
/// from when the question was due.
pub async fn paced(
    at: SocketAddr,
    ask: Ask,
    connections: usize,
    rate: f64,
    time: Duration,
) -> Wave {
    let begun = Instant::now();
    let mut all = Vec::new();
    for lane in 0..connections {
        let ask = ask.clone();
        all.push(tokio::spawn(async move {
            let mut client = Client::new(at);
            let mut wave = Wave::default();
            for n in 0.. {
                let number = (n * connections + lane) as u64;
                let due = begun + Duration::from_secs_f64(number as f64 / rate);
                if due > begun + time {
                    break;
                }
                tokio::time::sleep_until(due.into()).await;
                // The timer itself is a millisecond late, which is not the gateway's.
                let due =
                    if due.elapsed() < Duration::from_millis(2) { Instant::now() } else { due };
                let wrong = ask.once(&mut client, number).await;
                wave.note(due, wrong);
            }
            wave
        }));
    }
    together(all, begun).await
}

async fn together(all: Vec<tokio::task::JoinHandle<Wave>>, begun: Instant) -> Wave {
    let mut sum = Wave::default();
    for one in all {
        match one.await {
            Ok(wave) => {
                sum.calls += wave.calls;
                sum.times.extend(wave.times);
                sum.errors.extend(wave.errors);
            }
            Err(e) => sum.errors.push(e.to_string()),
        }
    }
    sum.seconds = begun.elapsed().as_secs_f64();
    sum.times.sort_unstable();
    sum
}
