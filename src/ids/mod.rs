//! The names of things: pools, workers, leases, epochs, tokens and points in time.
//!
//! Every identifier that crosses a process boundary is a type of its own with a checked constructor,
//! so that a number read from a segment or a word read from a command line is refused here, once,
//! and not believed anywhere else.

mod process;
mod state;

pub use process::ProcessId;
pub use state::{Claim, LeaseTerms, Lifecycle, Phase, RefuseReason};

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The name of a pool: one to 32 characters of `[a-z0-9_]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolName(Arc<str>);

/// The name is not one to 32 characters of `[a-z0-9_]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name: use 1 to 32 characters of a-z, 0-9 and _")]
pub struct BadName(pub String);

impl PoolName {
    /// The longest name allowed, in bytes.
    pub const MAX: usize = 32;

    /// Checks `name` and keeps it.
    pub fn new(name: &str) -> Result<Self, BadName> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if name.is_empty() || name.len() > Self::MAX || !name.bytes().all(plain) {
            return Err(BadName(name.to_owned()));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PoolName {
    type Error = BadName;
    fn try_from(name: String) -> Result<Self, BadName> {
        Self::new(&name)
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> String {
        name.0.as_ref().to_owned()
    }
}

/// Worker `number` (from 1) of a pool. Written `pool/number` for people, `pool-number` in unit names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId {
    /// The pool the worker belongs to.
    pub pool: PoolName,
    /// Its number within the pool, from 1.
    pub number: u16,
}

/// The text is neither `pool/number` nor `pool-number`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a worker: write POOL-N, for instance default-1")]
pub struct BadWorkerId(pub String);

impl WorkerId {
    /// The name as an instance of a systemd template: `pool-number`.
    pub fn instance(&self) -> String {
        format!("{}-{}", self.pool, self.number)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.number)
    }
}

impl FromStr for WorkerId {
    type Err = BadWorkerId;
    fn from_str(text: &str) -> Result<Self, BadWorkerId> {
        let bad = || BadWorkerId(text.to_owned());
        let (pool, number) = text.rsplit_once(['/', '-']).ok_or_else(bad)?;
        let pool = PoolName::new(pool).map_err(|_| bad())?;
        if !number.starts_with(|c: char| ('1'..='9').contains(&c)) {
            return Err(bad());
        }
        let number = number.parse().map_err(|_| bad())?;
        Ok(Self { pool, number })
    }
}

impl TryFrom<String> for WorkerId {
    type Error = BadWorkerId;
    fn try_from(text: String) -> Result<Self, BadWorkerId> {
        text.parse()
    }
}

impl From<WorkerId> for String {
    fn from(id: WorkerId) -> String {
        id.to_string()
    }
}

/// Incarnation number of a role, from 1; it grows by one each time the role starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(NonZeroU32);

impl Epoch {
    /// The first epoch.
    pub const FIRST: Epoch = Epoch(NonZeroU32::MIN);

    /// The epoch stored as `raw`; `None` for 0 (nobody has been here yet) and beyond 32 bits.
    pub fn new(raw: u64) -> Option<Self> {
        u32::try_from(raw).ok().and_then(NonZeroU32::new).map(Self)
    }

    /// The epoch after this one; after the last comes the first.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(NonZeroU32::MIN))
    }

    /// The number itself.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a lease: the dispatcher's epoch (its low 20 bits) above a counter (36 bits), so that an
/// id is not used again within a set until the dispatcher has been restarted a million times.
/// 56 bits in all: it shares the claim word with the phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(u64);

impl LeaseId {
    const COUNTER_BITS: u32 = 36;

    /// The id stored as `raw`; `None` for 0 and for more than 56 bits.
    pub fn new(raw: u64) -> Option<Self> {
        (raw != 0 && raw >> 56 == 0).then_some(Self(raw))
    }

    /// The `count`-th lease (from 1) that the dispatcher of this epoch gives.
    pub fn of(epoch: Epoch, count: u64) -> Self {
        debug_assert!(count > 0 && count >> Self::COUNTER_BITS == 0);
        Self(u64::from(epoch.get() & 0xf_ffff) << Self::COUNTER_BITS | count)
    }

    /// The number itself.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The low 20 bits of the epoch of the dispatcher that gave it.
    pub fn dispatcher_epoch(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }
}

/// Written `epoch.count`, as in `3.1042`.
impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0 & ((1 << Self::COUNTER_BITS) - 1);
        write!(f, "{}.{count}", self.dispatcher_epoch())
    }
}

/// The secret that proves a lease: 128 random bits, written as 32 hexadecimal digits.
#[derive(Clone, Copy)]
pub struct Token(u128);

impl Token {
    /// Wraps 128 random bits.
    pub fn new(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits, high word first, as they lie in a segment.
    pub fn words(self) -> [u64; 2] {
        [(self.0 >> 64) as u64, self.0 as u64]
    }

    /// The token made of these two words, high word first.
    pub fn from_words([high, low]: [u64; 2]) -> Self {
        Self(u128::from(high) << 64 | u128::from(low))
    }

    /// Reads exactly 32 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 32 || !text.bytes().all(digit) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(Self)
    }

    /// Whether both are the same, in a time that does not depend on where they differ.
    pub fn matches(self, other: Token) -> bool {
        std::hint::black_box(self.0 ^ other.0) == 0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Never shows the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A point on `CLOCK_MONOTONIC` in nanoseconds: the same for every process of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// How long ago `earlier` was; zero if it is not earlier.
    pub fn since(self, earlier: Monotonic) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Monotonic {
    type Output = Monotonic;
    fn add(self, by: Duration) -> Monotonic {
        Monotonic(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_ids_have_two_spellings() {
        let id: WorkerId = "my_pool-12".parse().unwrap();
        assert_eq!(id, "my_pool/12".parse().unwrap());
        assert_eq!((id.to_string(), id.instance()), ("my_pool/12".into(), "my_pool-12".into()));
        for bad in ["", "default", "default-0", "default-01", "default-+1", "De-1", "a-70000", "../x-1", "-1"] {
            assert!(bad.parse::<WorkerId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_read_what_they_write_and_nothing_else() {
        let token = Token::new(0x0123_4567_89ab_cdef_0000_0000_0000_00ff);
        let text = token.to_string();
        assert!(Token::parse(&text).unwrap().matches(token));
        assert!(Token::from_words(token.words()).matches(token));
        assert!(!token.matches(Token::new(1)));
        assert_eq!(format!("{token:?}"), "Token(..)");
        for bad in [&text[1..], &text.to_uppercase(), &format!("+{}", &text[1..]), ""] {
            assert!(Token::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn lease_ids_carry_the_epoch() {
        let id = LeaseId::of(Epoch::new(3).unwrap(), 1042);
        assert_eq!((id.to_string().as_str(), id.dispatcher_epoch()), ("3.1042", 3));
        assert_eq!(LeaseId::new(id.get()), Some(id));
        assert_eq!(LeaseId::new(0), None);
        assert_eq!(LeaseId::new(1 << 56), None);
        assert_eq!((Epoch::new(0), Epoch::new(1 << 32)), (None, None));
        assert_eq!(Epoch::new(u64::from(u32::MAX)).unwrap().next(), Epoch::FIRST);
    }
}
