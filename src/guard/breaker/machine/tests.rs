use super::*;

use std::num::NonZeroU32;

use proptest::prelude::*;

use crate::guard::window::STEPS;

const S: Duration = Duration::from_secs(1);

/// Judges by nothing, until a test makes one key count.
fn lenient() -> BreakerConfig {
    BreakerConfig {
        enabled: true,
        window: 10 * S,
        min_calls: NonZeroU32::new(4).unwrap(),
        failure_share: 1.0,
        slow_call: S,
        slow_share: 1.0,
        consecutive: NonZeroU32::MAX,
        open_for: 30 * S,
        probes: NonZeroU32::new(2).unwrap(),
    }
}

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

/// A breaker and its clock.
struct Bench {
    machine: Machine,
    now: Instant,
}

impl Bench {
    fn new(config: BreakerConfig) -> Bench {
        let now = Instant::now();
        Bench { machine: Machine::new(config, now), now }
    }

    fn admit(&mut self) -> Result<Ticket, Duration> {
        self.machine.admit(self.now).0
    }

    fn finish(&mut self, ticket: Ticket, verdict: Option<Verdict>) -> State {
        self.machine.finish(ticket, verdict, self.now);
        self.machine.state
    }

    /// One call from begin to end for each letter: `s`uccess, slow `S`uccess, `f`ailure, slow
    /// `F`ailure, `-` no verdict. A slow one takes a moment more than a second.
    fn calls(&mut self, calls: &str) -> State {
        for call in calls.chars() {
            let ticket = self.admit().unwrap();
            if call.is_uppercase() {
                self.now += S + Duration::from_millis(1);
            }
            let verdict = match call.to_ascii_lowercase() {
                's' => Some(Verdict::Success),
                'f' => Some(Verdict::Failure(Reason::ConnectionLost)),
                _ => None,
            };
            self.finish(ticket, verdict);
        }
        self.machine.state
    }

    fn why(&self) -> String {
        self.machine.why.map(|why| why.to_string()).unwrap_or_default()
    }
}

#[test]
fn the_state_machine() {
    let events =
        [Event::Tripped, Event::Rested, Event::Recovered, Event::Relapsed, Event::SwitchedOff];
    let mut table = Vec::new();
    for state in State::ALL {
        for event in events {
            let next = state.next(event).map_or("·", State::as_str);
            let event = format!("{event:?}");
            table.push(format!("{:<9} {event:<11} {next}", state.as_str()));
        }
    }
    insta::assert_snapshot!(table.join("\n"), @r"
    closed    Tripped     open
    closed    Rested      ·
    closed    Recovered   ·
    closed    Relapsed    ·
    closed    SwitchedOff ·
    open      Tripped     ·
    open      Rested      half_open
    open      Recovered   ·
    open      Relapsed    ·
    open      SwitchedOff closed
    half_open Tripped     ·
    half_open Rested      ·
    half_open Recovered   closed
    half_open Relapsed    open
    half_open SwitchedOff closed
    ");
}

#[test]
fn what_does_not_count_against_the_upstream() {
    let innocent: Vec<_> = Reason::ALL.into_iter().filter(|r| !counts(*r)).collect();
    insta::assert_snapshot!(
        innocent.iter().map(|r| r.as_str()).collect::<Vec<_>>().join(" "),
        @"dormant upstream_down retired queue_full throttled draining upstream_draining maintenance overloaded too_large cancelled capability_missing header_mismatch"
    );
}

#[test]
fn failure_share_opens() {
    for (failure_share, state) in [(0.5, State::Open), (0.51, State::Closed)] {
        let mut b = Bench::new(BreakerConfig { failure_share, ..lenient() });
        assert_eq!(b.calls("sff"), State::Closed, "three calls prove nothing");
        assert_eq!(b.calls("s"), State::Closed, "a success never opens");
        assert_eq!(b.calls("s"), State::Closed);
        assert_eq!(b.calls("f"), state);
    }
}

#[test]
fn a_share_written_in_decimals_is_met_exactly() {
    let mut b = Bench::new(BreakerConfig { failure_share: 0.55, min_calls: n(20), ..lenient() });
    assert_eq!(b.calls("sssssssssffffffffff"), State::Closed);
    assert_eq!(b.calls("f"), State::Open);
    insta::assert_snapshot!(b.why(), @"11 of the last 20 calls failed, the last: connection_lost");
}

#[test]
fn min_calls_is_how_many_prove_something() {
    for min_calls in [1, 3, 6] {
        let mut b = Bench::new(BreakerConfig { min_calls: n(min_calls), ..lenient() });
        for i in 1..=min_calls {
            assert_eq!(b.calls("f") == State::Open, i == min_calls);
        }
    }
}

#[test]
fn consecutive_failures_open_whatever_the_window_says() {
    for consecutive in [1, 3] {
        let calm = lenient();
        let mut b = Bench::new(BreakerConfig { consecutive: n(consecutive), ..calm });
        b.calls("ssssssssss");
        for i in 1..=consecutive {
            assert_eq!(b.calls("f") == State::Open, i == consecutive);
        }
    }
    let mut b = Bench::new(BreakerConfig { consecutive: n(3), ..lenient() });
    assert_eq!(b.calls("sffsff"), State::Closed, "a success ends the row");
    assert_eq!(b.calls("-f"), State::Open, "no verdict does not");
    insta::assert_snapshot!(b.why(), @"3 calls in a row failed, the last: connection_lost");
}

#[test]
fn slow_share_opens() {
    for (slow_share, state) in [(0.5, State::Open), (0.75, State::Closed)] {
        let mut b = Bench::new(BreakerConfig { slow_share, ..lenient() });
        assert_eq!(b.calls("ssSS"), state);
    }
    let mut b = Bench::new(BreakerConfig { slow_share: 0.5, ..lenient() });
    b.calls("ssSS");
    insta::assert_snapshot!(b.why(), @"2 of the last 4 calls took longer than 1s");
}

#[test]
fn slow_call_says_what_is_slow() {
    for (slow_call, state) in [(S, State::Open), (2 * S, State::Closed)] {
        let mut b = Bench::new(BreakerConfig { slow_call, slow_share: 0.5, ..lenient() });
        assert_eq!(b.calls("ssSS"), state);
    }
}

#[test]
fn a_call_that_hangs_until_it_fails_is_slow_too() {
    let mut b = Bench::new(BreakerConfig { slow_share: 0.5, ..lenient() });
    assert_eq!(b.calls("ssFF"), State::Open);
}

#[test]
fn window_is_how_long_a_failure_is_remembered() {
    for (window, state) in [(10 * S, State::Closed), (60 * S, State::Open)] {
        let mut b = Bench::new(BreakerConfig { window, ..lenient() });
        b.calls("fff");
        b.now += 20 * S;
        assert_eq!(b.calls("f"), state);
    }
}

#[test]
fn open_for_is_how_long_it_refuses() {
    for open_for in [S, 30 * S] {
        let mut b = Bench::new(BreakerConfig { open_for, ..lenient() });
        assert_eq!(b.calls("ffff"), State::Open);
        assert_eq!(b.admit().unwrap_err(), open_for);
        let opened = b.now;
        b.now = opened + open_for.mul_f64(0.75);
        assert_eq!(b.admit().unwrap_err(), open_for / 4);
        b.now = opened + open_for;
        assert!(b.machine.check(b.now).is_ok());
        assert_eq!(b.machine.state, State::Open, "a look changes nothing");
        assert!(b.admit().is_ok());
        assert_eq!(b.machine.state, State::HalfOpen);
    }
}

#[test]
fn probes_is_how_many_at_once_and_how_many_successes_close() {
    for probes in [1, 2, 5] {
        let mut b = Bench::new(BreakerConfig { probes: n(probes), ..lenient() });
        b.calls("ffff");
        b.now += 30 * S;
        let tickets: Vec<_> = (0..probes).map(|_| b.admit().unwrap()).collect();
        assert_eq!(b.admit().unwrap_err(), PROBE_HINT);
        for (i, ticket) in tickets.into_iter().enumerate() {
            let state = b.finish(ticket, Some(Verdict::Success));
            assert_eq!(state == State::Closed, i as u32 + 1 == probes);
            if state != State::Closed {
                assert!(b.admit().is_err(), "no more probes than successes are missing");
            }
        }
        assert!(b.admit().is_ok());
    }
}

#[test]
fn a_failed_probe_opens_again_for_as_long() {
    let mut b = Bench::new(lenient());
    b.calls("ffff");
    b.now += 30 * S;
    let (first, second) = (b.admit().unwrap(), b.admit().unwrap());
    assert_eq!(b.finish(first, Some(Verdict::Failure(Reason::ConnectFailed))), State::Open);
    assert_eq!(b.admit().unwrap_err(), 30 * S);
    insta::assert_snapshot!(b.why(), @"a probe failed: connect_failed");
    assert_eq!(b.finish(second, Some(Verdict::Success)), State::Open, "too late to help");
}

#[test]
fn a_probe_without_a_verdict_makes_room_for_another() {
    let mut b = Bench::new(BreakerConfig { probes: n(1), ..lenient() });
    b.calls("ffff");
    b.now += 30 * S;
    assert_eq!(b.calls("---"), State::HalfOpen);
    assert_eq!(b.calls("s"), State::Closed);
}

#[test]
fn a_slow_probe_is_a_success() {
    let mut b = Bench::new(BreakerConfig { slow_share: 0.01, ..lenient() });
    b.calls("ffff");
    b.now += 30 * S;
    assert_eq!(b.calls("SS"), State::Closed);
}

#[test]
fn results_from_before_change_nothing() {
    let mut b = Bench::new(BreakerConfig { probes: n(1), ..lenient() });
    let old = [(); 4].map(|()| b.admit().unwrap());
    b.calls("ffff");
    assert_eq!(b.finish(old[0], Some(Verdict::Success)), State::Open);
    b.now += 30 * S;
    let probe = b.admit().unwrap();
    assert_eq!(b.finish(old[1], Some(Verdict::Success)), State::HalfOpen);
    assert_eq!(b.finish(old[2], Some(Verdict::Failure(Reason::Garbled))), State::HalfOpen);
    assert!(b.admit().is_err(), "nor do they free a probe's place");
    assert_eq!(b.finish(probe, Some(Verdict::Success)), State::Closed);
    b.finish(old[3], Some(Verdict::Failure(Reason::Garbled)));
    assert_eq!(b.machine.window.sums(b.now), [0, 0, 0]);
}

#[test]
fn a_breaker_that_is_not_enabled_never_opens() {
    let strict = BreakerConfig { consecutive: n(1), min_calls: n(1), ..lenient() };
    let mut b = Bench::new(BreakerConfig { enabled: false, ..strict });
    assert_eq!(b.calls("ffffFFFF"), State::Closed);
    b.machine.reconfigure(strict, b.now);
    assert_eq!(b.calls("f"), State::Open);
    b.machine.reconfigure(BreakerConfig { enabled: false, ..strict }, b.now);
    assert_eq!(b.calls("ffff"), State::Closed);
}

#[test]
fn a_reload_keeps_state_and_window() {
    let mut b = Bench::new(lenient());
    b.calls("fff");
    b.machine.reconfigure(BreakerConfig { window: 60 * S, ..lenient() }, b.now);
    assert_eq!(b.calls("f"), State::Open);
    b.machine.reconfigure(BreakerConfig { open_for: 5 * S, ..lenient() }, b.now);
    assert_eq!(b.admit().unwrap_err(), 5 * S);
    assert_eq!(b.machine.opened, 1);
}

#[test]
fn fewer_probes_than_have_succeeded_close_it() {
    let mut b = Bench::new(BreakerConfig { probes: n(3), ..lenient() });
    b.calls("ffff");
    b.now += 30 * S;
    assert_eq!(b.calls("ss"), State::HalfOpen);
    b.machine.reconfigure(BreakerConfig { probes: n(2), ..lenient() }, b.now);
    assert_eq!(b.machine.state, State::Closed);
}

#[test]
fn its_story_can_be_read() {
    let mut b = Bench::new(BreakerConfig { probes: n(1), ..lenient() });
    let mut story = Vec::new();
    let mut tell = |moved: Option<Move>| {
        if let Some(Move { from, to, why }) = moved {
            story.push(format!("{from} -> {to}: {why}"));
        }
    };
    b.calls("fff");
    let ticket = b.admit().unwrap();
    tell(b.machine.finish(ticket, Some(Verdict::Failure(Reason::Garbled)), b.now));
    for verdict in [Verdict::Failure(Reason::ConnectFailed), Verdict::Success] {
        b.now += 30 * S;
        let (ticket, moved) = b.machine.admit(b.now);
        tell(moved);
        tell(b.machine.finish(ticket.unwrap(), Some(verdict), b.now));
    }
    b.calls("ffff");
    let off = BreakerConfig { enabled: false, ..lenient() };
    tell(b.machine.reconfigure(off, b.now));
    insta::assert_snapshot!(story.join("\n"), @r"
    closed -> open: 4 of the last 4 calls failed, the last: garbled
    open -> half_open: it was open for 30s
    half_open -> open: a probe failed: connect_failed
    open -> half_open: it was open for 30s
    half_open -> closed: 1 of 1 probes succeeded
    open -> closed: switched off
    ");
    let s = b.machine.snapshot(b.now);
    assert_eq!((s.opened, s.half_opened, s.closed), (3, 2, 2));
}

/// The reference: remembers every call and every transition, and counts anew each time.
struct Model {
    config: BreakerConfig,
    state: State,
    /// When it changed, and how long the history was then: what is before does not count.
    since: (Duration, usize),
    /// When each call ended, whether it failed, whether it was slow.
    history: Vec<(Duration, bool, bool)>,
    /// Calls under way: begun, in which period.
    calls: Vec<Option<(Duration, usize)>>,
    periods: usize,
    recovered: u32,
}

impl Model {
    fn turn(&mut self, state: State, now: Duration) {
        self.state = state;
        self.since = (now, self.history.len());
        self.periods += 1;
        self.recovered = 0;
    }

    fn probing(&self) -> u32 {
        let current = |call: &&Option<(Duration, usize)>| {
            call.is_some_and(|(_, period)| period == self.periods)
        };
        self.calls.iter().filter(current).count() as u32
    }

    fn admit(&mut self, now: Duration) -> bool {
        if self.state == State::Open && now >= self.since.0 + self.config.open_for {
            self.turn(State::HalfOpen, now);
        }
        let pass = match self.state {
            State::Closed => true,
            State::Open => false,
            State::HalfOpen => self.probing() + self.recovered < self.config.probes.get(),
        };
        self.calls.push(pass.then_some((now, self.periods)));
        pass
    }

    fn finish(&mut self, call: usize, failed: Option<bool>, now: Duration) {
        let Some((begun, period)) = self.calls[call].take() else { return };
        let Some(failed) = failed else { return };
        if period != self.periods {
            return;
        }
        if self.state == State::HalfOpen {
            self.recovered += 1;
            if failed {
                self.turn(State::Open, now);
            } else if self.recovered == self.config.probes.get() {
                self.turn(State::Closed, now);
            }
            return;
        }
        let slow = now > begun + self.config.slow_call;
        self.history.push((now, failed, slow));
        let step =
            |at: Duration| (at.as_nanos() * STEPS as u128 / self.config.window.as_nanos()) as usize;
        let period = &self.history[self.since.1..];
        let recent: Vec<_> =
            period.iter().filter(|(at, ..)| step(*at) + STEPS > step(now)).collect();
        let all = recent.len() as f64;
        let failures = recent.iter().filter(|(_, failed, _)| *failed).count() as f64;
        let slows = recent.iter().filter(|(.., slow)| *slow).count() as f64;
        let row = period.iter().rev().take_while(|(_, failed, _)| *failed).count();
        let proven = recent.len() >= self.config.min_calls.get() as usize;
        if failed && row >= self.config.consecutive.get() as usize
            || failed && proven && failures / all >= self.config.failure_share
            || slow && proven && slows / all >= self.config.slow_share
        {
            self.turn(State::Open, now);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Admit,
    /// Of the calls under way, which one, and how it ends (`None`: dropped).
    Finish(prop::sample::Index, Option<bool>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let verdict = prop_oneof![4 => Just(Some(true)), 4 => Just(Some(false)), 1 => Just(None)];
    let step = prop_oneof![
        2 => (0u64..1500).prop_map(Step::Wait),
        4 => Just(Step::Admit),
        4 => (any::<prop::sample::Index>(), verdict).prop_map(|(i, v)| Step::Finish(i, v)),
    ];
    prop::collection::vec(step, 0..200)
}

fn settings() -> impl Strategy<Value = BreakerConfig> {
    let share = || prop::sample::select(vec![0.1, 0.3, 0.5, 0.55, 0.9, 1.0]);
    (1u32..8, 1u32..8, share(), 0u32..3, share(), 1u32..8, 0u32..5, 1u32..4).prop_map(
        |(window, min_calls, failure_share, slow, slow_share, consecutive, open_for, probes)| {
            BreakerConfig {
                enabled: true,
                window: window * S,
                min_calls: n(min_calls),
                failure_share,
                slow_call: slow * S,
                slow_share,
                consecutive: n(consecutive),
                open_for: open_for * S,
                probes: n(probes),
            }
        },
    )
}

proptest! {
    #[test]
    fn the_breaker_does_what_the_model_does(config in settings(), steps in steps()) {
        let start = Instant::now();
        let mut machine = Machine::new(config, start);
        let mut tickets: Vec<(usize, Ticket)> = Vec::new();
        let mut model = Model {
            config,
            state: State::Closed,
            since: (Duration::ZERO, 0),
            history: Vec::new(),
            calls: Vec::new(),
            periods: 0,
            recovered: 0,
        };
        let mut now = Duration::ZERO;
        for step in steps {
            match step {
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::Admit => {
                    let looked = machine.check(start + now);
                    let ticket = machine.admit(start + now).0;
                    prop_assert_eq!(looked.is_ok(), ticket.is_ok(), "the look tells the truth");
                    prop_assert_eq!(ticket.is_ok(), model.admit(now));
                    tickets.extend(ticket.map(|ticket| (model.calls.len() - 1, ticket)));
                }
                Step::Finish(which, failed) if !tickets.is_empty() => {
                    let (call, ticket) = tickets.remove(which.index(tickets.len()));
                    let failure = Verdict::Failure(Reason::Garbled);
                    let verdict = failed.map(|f| if f { failure } else { Verdict::Success });
                    machine.finish(ticket, verdict, start + now);
                    model.finish(call, failed, now);
                }
                Step::Finish(..) => {}
            }
            prop_assert_eq!(machine.state, model.state);
        }
        prop_assert_eq!(machine.period as usize, model.periods);
    }
}
