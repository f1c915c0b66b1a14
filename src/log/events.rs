//! The events that an operator can filter by: each has a stable name (`PATOU_EVENT`) and a stable number
//! (`MESSAGE_ID`), under which `systemd/patou.catalog` explains it (`journalctl -x`).
//!
//! Names and numbers never change and are never reused. A new event gets a new number (`journalctl --new-id128`) and an
//! entry in the catalog.

use std::fmt;

macro_rules! events {
    ($($(#[$doc:meta])+ $variant:ident = $id:literal, $name:literal;)+) => {
        /// A kind of event: the field `event` of a `tracing` call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Event {
            $($(#[$doc])+ $variant,)+
        }

        impl Event {
            /// All events.
            pub(crate) const ALL: &[Event] = &[$(Event::$variant),+];

            /// The value of `PATOU_EVENT`.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Event::$variant => $name,)+
                }
            }

            /// The `MESSAGE_ID`, which is written as 32 hexadecimal digits.
            pub(crate) fn id(self) -> u128 {
                match self {
                    $(Event::$variant => $id,)+
                }
            }
        }
    };
}

events! {
    // The set.
    /// Every part is up for the first time.
    SetUp = 0x879fe9ca876940af828eed464570b5fb, "set-up";
    /// The set received a stop signal.
    SetStopping = 0x1dea1033da1146c5b8ad3d2b61cecca9, "set-stopping";
    /// The set received a second stop signal.
    SetStoppingNow = 0xb36309efeea249c0a6d1a92f96cf6111, "set-stopping-now";
    /// The set has stopped.
    SetStopped = 0xbc003227374a4b33bf1040eca47899a1, "set-stopped";
    /// A stop signal came before the set had started.
    SetNotStarted = 0xa61e6a2bb8b54fa484821d671cc71ee4, "set-not-started";
    /// Processes of the previous set still serve requests.
    PreviousSetBusy = 0x08909f91514c4cff9f3acfd6c6ddd80e, "previous-set-busy";
    /// The configuration is invalid, and the command did not start.
    ConfigRefused = 0x0b370f8c0c8b4720bf4566dbf5c948b8, "config-refused";
    /// A part could not start or continue.
    StartRefused = 0x6f5b6835971949ac81fdb6f0b1a81d16, "start-refused";
    /// A new configuration is in force.
    ReloadApplied = 0x6f6a5fd34f694ad7a86681b935057fcc, "reload-applied";
    /// A new configuration was refused; the previous one stays in force.
    ReloadRefused = 0xa71e3c1dc7b94c72816ec55d0686a39c, "reload-refused";
    /// A file in the runtime directory cannot be written or removed.
    RuntimeDirError = 0xa8e697d2fd4e449689691ac9e3e577af, "runtime-dir-error";
    /// Files of the running set were removed from outside.
    FilesLost = 0x5d0e7c3b92f14a6c8b1e64f0a7d2c913, "files-lost";
    /// A process has survived SIGKILL.
    ProcessSurvived = 0x2091d0dd0181497f8e7ed1796bf3da15, "process-survived";
    /// The machine was suspended.
    MachineSuspended = 0x807fcbd77381422185092937cce28dae, "machine-suspended";
    /// A panic: a bug in patou.
    InternalError = 0x9b9db936920a4df89be3fd75b221a7e8, "internal-error";
    /// The journal did not accept some records.
    RecordsLost = 0xf5b9d8fc92044f97beaec0939efab70b, "records-lost";
    // Parts.
    /// The evidence, before a part is killed.
    PartKilled = 0xb28474ca0605402eb89ccd6d07c3a12e, "part-killed";
    /// A part exited by itself and restarts.
    PartRestarted = 0x1245b107589f44b781cdca9f1efcb5ef, "part-restart";
    /// A part serves again.
    PartRecovered = 0xaedf39f02e0349d6acb0113caddb17a4, "part-recovered";
    /// A part is not restarted any more.
    PartFailed = 0xb2fcb6b6265542f3b8d31531a949ce0e, "part-failed";
    /// Every worker of a pool has failed.
    PoolFailed = 0x4769c104c468472cacc1637374174000, "pool-failed";
    /// An administrator has stopped the unit of a part.
    PartStopped = 0xc7c40da73b294ce7fd73ffdb54b0f3fa, "part-stopped";
    /// A part keeps failing, and waits before it is ready again.
    PartHeldBack = 0xe28067d3b25448e6103173e19818b662, "part-held-back";
    /// A part is runnable, but gets no processor.
    PartStarved = 0xa24f195a7a0e4e9b8bcbc4a41a7eb4d8, "part-starved";
    /// A debugger or the cgroup freezer has stopped a part.
    PartSuspended = 0x80c2c83ad4f043c1b907112035da5025, "part-suspended";
    /// A part is no longer starved or suspended.
    PartResumed = 0xcc150a3a0174453e97712955ac8780e9, "part-resumed";
    /// A part did not stop in time and is killed.
    PartOverdue = 0xaad492d56fa04e008d6f2a19d963b779, "part-overdue";
    /// A reload removed a worker from the set.
    WorkerRemoved = 0x2ea0ab878ea441d4a9f74449bbc2d43a, "worker-removed";
    /// A worker did not answer an offer in time.
    WorkerLate = 0x75bc629e60024c84aca998626a8fc565, "worker-late";
    /// A late worker answers again.
    WorkerBack = 0x028aaf41ba7a4d839c8257424627ed3c, "worker-back";
    /// A slot holds values that no correct process writes.
    SlotCorrupt = 0x00c1e66b10044815abbdfe68745d0116, "slot-corrupt";
    /// An operator took a worker out of service.
    WorkerDrained = 0xbeaefe1167ce42f289d7da972ec4334c, "worker-drained";
    /// An operator put a worker back into service.
    WorkerResumed = 0x47434550e1e04700b83146a298bcd05b, "worker-resumed";
    /// An operator requests that workers are replaced.
    RecycleRequested = 0x449bae76a01847139cb84ddff37b8e77, "recycle-requested";
    /// A worker is replaced as planned.
    WorkerRecycled = 0xb9d83705225b443881e0c62d793320c7, "worker-recycled";
    /// A planned replacement failed.
    RecycleFailed = 0x27e14dedd8ff4450b9837cf2f19a641c, "recycle-failed";
    /// A connection cannot be accepted.
    AcceptFailed = 0x9ea1478972b444e79ec973560ee2ae74, "accept-failed";
    /// The limit of open files allows fewer connections than configured.
    ConnectionsLimited = 0x22473084376445e5be80a7be136f1390, "connections-limited";
    /// Clients queued in the previous dispatcher are rejected.
    ConnectionsRejected = 0x6c6678b4a1ea4839a9186930fb72d2a2, "connections-rejected";
    /// A connection to a listener with `proxy_protocol` has no valid header.
    BadProxyHeader = 0xd85429299b034e2db9d26965daa65a53, "bad-proxy-header";
    /// A connection to a listener with `protocol = "fastcgi"` is not from one of its clients, or no FastCGI.
    BadFastcgiClient = 0x5b0e2f1d9c7a4e63a1d84f60b7c93e25, "bad-fastcgi-client";
    // Requests.
    /// A request has no valid response.
    RequestFailed = 0x1834c8a431fd4924837dee642a43d41e, "request-failed";
    /// A request exceeded `request_timeout`.
    RequestDeadline = 0x82f7a4da08cb4c6d9697b4c9f0abbf98, "request-deadline";
    /// The client of a request disconnected.
    RequestCancelled = 0x807e05cb7ef74cfa87a07faafe8853b7, "request-cancelled";
    /// A session lasted for as long as it may.
    SessionClosed = 0xd49d897cc4d1043ece7666223ab815e8, "session-closed";
    /// The worker of a request died.
    RequestLost = 0x51a50f233cb549e28c8d866dbb2bc82a, "request-lost";
    /// A response ended early.
    ResponseCut = 0x340e704949d645b3ab598d3091efed9f, "response-cut";
    /// A handler blocks the serving thread.
    HandlerBlocked = 0x3f98ccef267e4178a6a2becc82615456, "handler-blocked";
    /// The handler's process died or violated its protocol.
    HandlerFault = 0xff4cac9b4e614b23b9755809467f8fb8, "handler-fault";
    /// The handler's process cannot be started.
    HandlerUnavailable = 0xb3e4f492b6b54fc59e9435a5391eaf8f, "handler-unavailable";
    /// A line that the handler's process printed.
    HandlerOutput = 0x886c50d38115443a96013399ba27c97e, "handler-output";
    /// The number of handler output lines that the rate limit dropped.
    HandlerSuppressed = 0x640219ffe08c44f19bed836c30ea8343, "handler-output-suppressed";
    /// A line of the access log.
    RequestLogged = 0x82e156bf1573492d91425acb62a35b9b, "request-logged";
    // The steps of a request, at level debug.
    /// The dispatcher offers a request to a worker.
    LeaseOffered = 0x73edc7a5276a4d189b36896063e7b776, "lease-offered";
    /// The worker accepts or refuses the offer.
    LeaseAnswered = 0x6de845ee93b1423aa6338d06d84ebdee, "lease-answered";
    /// The client receives the lease.
    LeaseGranted = 0xf400f18224bf40a6ba84609f8bb11bf0, "lease-granted";
    /// The client did not use the lease in time.
    LeaseUnclaimed = 0xd83a02650c484e1da9e7dbb54e9bd2bd, "lease-unclaimed";
    /// The worker claims the lease and starts the request.
    LeaseClaimed = 0x0ca19ab6f725439981b9b300b25a6995, "lease-claimed";
    /// The response is complete.
    RequestAnswered = 0xc64cbab4220f4b968dd5bdd49804720f, "request-answered";
    /// The worker is free again.
    LeaseOver = 0x235e14c69a524ff18ed027ce284ba1c2, "lease-over";
}

impl Event {
    /// The event with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|event| event.name() == name)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::process::Command;

    const CATALOG: &str = include_str!("../../systemd/patou.catalog");

    /// The entries of the catalog by id: header lines and text.
    fn catalog() -> BTreeMap<String, (BTreeMap<&'static str, &'static str>, &'static str)> {
        let mut entries = BTreeMap::new();
        let start = CATALOG.find("\n-- ").unwrap();
        for entry in CATALOG[start..].split("\n-- ").skip(1) {
            let (entry, _) = entry.split_once("\n# ").unwrap_or((entry, "")); // the title of the next section
            let (head, text) = entry.split_once("\n\n").unwrap();
            let (id, head) = head.split_once('\n').unwrap();
            let head = head.lines().map(|line| line.split_once(": ").unwrap()).collect();
            assert!(entries.insert(id.to_owned(), (head, text)).is_none(), "{id} has two entries");
        }
        entries
    }

    #[test]
    fn event_names_and_numbers_are_unique() {
        let ids: BTreeSet<u128> = Event::ALL.iter().map(|event| event.id()).collect();
        assert_eq!(ids.len(), Event::ALL.len());
        for event in Event::ALL {
            assert_eq!(Event::named(event.name()), Some(*event), "{event} is the name of two events");
            let allowed = |c: char| c.is_ascii_lowercase() || c == '-';
            assert!(event.name().chars().all(allowed) && event.name().contains(allowed), "{event}");
        }
        assert_eq!(Event::named("no-such-event"), None);
    }

    #[test]
    fn catalog_has_exactly_one_entry_for_each_event() {
        let catalog = catalog();
        let ids: BTreeSet<String> = Event::ALL.iter().map(|event| format!("{:032x}", event.id())).collect();
        assert_eq!(catalog.keys().cloned().collect::<BTreeSet<_>>(), ids);
        for (id, (head, text)) in &catalog {
            assert!(!head["Subject"].is_empty() && !text.trim().is_empty(), "{id}");
            assert_eq!(
                [head["Defined-By"], head["Support"], head["Documentation"]],
                ["patou", "man:patou(7)", "man:patou(7)"]
            );
            assert!(text.lines().all(|line| line.len() <= 100 && !line.starts_with("--")), "{id}");
            // References are complete and name patou's fields only: systemd fills the others.
            for reference in format!("{}\n{text}", head["Subject"]).split('@').skip(1).step_by(2) {
                assert!(reference.starts_with("PATOU_"), "{id}: @{reference}@");
            }
        }
    }

    #[test]
    fn journalctl_accepts_the_catalog() {
        let root = std::env::temp_dir().join(format!("patou-catalog-{}", std::process::id()));
        let dir = root.join("usr/lib/systemd/catalog");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("patou.catalog"), CATALOG).unwrap();
        let journalctl = |action: &str| Command::new("journalctl").arg(action).arg("--root").arg(&root).output();
        match journalctl("--update-catalog") {
            Err(_) => eprintln!("SKIPPED: no journalctl on this machine"),
            Ok(updated) => {
                let errors = String::from_utf8_lossy(&updated.stderr).into_owned();
                assert!(updated.status.success() && errors.is_empty(), "{errors}");
                let dump = journalctl("--dump-catalog").unwrap().stdout;
                let dump = String::from_utf8(dump).unwrap();
                for (id, (head, text)) in catalog() {
                    let (_, entry) =
                        dump.split_once(&format!("-- {id}\n")).unwrap_or_else(|| panic!("{id} is missing"));
                    assert!(entry.starts_with(&format!("Subject: {}\n", head["Subject"])), "{entry}");
                    assert!(entry.contains(text.trim()), "{id}");
                }
            }
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}
