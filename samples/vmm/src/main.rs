// SPDX-License-Identifier: GPL-2.0-only

//! A minimal VMM that saves and restores a guest without clock errors: see `snapshot.rs`.

mod snapshot;
mod vm;

use anyhow::{ensure, Context, Result};
use snapshot::Snapshot;
use std::{env, fs, process, thread, time::Duration, time::Instant};
use vm::{Reading, Vm};

const USAGE: &str = "\
usage: vmm-sample save FILE     run a guest with 2 vCPUs briefly, and save it to FILE
       vmm-sample restore FILE  resume it, and compare its clocks before and after
exit status: 1 if a clock of the guest stepped, or on another failure; 2 on wrong usage";

fn main() -> Result<()> {
    let args: Vec<_> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["save", file] => save(file).with_context(|| file.to_owned()),
        ["restore", file] => restore(file).with_context(|| file.to_owned()),
        ["--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            process::exit(2)
        }
    }
}

fn save(file: &str) -> Result<()> {
    let mut vm = Vm::new(None)?;
    vm.boot()?;
    // Twice: KVM derives a new guest's record when its vCPUs run for the first time.
    vm.read_clocks()?;
    let readings = vm.read_clocks()?;
    let saved = Snapshot::save(&vm, readings)?;
    let precision_ns = saved.clocks.clock()?.header.precision_ns;
    println!("clocks saved: precise to {precision_ns} ns");
    Ok(fs::write(file, serde_json::to_vec(&saved)?)?)
}

fn restore(file: &str) -> Result<()> {
    let saved: Snapshot = serde_json::from_slice(&fs::read(file)?)?;
    let (mut vm, outcome) = saved.restore()?;
    let (mode, precision_ns) = (outcome.mode.name(), outcome.precision_ns);
    println!("clocks restored: mode {mode}, precise to {precision_ns} ns");
    println!("lost: {}", outcome.lost().unwrap_or("nothing".into()));
    let (start, mut after) = (Instant::now(), vm.read_clocks()?);
    // The timers were armed before the save.
    while !after.iter().all(|reading| reading.fired) {
        ensure!(start.elapsed().as_secs() < 30, "no timer interrupt");
        thread::sleep(Duration::from_millis(5));
        after = vm.read_clocks()?;
    }
    let mut vcpus = saved.readings.iter().zip(&after);
    vcpus.try_for_each(|(before, after)| {
        compare(before, after, saved.clocks.tsc_khz(), precision_ns)
    })
}

/// Prints the clocks of a vCPU before and after, and fails if the TSC has stepped, or kvmclock by
/// more than `precision_ns`.
fn compare(before: &Reading, after: &Reading, tsc_khz: u32, precision_ns: u32) -> Result<()> {
    // CAST: The signed difference of values mod 2^64.
    let ns = |ticks: u64| i128::from(ticks as i64) * 1_000_000 / i128::from(tsc_khz);
    let passed = ns(after.tsc.since(before.tsc));
    // In host time, which may be 500 ppm faster or slower than the TSC.
    let least = after.when.start.duration_since(before.when.end)?.as_nanos() as i128;
    let most = after.when.end.duration_since(before.when.start)?.as_nanos() as i128;
    // kvmclock must be the same function of the TSC as before; or, if that was impossible, follow
    // the host's time.
    let kvmclock = i128::from(after.record.kvmclock_ns(after.tsc));
    let off = kvmclock - i128::from(before.record.kvmclock_ns(after.tsc));
    // The rates of KVM's timer and of the TSC differ, so a timer may fire early.
    let late = ns(after.tsc.since(after.deadline));
    println!("TSC: {passed} ns passed, {least} to {most} in host time");
    println!("kvmclock: {kvmclock} ns, error {off}; timer: {late} ns late");
    let span = least - least / 2000..=most + most / 2000;
    let drift = if precision_ns == 0 { 0 } else { most / 2000 };
    let open = i128::from(precision_ns) + drift;
    ensure!((-open..=open).contains(&off), "kvmclock stepped");
    ensure!(span.contains(&passed), "the TSC stepped");
    ensure!(late > -1_000_000, "the timer was early");
    Ok(())
}
