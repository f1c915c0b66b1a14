//! Incarnations, leases and their tokens.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Monotonic;

/// Incarnation number of a role, from 1; incremented at each start of the role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Epoch(NonZeroU32);

impl Epoch {
    /// The first epoch.
    pub(crate) const FIRST: Epoch = Epoch(NonZeroU32::MIN);

    /// The epoch stored as `raw`; `None` for 0 (the role has never started) and beyond 32 bits.
    pub(crate) fn new(raw: u64) -> Option<Self> {
        u32::try_from(raw).ok().and_then(NonZeroU32::new).map(Self)
    }

    /// The next epoch; the first one follows the last one.
    pub(crate) fn next(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(NonZeroU32::MIN))
    }

    /// The number itself.
    pub(crate) fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a lease: the low 20 bits of the dispatcher's epoch above a counter of 36 bits. An id is unique within
/// a set until the dispatcher has been restarted a million times. An id has 56 bits, because it shares the claim word
/// with the phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LeaseId(u64);

impl LeaseId {
    const COUNTER_BITS: u32 = 36;

    /// The id stored as `raw`; `None` for 0 and for more than 56 bits.
    pub(crate) fn new(raw: u64) -> Option<Self> {
        (raw != 0 && raw >> 56 == 0).then_some(Self(raw))
    }

    /// The `count`-th lease (from 1) of the dispatcher of this epoch.
    pub(crate) fn of(epoch: Epoch, count: u64) -> Self {
        debug_assert!(count > 0 && count >> Self::COUNTER_BITS == 0);
        Self(u64::from(epoch.get() & 0xf_ffff) << Self::COUNTER_BITS | count)
    }

    /// The number itself.
    pub(crate) fn get(self) -> u64 {
        self.0
    }

    /// The low 20 bits of the epoch of the dispatcher that granted the lease.
    pub(crate) fn dispatcher_epoch(self) -> u64 {
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

    /// The bits as they are stored in a segment, high word first.
    pub fn words(self) -> [u64; 2] {
        [(self.0 >> 64) as u64, self.0 as u64]
    }

    /// The token of these two words, high word first.
    pub fn from_words([high, low]: [u64; 2]) -> Self {
        Self(u128::from(high) << 64 | u128::from(low))
    }

    /// Parses exactly 32 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 32 || !text.bytes().all(is_digit) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(Self)
    }

    /// Whether the tokens are equal. The time does not depend on the position of a difference.
    pub fn matches(self, other: Token) -> bool {
        std::hint::black_box(self.0 ^ other.0) == 0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Does not show the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The terms of a lease: the incarnations that it binds, its secret and its deadlines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseTerms {
    /// The lease.
    pub lease: LeaseId,
    /// The incarnation of the worker that the lease was offered to; every other one rejects it.
    pub worker_epoch: Epoch,
    /// The incarnation of the dispatcher that granted it.
    pub dispatcher_epoch: Epoch,
    /// The client's proof.
    pub token: Token,
    /// When an unclaimed lease ends.
    pub claim_by: Monotonic,
    /// The time that the request may take, from the claim.
    pub request_timeout: Duration,
    /// The mark of the connection that is handed over with the lease; 0 without one. By the mark a new dispatcher finds
    /// the lease of a connection in the descriptor store.
    pub connection: u32,
}

/// What a slot shows of a session: a connection that switches to another protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SessionRequest {
    /// The last lease whose client wanted one.
    pub wanted: Option<LeaseId>,
    /// The last lease that the dispatcher has decided about, and whether it may have one.
    pub decided: Option<(LeaseId, bool)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_parse_their_own_text_and_nothing_else() {
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
