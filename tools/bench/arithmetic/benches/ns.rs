// SPDX-License-Identifier: GPL-2.0-only

//! Times a round of all inputs, for ours and then for the kernel's; `run` computes the time of a
//! call.

use bench_arithmetic::{conversions::CONVERSIONS, inputs::Input};
use criterion::{criterion_group, criterion_main, Criterion};
use std::{hint::black_box, time::Duration};

fn conversions(criterion: &mut Criterion) {
    let inputs = Input::measured();
    for conversion in CONVERSIONS {
        let mut group = criterion.benchmark_group(conversion.id);
        group.bench_function("rust", |bencher| {
            bencher.iter(|| {
                for input in &inputs {
                    black_box(conversion.call(input));
                }
            });
        });
        if let Some(kernel) = &conversion.kernel {
            group.bench_function("c", |bencher| {
                bencher.iter(|| {
                    for input in &inputs {
                        black_box(kernel.call(input));
                    }
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots();
    targets = conversions
}
criterion_main!(benches);
