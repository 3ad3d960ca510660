// SPDX-License-Identifier: GPL-2.0-only

//! Checks the conversions, or calls each for callgrind; see `run`.
//!
//! - `check`: compares ours with the kernel's for 100,000 inputs; exit status 1 if two differ, or
//!   one of ours fails or allocates. Prints the number of inputs.
//! - `list`: prints id, name and the kernel's name of each, separated by tabs.
//! - `call`: calls each once for each input to measure.

use bench_arithmetic::{
    conversions::{Conversion, CONVERSIONS},
    inputs::Input,
};
use std::{env, hint::black_box, process::ExitCode};

/// The number of inputs that `check` compares.
const COMPARED: u64 = 100_000;

fn check(conversion: &Conversion, seed: u64) -> Result<(), String> {
    let input = &Input::new(seed);
    let mut ours = 0;
    let allocated = allocation_counter::measure(|| ours = conversion.call(input)).count_total;
    let what = || format!("{} of input {seed}", conversion.name);
    if allocated != 0 {
        return Err(format!("{}: {allocated} allocations", what()));
    }
    match &conversion.kernel {
        Some(kernel) if kernel.call(input) != ours => Err(format!(
            "{}: {ours:#x}, {} says {:#x}",
            what(),
            kernel.name,
            kernel.call(input)
        )),
        None if ours == u64::MAX => Err(format!("{}: refused", what())),
        _ => Ok(()),
    }
}

fn check_all() -> Result<(), String> {
    // The counter itself must work.
    if allocation_counter::measure(|| drop(black_box(Box::new(1)))).count_total != 1 {
        return Err("an allocation was not counted".into());
    }
    CONVERSIONS
        .iter()
        .try_for_each(|conversion| (0..COMPARED).try_for_each(|seed| check(conversion, seed)))
}

fn call_all() {
    let inputs = Input::measured();
    for conversion in CONVERSIONS {
        for input in &inputs {
            black_box(conversion.call(input));
            if let Some(kernel) = &conversion.kernel {
                black_box(kernel.call(input));
            }
        }
    }
}

fn list() {
    for conversion in CONVERSIONS {
        let kernel = conversion.kernel.as_ref().map_or("", |kernel| kernel.name);
        println!("{}\t{}\t{kernel}", conversion.id, conversion.name);
    }
}

fn main() -> ExitCode {
    match env::args().nth(1).as_deref() {
        Some("check") => {
            if let Err(error) = check_all() {
                eprintln!("bench-arithmetic: {error}");
                return ExitCode::FAILURE;
            }
            println!("{COMPARED}");
        }
        Some("list") => list(),
        Some("call") => call_all(),
        _ => {
            eprintln!("usage: bench-arithmetic check|list|call");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
