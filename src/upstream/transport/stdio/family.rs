//! What child processes use, and which of them use too much.
//!
//! One walk over the system's processes serves all children of a gateway: it is made when somebody
//! asks, now and then anyway, and each second as long as a child has a ceiling.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::failure::Reason;
use crate::shim::{self, Usage};
use crate::upstream::transport::pipe::{Lost, count};

/// How often children with a ceiling are looked at: what a program can take in a second fits
/// between a sensible ceiling and the memory of the machine.
const TICK: Duration = Duration::from_secs(1);
/// So many ticks between looks at children without one. What one used since the last look is not
/// known once it has ended.
const TICKS_AT_EASE: u32 = 10;
/// A look serves whoever asks for one so soon after it.
const FRESH: Duration = Duration::from_millis(500);

type Measure = fn(&[u32]) -> Vec<Option<Usage>>;

/// All children of a gateway.
pub struct Children {
    // Bounded by what starts them: one for an upstream, and its conversations that can ask back.
    members: Mutex<Vec<Arc<Member>>>,
    // When they were looked at last; held during a look, so that there is one at a time.
    last: tokio::sync::Mutex<Option<Instant>>,
    watched: AtomicBool,
    measure: Measure,
}

/// The children of one upstream, those of now and those before.
#[derive(Debug, Default)]
pub struct Family {
    /// Most memory of one child in bytes; 0: no ceiling.
    pub ceiling: AtomicU64,
    // What those used that have ended, in milliseconds of processor time.
    ended_cpu: AtomicU64,
    /// Children that were ended because they used too much memory.
    pub over: AtomicU64,
}

/// One running child.
struct Member {
    family: Arc<Family>,
    supervisor: u32,
    started: Instant,
    usage: Mutex<Usage>,
    over: CancellationToken,
    lost: OnceLock<Lost>,
}

/// A child's place among the others, which it leaves when this is dropped.
pub(super) struct Place {
    children: Arc<Children>,
    member: Arc<Member>,
}

/// What the children of an upstream use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyUsage {
    /// How many there are.
    pub children: u64,
    /// As last seen.
    pub usage: Usage,
    /// How long the oldest has been running; `None`: there is none.
    pub uptime: Option<Duration>,
}

impl Default for Children {
    fn default() -> Self {
        Children::measured_by(shim::usage)
    }
}

impl Children {
    fn measured_by(measure: Measure) -> Children {
        Children {
            members: Mutex::default(),
            last: tokio::sync::Mutex::default(),
            watched: AtomicBool::new(false),
            measure,
        }
    }

    /// A child was started.
    pub(super) fn enter(self: &Arc<Self>, family: Arc<Family>, supervisor: u32) -> Place {
        let member = Arc::new(Member {
            family,
            supervisor,
            started: Instant::now(),
            usage: Mutex::default(),
            over: CancellationToken::new(),
            lost: OnceLock::new(),
        });
        lock(&self.members).push(member.clone());
        if !self.watched.swap(true, Ordering::AcqRel) {
            tokio::spawn(watch(Arc::downgrade(self)));
        }
        Place { children: self.clone(), member }
    }

    /// Look at all of them, unless somebody just has.
    pub async fn look(&self) {
        let mut last = self.last.lock().await;
        if last.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        let members = lock(&self.members).clone();
        let supervisors: Vec<u32> = members.iter().map(|m| m.supervisor).collect();
        if supervisors.is_empty() {
            return;
        }
        let measure = self.measure;
        let Ok(all) = tokio::task::spawn_blocking(move || measure(&supervisors)).await else {
            return;
        };
        for (member, usage) in members.iter().zip(all) {
            if let Some(usage) = usage {
                member.saw(usage);
            }
        }
        *last = Some(Instant::now());
    }

    /// What the children of one upstream use, as last seen.
    pub fn of(&self, family: &Arc<Family>) -> FamilyUsage {
        let mut out = FamilyUsage::default();
        let members = lock(&self.members);
        // Counted under the lock under which a child that ends is taken over into the family's.
        out.usage.cpu_ms = family.ended_cpu.load(Ordering::Relaxed);
        for member in members.iter().filter(|m| Arc::ptr_eq(&m.family, family)) {
            let usage = *lock(&member.usage);
            out.children += 1;
            out.usage.processes += usage.processes;
            out.usage.resident += usage.resident;
            out.usage.cpu_ms += usage.cpu_ms;
            out.uptime = out.uptime.max(Some(member.started.elapsed()));
        }
        out
    }

    fn any_ceiling(&self) -> Option<bool> {
        let members = lock(&self.members);
        let has = |m: &Arc<Member>| m.family.ceiling.load(Ordering::Relaxed) > 0;
        (!members.is_empty()).then(|| members.iter().any(has))
    }
}

// Ends with the last child; the next one starts it anew.
async fn watch(children: Weak<Children>) {
    let mut ticks = 0;
    loop {
        tokio::time::sleep(TICK).await;
        let Some(children) = children.upgrade() else { return };
        let Some(strict) = children.any_ceiling() else {
            children.watched.store(false, Ordering::Release);
            // One may have come just before.
            if children.any_ceiling().is_none() || children.watched.swap(true, Ordering::AcqRel) {
                return;
            }
            continue;
        };
        ticks += 1;
        if strict || ticks >= TICKS_AT_EASE {
            ticks = 0;
            children.look().await;
        }
    }
}

impl Member {
    fn saw(&self, usage: Usage) {
        {
            let mut now = lock(&self.usage);
            // A process whose parent ignores its end takes its time with it.
            *now = Usage { cpu_ms: now.cpu_ms.max(usage.cpu_ms), ..usage };
        }
        let ceiling = self.family.ceiling.load(Ordering::Relaxed);
        if ceiling == 0 || usage.resident <= ceiling {
            return;
        }
        let text = format!(
            "the server process was ended because it used {} of memory, more than its memory_max of {}",
            megabytes(usage.resident),
            megabytes(ceiling)
        );
        let mut lost = Lost::new(&text);
        lost.reason = Reason::MemoryExceeded;
        if self.lost.set(lost).is_ok() {
            count(&self.family.over);
            self.over.cancel();
        }
    }
}

impl Place {
    /// Wait until the child uses more memory than it may, and what its callers are told.
    pub(super) async fn over(&self) -> Lost {
        self.member.over.cancelled().await;
        self.member.lost.get().expect("set before").clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut members = lock(&self.children.members);
        members.retain(|m| !Arc::ptr_eq(m, &self.member));
        let used = lock(&self.member.usage).cpu_ms;
        self.member.family.ended_cpu.fetch_add(used, Ordering::Relaxed);
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only stores and additions happen under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The supervisor's number says what its child uses: so many MiB, and as many milliseconds.
    fn by_number(supervisors: &[u32]) -> Vec<Option<Usage>> {
        let usage =
            |n: &u32| Usage { processes: 1, resident: u64::from(*n) << 20, cpu_ms: u64::from(*n) };
        supervisors.iter().map(|n| (*n > 0).then(|| usage(n))).collect()
    }

    fn nursery() -> (Arc<Children>, Arc<Family>) {
        (Arc::new(Children::measured_by(by_number)), Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn each_upstream_has_what_its_own_children_use_and_used() {
        let (children, family) = nursery();
        let other = Arc::<Family>::default();
        assert_eq!(children.of(&family), FamilyUsage::default());
        let first = children.enter(family.clone(), 30);
        tokio::time::advance(Duration::from_secs(5)).await;
        let second = children.enter(family.clone(), 4);
        let _unseen = children.enter(other.clone(), 0);
        children.look().await;
        let seen = children.of(&family);
        let usage = Usage { processes: 2, resident: 34 << 20, cpu_ms: 34 };
        assert_eq!((seen.children, seen.usage), (2, usage));
        assert!(seen.uptime.is_some_and(|t| t >= Duration::from_secs(5)));
        assert_eq!(children.of(&other).usage, Usage::default());
        drop(first);
        // What was used stays used.
        let seen = children.of(&family);
        assert_eq!((seen.children, seen.usage.resident, seen.usage.cpu_ms), (1, 4 << 20, 34));
        drop(second);
        assert_eq!(children.of(&family).usage, Usage { cpu_ms: 34, ..Usage::default() });
        assert_eq!(children.of(&family).uptime, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_over_the_ceiling_is_told_once_and_others_are_not() {
        let (children, family) = nursery();
        let other = Arc::<Family>::default();
        let large = children.enter(family.clone(), 65);
        let fits = children.enter(family.clone(), 64);
        let free = children.enter(other, 9000);
        // No ceiling: however long it goes on.
        assert!(tokio::time::timeout(Duration::from_secs(60), large.over()).await.is_err());
        assert_eq!(children.of(&family).usage.processes, 2, "looked at all the same");
        // A new setting holds for those that run.
        family.ceiling.store(64 << 20, Ordering::Relaxed);
        let lost = tokio::time::timeout(2 * TICK, large.over()).await.expect("within two ticks");
        assert_eq!(lost.reason, Reason::MemoryExceeded);
        insta::assert_snapshot!(lost.text, @"the server process was ended because it used 65.0 MiB of memory, more than its memory_max of 64.0 MiB");
        assert!(tokio::time::timeout(Duration::from_secs(60), fits.over()).await.is_err());
        assert!(tokio::time::timeout(Duration::from_secs(60), free.over()).await.is_err());
        assert_eq!(family.over.load(Ordering::Relaxed), 1, "counted once");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_looks_when_there_is_nobody_and_again_when_there_is() {
        let (children, family) = nursery();
        family.ceiling.store(1, Ordering::Relaxed);
        drop(children.enter(family.clone(), 1));
        tokio::time::sleep(3 * TICK).await;
        assert!(!children.watched.load(Ordering::Relaxed));
        let again = children.enter(family, 1);
        assert!(tokio::time::timeout(2 * TICK, again.over()).await.is_ok());
    }
}
