//! The two supervisors: one starts the parts as child processes, one watches systemd units.

pub(super) mod cgroup;
pub(super) mod child_supervisor;
mod children;
mod publish;
mod repair;
mod set_files;
mod spawn;
pub(super) mod systemd;
mod systemctl;
mod unit_files;
mod unit_processes;
