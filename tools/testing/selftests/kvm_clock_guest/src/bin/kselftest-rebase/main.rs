// SPDX-License-Identifier: GPL-2.0-only

//! Nothing re-bases a pinned record: if anything makes KVM recompute a clock, the record's bits do
//! not change, and the guest reads the same function as before, to the ns.
//!
//! The record has another rate than the host's and was saved an hour of ticks ago, so that no
//! derived clock can be mistaken for it. A tracepoint must confirm that KVM recomputed a clock.

mod causes;
mod first_run;
mod hot_add;
mod replaced;

use causes::{Cause, CAUSES};
use kvm_clock_guest_selftests::{
    expect,
    fixture::{at_another_rate, pinned_with},
    prelude::*,
    trace::Trace,
};

fn main() -> ExitCode {
    let mut cases: Vec<_> = CAUSES
        .iter()
        .map(|cause| Case::new(cause.name, move |kvm| one(kvm, cause)))
        .collect();
    cases.extend([
        Case::new("all of these, one after the other, 4 vCPUs", all),
        Case::new("seconds of a record that is an hour old", hour_old),
    ]);
    cases.extend(first_run::cases());
    cases.extend(hot_add::cases());
    cases.extend(replaced::cases());
    ktap::main(require::clock_guest, cases)
}

/// `clock` with a record that has had another rate than the host's for an hour.
fn hour_old_at_another_rate(clock: VmClock) -> VmClock {
    const HOUR_MS: u64 = 3_600_000;
    const SYSTEM_TIME_NS: u64 = 5_000_000_000;

    let mut clock = at_another_rate(clock);
    let header = &mut clock.header;
    let ticks = u64::from(header.host_tsc_khz) * HOUR_MS;
    header.record.tsc_timestamp = header.guest_tsc.wrapping_sub(ticks);
    header.record.system_time = SYSTEM_TIME_NS;
    make_consistent(&mut clock);
    clock
}

/// A VM that has run and is stopped, with such a record pinned.
fn pinned(kvm: &Kvm, vcpus: u32) -> Result<Vm> {
    let (vm, clock) = pinned_with(kvm, vcpus, hour_old_at_another_rate)?;
    Clocks::of(&vm)?.ensure_pinned_to(clock.header.record)?;
    Ok(vm)
}

fn one(kvm: &Kvm, cause: &Cause) -> Result<()> {
    undisturbed(kvm, &pinned(kvm, 2)?, cause)
}

fn all(kvm: &Kvm) -> Result<()> {
    let vm = pinned(kvm, 4)?;
    for cause in CAUSES {
        undisturbed(kvm, &vm, cause).context(cause.name)?;
    }
    Ok(())
}

/// Fails unless `cause` makes KVM recompute clocks, with the same result.
fn undisturbed(kvm: &Kvm, vm: &Vm, cause: &Cause) -> Result<()> {
    let trace = Trace::new()?;
    let before = Clocks::of(vm)?;
    (cause.make)(kvm, vm)?;
    let reading = settle(vm)?;
    let updates = trace.take()?;
    note!("{updates:?}");
    ensure!(
        (cause.is_proof)(updates, vm.vcpus().len()),
        "unexpected updates: {updates:?}"
    );

    let after = Clocks::of(vm)?;
    let moved = after.offsets != before.offsets;
    ensure_eq!(moved, cause.moves_tsc, "whether TSC offsets changed");
    let expected = Clocks {
        pages: by_vcpu(&before, &before.pages, &after)
            .map(|record| with_flags(record, cause.flags))
            .collect(),
        record: by_vcpu(&before, &[before.record], &after)
            .map(|record| with_flags(record, |flags| (cause.flags)(flags) & PVCLOCK_TSC_STABLE))
            .next()
            .context("no vCPU")?,
        offsets: after.offsets.clone(),
        ..before.clone()
    };
    expected.ensure_is(&after, "afterwards")?;
    expect::ensure_reads(&reading, &function(before.record), before.offsets[0])?;
    expected.ensure_unchanged(vm)
}

/// `records`, one for each vCPU, shifted by as much as the vCPU's TSC was moved.
fn by_vcpu<'a>(
    before: &'a Clocks,
    records: &'a [ClockGuest],
    after: &'a Clocks,
) -> impl Iterator<Item = ClockGuest> + 'a {
    let offsets = before.offsets.iter().zip(&after.offsets);
    records.iter().zip(offsets).map(|(record, (was, is))| {
        let tsc_timestamp = record.tsc_timestamp.wrapping_add(is.since(*was));
        ClockGuest {
            tsc_timestamp,
            ..*record
        }
    })
}

fn with_flags(record: ClockGuest, flags: impl Fn(u8) -> u8) -> ClockGuest {
    ClockGuest {
        flags: flags(record.flags),
        ..record
    }
}

/// KVM's own clock would differ by the drift of the host's TSC in an hour.
fn hour_old(kvm: &Kvm) -> Result<()> {
    const RUN: Duration = Duration::from_secs(1);

    let vm = pinned(kvm, 2)?;
    let before = Clocks::of(&vm)?;
    for _ in 0..2 {
        let trace = Trace::new()?;
        let run = observe::run(&vm)?;
        sleep(RUN);
        vm.stop()?;
        before.ensure_reads(&run.finish(&vm, rdtsc_ordered())?)?;
        causes::update_master_clock(&vm)?;
        before.ensure_unchanged(&vm)?;
        let updates = trace.take()?;
        ensure!(updates.master_on > 0, "no update: {updates:?}");
    }
    Ok(())
}
