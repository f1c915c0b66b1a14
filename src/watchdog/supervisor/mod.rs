//! The two supervisors: one starts the parts as child processes, one watches systemd units.

pub mod cgroup;
pub mod child_supervisor;
mod children;
mod spawn;
pub mod systemd;
mod systemctl;
mod unit_processes;
