//! The two supervisors: one starts the parts as child processes, one watches systemd units.

pub(super) mod cgroup;
pub(super) mod child_supervisor;
mod children;
mod repair;
mod spawn;
pub(super) mod systemd;
mod systemctl;
mod unit_processes;
