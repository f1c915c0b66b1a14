//! What is counted: numbers by name and a histogram of times, added up over the lives of who counts.
//!
//! Pure. Dispatcher and workers count for themselves and may die; who adds up keeps what the dead have counted, so
//! that a sum never goes down.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Times, in buckets of powers of two of microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Bucket `i` counts times below `2^i` microseconds that are in no bucket before it; at most [`Self::BUCKETS`].
    buckets: Vec<u64>,
    /// All times together, in microseconds.
    micros: u64,
}

impl Histogram {
    /// So many buckets: the last one also holds what is longer, 36 minutes or more.
    pub const BUCKETS: usize = 32;

    /// One that was counted elsewhere: its buckets from the first, and the sum of its times in microseconds.
    pub fn new(buckets: impl IntoIterator<Item = u64>, micros: u64) -> Self {
        Self { buckets: buckets.into_iter().take(Self::BUCKETS).collect(), micros }
    }

    /// The bucket that this time belongs to.
    pub fn bucket(time: Duration) -> usize {
        let bits = u64::BITS - micros(time).leading_zeros();
        (bits as usize).min(Self::BUCKETS - 1)
    }

    /// Counts one time.
    pub fn record(&mut self, time: Duration) {
        let bucket = Self::bucket(time);
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.micros = self.micros.saturating_add(micros(time));
    }

    /// How many times were below `2^exponent` microseconds, for an exponent below [`Self::BUCKETS`] - 1.
    pub fn below(&self, exponent: usize) -> u64 {
        self.buckets.iter().take(exponent + 1).fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.below(Self::BUCKETS - 1)
    }

    /// All of them together, in seconds.
    pub fn seconds(&self) -> f64 {
        self.micros as f64 / 1e6
    }

    /// Adds the times of another one.
    pub fn add(&mut self, other: &Histogram) {
        let others = other.buckets.len().min(Self::BUCKETS);
        self.buckets.resize(self.buckets.len().max(others), 0);
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.saturating_add(*theirs);
        }
        self.micros = self.micros.saturating_add(other.micros);
    }

    fn has_fallen_since(&self, before: &Histogram) -> bool {
        let now = self.buckets.iter().chain(std::iter::repeat(&0));
        before.buckets.iter().zip(now).any(|(before, now)| now < before)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Numbers by name, and times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// How often each thing happened, or how much of it there was.
    pub counts: BTreeMap<Cow<'static, str>, u64>,
    /// How long something took each time.
    pub times: Histogram,
}

impl Counters {
    /// One with these counts, and no times.
    pub fn new(counts: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        let counts = counts.into_iter().map(|(name, count)| (name.into(), count)).collect();
        Self { counts, times: Histogram::default() }
    }

    /// One more of it.
    pub fn count(&mut self, name: &'static str) {
        *self.counts.entry(name.into()).or_default() += 1;
    }

    /// How many of it.
    pub fn of(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Counters) {
        for (name, count) in &other.counts {
            let mine = self.counts.entry(name.clone()).or_default();
            *mine = mine.saturating_add(*count);
        }
        self.times.add(&other.times);
    }

    /// Whether who counts has begun anew.
    fn has_fallen_since(&self, before: &Counters) -> bool {
        before.counts.iter().any(|(name, count)| self.of(name) < *count) || self.times.has_fallen_since(&before.times)
    }
}

/// Tallies by who keeps them, each over all its lives: `L` tells the lives of one apart.
#[derive(Clone, Debug)]
pub struct CounterTotals<K, L>(BTreeMap<K, TotalsEntry<L>>);

#[derive(Clone, Debug)]
struct TotalsEntry<L> {
    life: L,
    /// What this life has counted.
    now: Counters,
    /// What those before it have.
    before: Counters,
}

impl<K, L> Default for CounterTotals<K, L> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone, L: PartialEq> CounterTotals<K, L> {
    /// This is what `key` has counted up to now in this life.
    pub fn see(&mut self, key: &K, life: L, now: Counters) {
        match self.0.get_mut(key) {
            None => drop(self.0.insert(key.clone(), TotalsEntry { life, now, before: Counters::default() })),
            Some(account) => {
                if account.life != life || now.has_fallen_since(&account.now) {
                    account.before.add(&account.now);
                }
                (account.life, account.now) = (life, now);
            }
        }
    }

    /// What those that `chosen` picks have counted together, over all their lives.
    pub fn sum(&self, chosen: impl Fn(&K) -> bool) -> Counters {
        let mut sum = Counters::default();
        for (_, account) in self.0.iter().filter(|(key, _)| chosen(key)) {
            sum.add(&account.before);
            sum.add(&account.now);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lie_below_the_bound_of_their_bucket() {
        let mut times = Histogram::default();
        for micros in [0, 1, 2, 3, 1000, 1_000_000, 1 << 40] {
            times.record(Duration::from_micros(micros));
        }
        assert_eq!([times.below(0), times.below(1), times.below(2), times.below(10)], [1, 2, 4, 5]);
        assert_eq!((times.below(20), times.count()), (6, 7));
        assert!((times.seconds() - 1_099_512.628_782).abs() < 1e-3);
        assert_eq!(Histogram::bucket(Duration::MAX), Histogram::BUCKETS - 1);
    }

    #[test]
    fn a_sum_goes_over_lives_and_never_down() {
        let tally = |n: u64| {
            let mut tally = Counters::new([("a", n)]);
            (0..n).for_each(|_| tally.times.record(Duration::from_micros(5)));
            tally
        };
        let mut ledger = CounterTotals::default();
        let sum = |ledger: &CounterTotals<&str, u32>| {
            let sum = ledger.sum(|_| true);
            assert_eq!(sum.of("a"), sum.times.count());
            sum.of("a")
        };
        let steps =
            [("x", 1, 2, 2), ("x", 1, 5, 5), ("x", 2, 7, 12), ("x", 2, 1, 13), ("y", 1, 1, 14), ("x", 2, 1, 14)];
        for (key, life, count, total) in steps {
            ledger.see(&key, life, tally(count));
            assert_eq!(sum(&ledger), total, "{key} {life} {count}");
        }
        assert_eq!(ledger.sum(|key| *key == "y").of("a"), 1);
    }

    #[test]
    fn what_others_wrote_cannot_overflow_a_sum() {
        let mut times = Histogram::new([u64::MAX; 99], u64::MAX);
        times.add(&times.clone());
        assert_eq!((times.count(), times.below(3)), (u64::MAX, u64::MAX));
        let long: Histogram = serde_json::from_str(&format!("{{\"buckets\":{:?},\"micros\":1}}", [1; 99])).unwrap();
        times.add(&long);
        assert_eq!(times.buckets.len(), Histogram::BUCKETS);
    }
}
