//! The cost of the pure parts, without a process, a doorbell or a socket:
//! `cargo bench --features internals --bench core`. The operations are in `operations.rs`.

#![allow(missing_docs)] // of what criterion's macros make

use criterion::{Criterion, criterion_group, criterion_main};
use patou::benchmarks;

fn pool(criterion: &mut Criterion) {
    for workers in [4, 1000] {
        let name = format!("pool, one client, {workers} workers");
        criterion.bench_function(&name, |bench| bench.iter(benchmarks::pool(workers)));
    }
}

fn exchange(criterion: &mut Criterion) {
    criterion.bench_function("exchange, offer to answer, revoked", |bench| bench.iter(benchmarks::exchange_revoked()));
    criterion
        .bench_function("exchange, offer to answer, claimed, done", |bench| bench.iter(benchmarks::exchange_done()));
}

fn claim(criterion: &mut Criterion) {
    criterion.bench_function("claim, compare-and-swap and back", |bench| bench.iter(benchmarks::claim_and_back()));
    criterion.bench_function("claim, a wrong token", |bench| bench.iter(benchmarks::wrong_token()));
}

fn head(criterion: &mut Criterion) {
    criterion.bench_function("head, scanned before hyper", |bench| bench.iter(benchmarks::scan_head()));
    criterion.bench_function("head, checked by the dispatcher", |bench| bench.iter(benchmarks::check_head()));
    criterion.bench_function("head, location of the worker", |bench| bench.iter(benchmarks::write_location()));
    criterion.bench_function("head, token and target at the worker", |bench| bench.iter(benchmarks::split_target()));
}

criterion_group!(core, pool, exchange, claim, head);
criterion_main!(core);
