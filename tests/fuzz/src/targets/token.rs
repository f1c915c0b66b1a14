//! Tokens, lease paths and worker names, as text from a client or a command line.

use crate::exchange::{DispatcherSide, WorkerSide};
use crate::ids::{Epoch, LeaseId, LeaseTerms, Monotonic, PoolName, ProcessId, Token, WorkerId};
use crate::worker::lease_url;
use http::{Method, Uri};

use super::slot::ScriptedSlot;

/// The token of the offer.
const SECRET: u128 = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(token) = Token::parse(text) {
        assert_eq!(token.to_string(), text);
    }
    if let Ok(name) = PoolName::new(text) {
        assert!(name.as_str() == text && text.len() <= PoolName::MAX);
    }
    if let Ok(worker) = text.parse::<WorkerId>() {
        assert_eq!(worker.to_string().parse(), Ok(worker.clone()));
        assert_eq!(worker.instance().parse(), Ok(worker.clone()));
        assert!(text == worker.to_string() || text == worker.instance());
    }
    let Ok(uri) = text.parse::<Uri>() else { return };
    for method in [Method::GET, Method::OPTIONS] {
        let Some((token, rest)) = lease_url::split(&method, &uri) else { continue };
        let target = uri.path_and_query().expect("a target").as_str();
        assert!(target.ends_with(rest.as_str().trim_start_matches(['/', '*'])), "{target} became {rest}");
        assert!(rest.as_str().starts_with('/') || rest == "*", "{rest}");
        let Some(token) = token else { continue };
        assert!(target.starts_with(&format!("/.patou/{token}")), "{target} does not contain {token}");
        claim_with(token);
    }
}

/// An offer can be claimed with its own token, once.
fn claim_with(token: Token) {
    let slot = ScriptedSlot::default();
    let now = Monotonic(1_000_000_000);
    let worker = WorkerSide::attach(slot.clone(), 1, 1, None, now);
    let mut dispatcher = DispatcherSide::attach(slot, Epoch::FIRST, ProcessId { pid: 2, start_time: 1 }, None);
    let terms = LeaseTerms {
        lease: LeaseId::of(Epoch::FIRST, 1),
        worker_epoch: worker.epoch(),
        dispatcher_epoch: Epoch::FIRST,
        token: Token::new(SECRET),
        claim_by: now,
        request_timeout: std::time::Duration::from_secs(1),
        connection: 0,
    };
    dispatcher.offer(&terms).expect("a free slot");
    let is_right = token.matches(Token::new(SECRET));
    assert_eq!(worker.claim(token, now).is_ok(), is_right);
    assert!(worker.claim(token, now).is_err());
}
