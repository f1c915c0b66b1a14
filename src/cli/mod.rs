//! The commands: from arguments to action, one file each.

pub mod call;
