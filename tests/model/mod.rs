//! Models of the crate's internals, compiled into its unit tests: `cargo test --lib model`.

mod corpus;
mod loom;
mod simulation;
