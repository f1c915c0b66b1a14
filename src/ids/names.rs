//! Names of pools and workers.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of a pool: one to 32 characters of `[a-z0-9_]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolName(Arc<str>);

/// The text is not one to 32 characters of `[a-z0-9_]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name: use 1 to 32 characters of a-z, 0-9 and _")]
pub struct BadPoolName(pub String);

impl PoolName {
    /// The longest name, in bytes.
    pub const MAX: usize = 32;

    /// Checks `name`.
    pub fn new(name: &str) -> Result<Self, BadPoolName> {
        let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if name.is_empty() || name.len() > Self::MAX || !name.bytes().all(is_allowed) {
            return Err(BadPoolName(name.to_owned()));
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
    type Error = BadPoolName;
    fn try_from(name: String) -> Result<Self, BadPoolName> {
        Self::new(&name)
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> String {
        name.0.as_ref().to_owned()
    }
}

/// The number of a worker in its pool, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct WorkerNumber(NonZeroU16);

/// The number is 0 or above 65535, or the text is not a decimal number without leading zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker's number is from 1 to 65535")]
pub struct BadWorkerNumber;

impl WorkerNumber {
    /// The first worker.
    pub const FIRST: WorkerNumber = WorkerNumber(NonZeroU16::MIN);

    /// `None` for 0.
    pub fn new(number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(Self)
    }

    /// For a number that is known to be one.
    ///
    /// # Panics
    /// When `number` is 0.
    pub const fn of(number: u16) -> Self {
        match NonZeroU16::new(number) {
            Some(number) => Self(number),
            None => panic!("workers are numbered from 1"),
        }
    }

    /// The workers of a pool of `count`, in order.
    pub fn up_to(count: u16) -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator + Clone {
        (1..=count).map(Self::of)
    }

    /// The number itself.
    pub fn get(self) -> u16 {
        self.0.get()
    }

    /// The worker's position in a list of the pool's workers, from 0.
    pub fn index(self) -> usize {
        usize::from(self.get()) - 1
    }
}

impl fmt::Display for WorkerNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for WorkerNumber {
    type Err = BadWorkerNumber;
    fn from_str(text: &str) -> Result<Self, BadWorkerNumber> {
        if !text.starts_with(|c: char| ('1'..='9').contains(&c)) {
            return Err(BadWorkerNumber);
        }
        text.parse().map(Self).map_err(|_| BadWorkerNumber)
    }
}

impl TryFrom<u16> for WorkerNumber {
    type Error = BadWorkerNumber;
    fn try_from(number: u16) -> Result<Self, BadWorkerNumber> {
        Self::new(number).ok_or(BadWorkerNumber)
    }
}

impl From<WorkerNumber> for u16 {
    fn from(number: WorkerNumber) -> u16 {
        number.get()
    }
}

/// A worker of a pool. Written `pool/number`; in unit names `pool-number`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId {
    /// The pool.
    pub pool: PoolName,
    /// The worker's number in the pool.
    pub number: WorkerNumber,
}

/// The text is neither `pool/number` nor `pool-number`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a worker: write POOL-N, for instance default-1")]
pub struct BadWorkerId(pub String);

impl WorkerId {
    /// The instance name of the worker's systemd unit: `pool-number`.
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
    fn worker_numbers_start_at_one() {
        assert_eq!((WorkerNumber::new(0), WorkerNumber::try_from(0)), (None, Err(BadWorkerNumber)));
        let last = WorkerNumber::of(u16::MAX);
        assert_eq!((WorkerNumber::FIRST.index(), last.index(), u16::from(last)), (0, 65534, u16::MAX));
        assert_eq!(last.to_string().parse(), Ok(last));
        for bad in ["", "0", "01", "+1", "-1", "1x", "65536"] {
            assert_eq!(bad.parse::<WorkerNumber>(), Err(BadWorkerNumber), "{bad}");
        }
        assert!(WorkerNumber::up_to(3).map(WorkerNumber::get).eq(1..=3));
        assert_eq!((WorkerNumber::up_to(0).len(), WorkerNumber::up_to(u16::MAX).next_back()), (0, Some(last)));
    }

    #[test]
    fn worker_numbers_are_plain_numbers_in_json() {
        let number = WorkerNumber::of(12);
        assert_eq!(serde_json::to_string(&number).unwrap(), "12");
        assert_eq!(serde_json::from_str::<WorkerNumber>("12").unwrap(), number);
        assert!(serde_json::from_str::<WorkerNumber>("0").is_err());
    }
}
