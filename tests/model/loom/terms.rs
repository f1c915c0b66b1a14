//! The terms of a lease, read while the lease changes.

use loom::thread;

use super::{Missing, NOW, assert_whole, bounded, lease, sides_in, terms_of, token};
use crate::exchange::{self, ClaimError};
use crate::ids::{Claim, Epoch, Phase};

/// A reader of the lease line gets the terms of the lease in the claim word.
fn lease_line(missing: Missing) {
    bounded(3, move || {
        let (mut dispatcher, worker) = sides_in(missing, Phase::Offered);
        let offering = thread::spawn(move || {
            assert!(dispatcher.revoke(lease(1)) && dispatcher.release(lease(1)));
            dispatcher.offer(&terms_of(2, Epoch::FIRST)).unwrap();
        });
        if let Some((claim, terms)) = exchange::terms(worker.memory()) {
            assert!(matches!(claim, Claim::Held(lease, _) if lease == terms.lease));
            assert_whole(&terms);
        }
        offering.join().unwrap();
    });
}

#[test]
fn terms_belong_to_the_lease_in_the_claim_word() {
    lease_line(Missing::Nothing);
}

#[test]
#[should_panic(expected = "torn terms")]
fn terms_need_their_release_fence() {
    lease_line(Missing::ReleaseFence);
}

#[test]
#[should_panic(expected = "torn terms")]
fn terms_need_their_acquire_fence() {
    lease_line(Missing::AcquireFence);
}

#[test]
#[should_panic(expected = "torn terms")]
fn terms_need_an_ordered_swap() {
    lease_line(Missing::SwapOrder);
}

/// The token of lease `n` claims that lease, or nothing, while the dispatcher replaces lease 1 by lease 2.
fn claim_by_token(n: u64) {
    bounded(3, move || {
        let (mut dispatcher, worker) = sides_in(Missing::Nothing, Phase::Offered);
        let client = thread::spawn(move || {
            let claimed = worker.claim(token(n), NOW);
            if let Ok(terms) = &claimed {
                assert_eq!(terms.lease, lease(n), "claimed another lease");
                assert_whole(terms);
            }
            claimed
        });
        let revoked = dispatcher.revoke(lease(1));
        if revoked {
            assert!(dispatcher.release(lease(1)));
            dispatcher.offer(&terms_of(2, Epoch::FIRST)).unwrap();
        }
        let claimed = client.join().unwrap();
        match n {
            1 => assert_ne!(revoked, claimed.is_ok(), "both or neither succeeded"),
            _ => assert!(revoked || claimed.is_err()),
        }
        if let Err(error) = claimed {
            assert!(matches!(error, ClaimError::Expired | ClaimError::Foreign));
        }
    });
}

#[test]
fn a_token_claims_its_own_lease_or_nothing() {
    claim_by_token(1);
    claim_by_token(2);
}
