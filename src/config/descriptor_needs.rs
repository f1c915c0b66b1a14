//! How many connections the limit of open files allows.

#![forbid(unsafe_code)]

/// Descriptors that the dispatcher keeps from its connections: for `probe.sock` and its clients, signals, the runtime,
/// the descriptor store and the log, and one in reserve.
const RESERVED: usize = 48;

/// Descriptors that the watchdog of `patou run` keeps from stored connections: for its own sockets, and for the sockets
/// of workers and the dispatcher while it starts them.
const WATCHDOG_RESERVED: usize = 64;

/// Descriptors that a worker keeps from the connections to its own address.
const WORKER_RESERVED: usize = 64;

/// What the dispatcher needs descriptors for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DescriptorNeeds {
    /// One each: `front.connections`.
    pub(crate) connections: usize,
    /// For everything else.
    pub(crate) reserved: usize,
}

impl DescriptorNeeds {
    pub(super) fn new(connections: usize, listeners: usize, workers: usize) -> Self {
        Self { connections, reserved: RESERVED + listeners + 4 * workers }
    }

    /// How many connections a dispatcher serves at the same time if it may open `limit` files. An eighth of a low limit
    /// remains for connections: the reserve is for the worst case.
    pub(crate) fn connections_within(self, limit: u64) -> usize {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        limit.saturating_sub(self.reserved).max(limit / 8).clamp(1, self.connections)
    }

    /// How many connections the watchdog of `patou run` keeps for the next dispatcher if it may open `limit` files. It
    /// duplicates each of them twice when it starts one.
    pub(crate) fn stored_within(self, limit: u64) -> usize {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let for_parts = 2 * (self.reserved - RESERVED); // five for each worker, three for each listener
        let for_admin = 2 * admin_connections_within(limit as u64);
        (limit.saturating_sub(WATCHDOG_RESERVED + for_parts + for_admin) / 3).min(self.connections)
    }

    /// The least that a dispatcher needs to serve.
    pub(crate) fn minimum(self) -> u64 {
        (self.reserved - RESERVED / 2) as u64
    }

    /// Why fewer connections are served than `front.connections`, with the remedy; `None` if the limit is sufficient.
    pub(crate) fn limitation(self, limit: u64) -> Option<String> {
        let (connections, allowed) = (self.connections, self.connections_within(limit));
        (allowed < connections).then(|| {
            format!(
                "front.connections is {connections}, but the limit of open files ({limit}) allows {allowed}: more clients \
                 wait in the backlog of the kernel; raise the limit (LimitNOFILE= of the unit, ulimit -Hn before patou \
                 run) to {}, or reduce front.connections",
                connections + self.reserved
            )
        })
    }
}

/// How many clients at most have a connection to a worker's own address if it may open `limit` files: the others are for
/// the handler, the slot and the dispatcher.
pub(crate) fn worker_connections_within(connections: usize, limit: u64) -> usize {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    limit.saturating_sub(WORKER_RESERVED).max(limit / 8).clamp(1, connections)
}

/// How many clients of each admin socket the watchdog serves at the same time if it may open `limit` files.
pub(crate) fn admin_connections_within(limit: u64) -> usize {
    (limit / 16).clamp(4, 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_limited_to_what_the_reserve_leaves() {
        let needs = DescriptorNeeds::new(20_000, 2, 4);
        assert_eq!(needs.connections_within(u64::MAX), 20_000);
        assert_eq!(needs.connections_within(20_000 + needs.reserved as u64), 20_000);
        assert_eq!(needs.connections_within(300), 300 - needs.reserved);
        assert_eq!((needs.connections_within(64), needs.connections_within(0)), (8, 1));
        assert_eq!(needs.limitation(30_000), None);
        let text = needs.limitation(300).unwrap();
        assert!(text.contains("20000") && text.contains("(300) allows 234") && text.contains("to 20066"), "{text}");
    }

    #[test]
    fn watchdog_stores_what_it_can_pass_on() {
        let needs = DescriptorNeeds::new(20_000, 2, 4);
        assert_eq!((needs.stored_within(1 << 20), needs.stored_within(64)), (20_000, 0));
        let stored = needs.stored_within(300);
        assert!(stored > 30 && 3 * stored < 300 - WATCHDOG_RESERVED, "{stored}");
    }

    #[test]
    fn limit_of_the_dispatcher_allows_every_configured_connection() {
        let mut config = crate::config::Config::default();
        for (connections, workers) in [(1, 1), (20_000, 2), (1_000_000, 500)] {
            (config.front.connections, config.pools[0].workers) = (connections, workers);
            assert_eq!(config.descriptor_needs().limitation(config.dispatcher_descriptors()), None);
        }
    }
}
