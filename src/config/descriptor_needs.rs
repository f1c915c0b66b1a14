//! How many connections the limit of open files allows.

#![forbid(unsafe_code)]

/// Descriptors that dispatcher and watchdog keep from connections: for their sockets, signals, the runtime, the probe and
/// its clients, the descriptor store and the log, one in reserve, and the start of a process.
const RESERVED: usize = 64;

/// Of these, what a dispatcher needs in any case.
const MINIMUM: usize = 24;

/// Descriptors that a worker keeps from the connections to its own address.
const WORKER_RESERVED: usize = 64;

/// What dispatcher and watchdog need descriptors for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DescriptorNeeds {
    connections: usize,
    listeners: usize,
    workers: usize,
}

impl DescriptorNeeds {
    pub(super) fn new(connections: usize, listeners: usize, workers: usize) -> Self {
        Self { connections, listeners, workers }
    }

    /// How many connections a dispatcher serves at the same time if it may open `limit` files, and how many the watchdog
    /// of `patou run` keeps for the next dispatcher. The dispatcher has four descriptors for each worker and one for each
    /// listener, the watchdog five, and two while it starts a dispatcher. An eighth of a low limit remains for
    /// connections: the reserve is for the worst case.
    pub(crate) fn connections_within(self, limit: u64) -> usize {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        limit.saturating_sub(self.reserved(limit as u64)).max(limit / 8).clamp(1, self.connections)
    }

    fn reserved(self, limit: u64) -> usize {
        RESERVED + 2 * self.listeners + 5 * self.workers + 2 * admin_connections_within(limit)
    }

    /// The least that a dispatcher needs to serve.
    pub(crate) fn minimum(self) -> u64 {
        (MINIMUM + self.listeners + 4 * self.workers) as u64
    }

    /// Why fewer connections are served than `front.connections`, with the remedy; `None` if the limit is sufficient.
    pub(crate) fn limitation(self, limit: u64) -> Option<String> {
        let (connections, allowed) = (self.connections, self.connections_within(limit));
        (allowed < connections).then(|| {
            format!(
                "front.connections is {connections}, but the limit of open files ({limit}) allows {allowed}: more clients \
                 wait in the backlog of the kernel; raise the limit (LimitNOFILE= of the unit, ulimit -Hn before patou \
                 run) to {}, or reduce front.connections",
                connections + self.reserved(u64::MAX)
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
    (limit / 32).clamp(4, 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_limited_to_what_the_reserve_leaves() {
        let needs = DescriptorNeeds::new(20_000, 2, 4);
        let reserved = 64 + 2 * 2 + 5 * 4;
        assert_eq!(needs.connections_within(u64::MAX), 20_000);
        assert_eq!(needs.connections_within(300), 300 - reserved - 2 * 9);
        assert_eq!((needs.connections_within(64), needs.connections_within(0)), (8, 1));
        assert_eq!(needs.limitation(30_000), None);
        let enough = 20_000 + reserved as u64 + 2 * 64;
        assert_eq!((needs.limitation(enough), needs.limitation(enough - 1).is_some()), (None, true));
        let text = needs.limitation(300).unwrap();
        assert!(text.contains("20000") && text.contains("(300) allows 194") && text.contains("to 20216"), "{text}");
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
