//! Counters by name and histograms of times, and their totals over all incarnations of a part. Pure code.
//!
//! Dispatcher and workers keep counters, and may die. The totals keep the counters of dead incarnations, so that a
//! total never decreases.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Times, in buckets of powers of two of microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Histogram {
    /// Bucket `i` counts the times below `2^i` microseconds that are in no earlier bucket; at most [`Self::BUCKETS`].
    buckets: Vec<u64>,
    /// The sum of all times, in microseconds.
    micros: u64,
}

impl Histogram {
    /// Number of buckets. The last one also counts all longer times.
    pub(crate) const BUCKETS: usize = 32;

    /// A histogram of these buckets, from the first, and this sum of times in microseconds.
    pub(crate) fn new(buckets: impl IntoIterator<Item = u64>, micros: u64) -> Self {
        Self { buckets: buckets.into_iter().take(Self::BUCKETS).collect(), micros }
    }

    /// The bucket of this time.
    pub(crate) fn bucket(time: Duration) -> usize {
        let bits = u64::BITS - micros(time).leading_zeros();
        (bits as usize).min(Self::BUCKETS - 1)
    }

    /// Counts one time.
    pub(crate) fn record(&mut self, time: Duration) {
        let bucket = Self::bucket(time);
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.micros = self.micros.saturating_add(micros(time));
    }

    /// The number of times below `2^exponent` microseconds, for an exponent below [`Self::BUCKETS`] - 1.
    pub(crate) fn below(&self, exponent: usize) -> u64 {
        self.buckets.iter().take(exponent + 1).fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The number of all times.
    pub(crate) fn count(&self) -> u64 {
        self.below(Self::BUCKETS - 1)
    }

    /// The sum of all times, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.micros as f64 / 1e6
    }

    /// Adds the times of another histogram.
    pub(crate) fn add(&mut self, other: &Histogram) {
        let added = other.buckets.len().min(Self::BUCKETS);
        self.buckets.resize(self.buckets.len().max(added), 0);
        for (sum, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum = sum.saturating_add(*count);
        }
        self.micros = self.micros.saturating_add(other.micros);
    }

    fn has_decreased_since(&self, before: &Histogram) -> bool {
        let now = self.buckets.iter().chain(std::iter::repeat(&0));
        before.buckets.iter().zip(now).any(|(before, now)| now < before)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Counters by name, and times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// The counters.
    pub counts: BTreeMap<Cow<'static, str>, u64>,
    /// The times.
    pub times: Histogram,
}

impl Counters {
    /// These counters, without times.
    pub(crate) fn new(counts: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        let counts = counts.into_iter().map(|(name, count)| (name.into(), count)).collect();
        Self { counts, times: Histogram::default() }
    }

    /// Increments a counter.
    pub(crate) fn count(&mut self, name: &'static str) {
        *self.counts.entry(name.into()).or_default() += 1;
    }

    /// The value of a counter; 0 if it was never incremented.
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// Adds other counters and times.
    pub(crate) fn add(&mut self, other: &Counters) {
        for (name, count) in &other.counts {
            let sum = self.counts.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        self.times.add(&other.times);
    }

    /// Whether a counter has decreased: its process has restarted.
    fn has_decreased_since(&self, before: &Counters) -> bool {
        before.counts.iter().any(|(name, count)| self.get(name) < *count)
            || self.times.has_decreased_since(&before.times)
    }
}

/// The counters of each part `K` over all its incarnations, which `I` distinguishes.
#[derive(Clone, Debug)]
pub(crate) struct CounterTotals<K, I>(BTreeMap<K, TotalsEntry<I>>);

#[derive(Clone, Debug)]
struct TotalsEntry<I> {
    incarnation: I,
    /// The counters of this incarnation.
    current: Counters,
    /// The sum of all earlier incarnations.
    earlier: Counters,
}

impl<K, I> Default for CounterTotals<K, I> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone, I: PartialEq> CounterTotals<K, I> {
    /// Stores the current counters of this incarnation of `key`.
    pub(crate) fn update(&mut self, key: &K, incarnation: I, current: Counters) {
        match self.0.get_mut(key) {
            None => {
                let entry = TotalsEntry { incarnation, current, earlier: Counters::default() };
                self.0.insert(key.clone(), entry);
            }
            Some(entry) => {
                if entry.incarnation != incarnation || current.has_decreased_since(&entry.current) {
                    entry.earlier.add(&entry.current);
                }
                (entry.incarnation, entry.current) = (incarnation, current);
            }
        }
    }

    /// The sum over the parts that `includes` selects, over all their incarnations.
    pub(crate) fn sum(&self, includes: impl Fn(&K) -> bool) -> Counters {
        let mut sum = Counters::default();
        for (_, entry) in self.0.iter().filter(|(key, _)| includes(key)) {
            sum.add(&entry.earlier);
            sum.add(&entry.current);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_below_the_bound_of_its_bucket() {
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
    fn a_total_covers_all_incarnations_and_never_decreases() {
        let counters = |n: u64| {
            let mut counters = Counters::new([("a", n)]);
            (0..n).for_each(|_| counters.times.record(Duration::from_micros(5)));
            counters
        };
        let mut totals = CounterTotals::default();
        let sum = |totals: &CounterTotals<&str, u32>| {
            let sum = totals.sum(|_| true);
            assert_eq!(sum.get("a"), sum.times.count());
            sum.get("a")
        };
        let steps =
            [("x", 1, 2, 2), ("x", 1, 5, 5), ("x", 2, 7, 12), ("x", 2, 1, 13), ("y", 1, 1, 14), ("x", 2, 1, 14)];
        for (key, incarnation, count, total) in steps {
            totals.update(&key, incarnation, counters(count));
            assert_eq!(sum(&totals), total, "{key} {incarnation} {count}");
        }
        assert_eq!(totals.sum(|key| *key == "y").get("a"), 1);
    }

    #[test]
    fn foreign_values_cannot_overflow_a_sum() {
        let mut times = Histogram::new([u64::MAX; 99], u64::MAX);
        times.add(&times.clone());
        assert_eq!((times.count(), times.below(3)), (u64::MAX, u64::MAX));
        let long: Histogram = serde_json::from_str(&format!("{{\"buckets\":{:?},\"micros\":1}}", [1; 99])).unwrap();
        times.add(&long);
        assert_eq!(times.buckets.len(), Histogram::BUCKETS);
    }
}
