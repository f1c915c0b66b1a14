//! How parts are started, stopped and killed: as children of the watchdog, or as systemd units.

pub mod cgroup;
pub mod children;
pub mod spawn;
pub mod systemd;
