//! The choice, by cases and by properties, under paused time.

use std::num::NonZeroU32;

use proptest::prelude::*;
use tokio::time::advance;

use super::*;

const S: Duration = Duration::from_secs(1);

fn config() -> EjectionConfig {
    EjectionConfig { consecutive: NonZeroU32::new(2).unwrap(), first: S, longest: 5 * S }
}

fn roster(number: usize) -> Roster {
    Roster::new(config(), number)
}

fn fail(roster: &Roster, number: usize, times: usize) {
    for _ in 0..times {
        roster.this(number).failed();
    }
}

fn chosen(roster: &Roster, reached: Set, tried: Set) -> Option<usize> {
    roster.choose(reached, tried, false, By::Load).map(|taken| taken.number)
}

#[tokio::test(start_paused = true)]
async fn the_least_busy_is_chosen_and_equals_take_turns() {
    let roster = roster(3);
    let mut all: Vec<_> =
        (0..6).map(|_| roster.choose(0b111, 0, false, By::Load).unwrap()).collect();
    assert_eq!(all.iter().map(|t| t.number).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
    drop(all.remove(1));
    assert_eq!(chosen(&roster, 0b111, 0), Some(1));
    // What cannot be reached is not chosen, what was tried only for want of another.
    assert_eq!(chosen(&roster, 0b101, 0b001), Some(2));
    assert!(chosen(&roster, 0b101, 0b101).is_some());
    assert!(roster.choose(0b101, 0b101, true, By::Load).is_none());
    assert_eq!(chosen(&roster, 0, 0), None);
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_eject_for_a_time_that_grows_up_to_a_bound() {
    let roster = roster(2);
    fail(&roster, 0, 1);
    roster.this(0).succeeded();
    fail(&roster, 0, 1);
    assert_eq!(roster.facts()[0].ejected_for, None, "not in a row");
    fail(&roster, 0, 1);
    for seconds in [1, 2, 4, 5, 5] {
        assert_eq!(roster.facts()[0].ejected_for, Some(seconds * S));
        assert!((0..5).all(|_| chosen(&roster, 0b11, 0) == Some(1)));
        // What fails meanwhile began before, and changes nothing.
        fail(&roster, 0, 3);
        assert_eq!(roster.facts()[0].ejected_for, Some(seconds * S));
        advance(seconds * S).await;
        fail(&roster, 0, 1);
    }
    assert_eq!(roster.facts()[0].ejections, 6);
    // Well again, and bad again soon: the time goes on growing. Well for long: it begins anew.
    for (pause, wanted) in [(S, 5 * S), (5 * S, S)] {
        advance(5 * S).await;
        roster.this(0).succeeded();
        assert_eq!(roster.facts()[0].failing, 0);
        advance(pause).await;
        fail(&roster, 0, 2);
        assert_eq!(roster.facts()[0].ejected_for, Some(wanted));
    }
}

fn lose(roster: &Roster, number: usize, times: usize) {
    for _ in 0..times {
        roster.this(number).lost();
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_loses_each_call_and_answers_nothing_is_ejected() {
    let roster = roster(2);
    let ejected = || roster.facts()[0].ejected_for;
    // A rush.
    lose(&roster, 0, 100);
    assert_eq!(ejected(), None);
    advance(S).await;
    lose(&roster, 0, 1);
    assert_eq!((ejected(), roster.facts()[0].failing), (Some(S), 0));
    assert!((0..5).all(|_| chosen(&roster, 0b11, 0) == Some(1)));
    // Its trial goes as all went before; an answer ends it.
    advance(S).await;
    lose(&roster, 0, 1);
    assert_eq!(ejected(), Some(2 * S));
    advance(2 * S).await;
    roster.this(0).succeeded();
    assert_eq!(ejected(), None);
    // Few, over a long time: it begins anew.
    lose(&roster, 0, 1);
    advance(100 * S).await;
    lose(&roster, 0, 4);
    assert_eq!(ejected(), None);
    lose(&roster, 0, 1);
    assert_eq!(ejected(), Some(S));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_only_slower_is_not_ejected() {
    let roster = roster(2);
    for _ in 0..100 {
        advance(S).await;
        lose(&roster, 0, 5);
        // One of six is not hedged, or wins.
        roster.this(0).succeeded();
    }
    // Lost calls neither hide failures nor add to them.
    fail(&roster, 0, 1);
    lose(&roster, 0, 1);
    assert_eq!((roster.facts()[0].ejections, roster.facts()[0].failures), (0, 1));
    fail(&roster, 0, 1);
    assert_eq!(roster.facts()[0].ejections, 1);
}

#[tokio::test(start_paused = true)]
async fn one_call_at_once_tries_whether_it_is_well_again() {
    let roster = roster(2);
    fail(&roster, 0, 2);
    advance(S).await;
    let trial = roster.choose(0b01, 0, false, By::Load).unwrap();
    assert!((0..5).all(|_| chosen(&roster, 0b11, 0) == Some(1)), "the trial is under way");
    drop(trial);
    let trial = roster.choose(0b11, 0b10, false, By::Load).unwrap();
    assert_eq!(trial.number, 0, "one that was broken off decides nothing");
    trial.succeeded();
    assert!((0..2).any(|_| chosen(&roster, 0b11, 0) == Some(0)));
}

#[tokio::test(start_paused = true)]
async fn when_none_is_well_the_least_bad_is_tried() {
    let roster = roster(3);
    fail(&roster, 2, 2);
    advance(S / 2).await;
    fail(&roster, 0, 2);
    fail(&roster, 1, 2);
    assert_eq!(chosen(&roster, 0b111, 0), Some(2));
    assert_eq!(chosen(&roster, 0b111, 0b100), Some(2), "even again");
    assert_eq!(roster.choose(0b111, 0b100, true, By::Load).unwrap().number % 2, 0);
    roster.this(1).succeeded();
    assert_eq!(chosen(&roster, 0b111, 0), Some(1), "an answer brings it back at once");
}

#[tokio::test(start_paused = true)]
async fn a_conversation_stays_where_it_is_while_that_is_well() {
    let roster = roster(4);
    let at = |text: &str| {
        roster.choose(0b1111, 0, false, By::Affinity(text)).map(|taken| taken.number).unwrap()
    };
    let texts: Vec<String> = (0..64).map(|n| format!("session {n}")).collect();
    let before: Vec<_> = texts.iter().map(|text| at(text)).collect();
    assert_eq!(before, texts.iter().map(|text| at(text)).collect::<Vec<_>>());
    let of = |n| before.iter().filter(|at| **at == n).count();
    assert!((0..4).all(|n| of(n) > 4), "each has some: {before:?}");
    fail(&roster, 2, 2);
    for (text, before) in texts.iter().zip(&before) {
        let now = at(text);
        assert!(now != 2 && (now == *before || *before == 2), "only those of the bad one move");
    }
}

/// What a test does to a roster.
#[derive(Clone, Debug)]
enum Step {
    Begin { reached: Set, tried: Set, anew: bool },
    End { which: usize, how: u8 },
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u32..16, 0u32..16, any::<bool>())
            .prop_map(|(reached, tried, anew)| Step::Begin { reached, tried, anew }),
        4 => (0usize..32, 0u8..3).prop_map(|(which, how)| Step::End { which, how }),
        1 => (0u64..6000).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold(steps in steps()) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let roster = roster(4);
            let mut open: Vec<Taken<'_>> = Vec::new();
            let mut streak = [0u32; 4];
            for step in steps {
                let before = roster.facts();
                match step {
                    Step::Begin { reached, tried, anew } => {
                        let usable = if anew { reached & !tried } else { reached };
                        let Some(taken) = roster.choose(reached, tried, anew, By::Load) else {
                            assert_eq!(usable, 0, "nobody is left without a replica");
                            continue;
                        };
                        let bit = |n: usize| 1u32 << n;
                        assert!(usable & bit(taken.number) != 0);
                        // One with fewer calls, untried and never in trouble, would have been it.
                        for (n, facts) in before.iter().enumerate() {
                            let better = reached & !tried & bit(n) != 0
                                && streak[n] == 0
                                && facts.in_flight < before[taken.number].in_flight;
                            assert!(!better, "{n} was better than {}", taken.number);
                        }
                        // An ejected one only if no other of those was well.
                        if before[taken.number].ejected_for.is_some_and(|d| !d.is_zero()) {
                            for (n, facts) in before.iter().enumerate() {
                                let well = usable & bit(n) != 0 && streak[n] == 0;
                                assert!(!well || facts.ejected_for.is_some());
                            }
                        }
                        open.push(taken);
                    }
                    Step::End { which, how } if !open.is_empty() => {
                        let at = which % open.len();
                        let taken = open.swap_remove(at);
                        let n = taken.number;
                        match how {
                            0 => {
                                taken.succeeded();
                                streak[n] = 0;
                                assert_eq!(roster.facts()[n].ejected_for, None);
                            }
                            1 => {
                                taken.failed();
                                streak[n] += 1;
                            }
                            _ => drop(taken),
                        }
                    }
                    Step::End { .. } => {}
                    Step::Wait(ms) => advance(Duration::from_millis(ms)).await,
                }
                for (n, facts) in roster.facts().iter().enumerate() {
                    assert_eq!(facts.in_flight as usize, open.iter().filter(|t| t.number == n).count());
                    assert_eq!(facts.failing, streak[n]);
                    assert!(facts.ejected_for.is_none_or(|d| d <= 5 * S), "bounded");
                    assert!(facts.ejected_for.is_none() || streak[n] >= 2, "not without a reason");
                    assert!(facts.ejections >= before[n].ejections && facts.calls >= before[n].calls);
                }
            }
            drop(open);
            assert!(roster.facts().iter().all(|facts| facts.in_flight == 0));
        });
    }
}
