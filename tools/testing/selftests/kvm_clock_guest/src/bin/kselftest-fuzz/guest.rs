// SPDX-License-Identifier: GPL-2.0-only

//! Runs of the guest, whose own readings must show the clocks that were SET.

use crate::{fixture::Fixture, fuzz::Fuzz, state::State};
use clockguest::measure::{compare, Reading, VcpuReading};
use kvm_clock_guest_selftests::prelude::*;

/// Runs the guest. Fails unless a pinned record stays the same, and the guest reads exactly its
/// values; if
/// `is_settled`, also if a record of a stable clock was written again.
pub(crate) fn ensure_reads(fuzz: &mut Fuzz<'_>, is_settled: bool) -> Result<()> {
    let version = versions(fuzz.fixture.vm());
    let reading = fuzz.fixture.read().context("running the guest")?;
    let was = fuzz.state.clone();
    fuzz.refresh()?;
    ensure_eq_hex!(
        fuzz.state.offsets,
        was.offsets,
        "TSC offsets after the guest ran"
    );
    ensure!(
        was.is_pinned() == fuzz.state.is_pinned()
            && was.pinned_function() == fuzz.state.pinned_function(),
        "clocks were {was:x?}\nand are {:x?} after the guest ran",
        fuzz.state
    );
    ensure_steal_shown(&was, fuzz)?;
    if is_settled && fuzz.state.record(0).flags & PVCLOCK_TSC_STABLE != 0 {
        let now = versions(fuzz.fixture.vm());
        ensure_eq!(now, version, "versions of the records");
    }
    if fuzz.state.clock.is_none() {
        // KVM changes its offsets to imitate another rate.
        return Ok(());
    }
    if fuzz.state.is_pinned() {
        return ensure_pinned_read(fuzz, &reading);
    }
    let tsc_ticks = compare(&with_own_records(&reading), &reading)?
        .error
        .tsc_ticks;
    ensure_eq!(tsc_ticks, 0, "error of the guest's TSC, ticks");
    Ok(())
}

/// Fails unless vCPUs that ran with their steal clocks enabled have no steal time left to show, and
/// the others have the same as before.
fn ensure_steal_shown(was: &State, fuzz: &Fuzz<'_>) -> Result<()> {
    let (Some(was), Some(is)) = (&was.clock, &fuzz.state.clock) else {
        return Ok(());
    };
    for (index, (was, is)) in was.vcpus.iter().zip(&is.vcpus).enumerate() {
        let expected = match fuzz.fixture.accounts_steal(index) {
            true => 0,
            false => was.steal_ns,
        };
        ensure_eq!(
            is.steal_ns,
            expected,
            "steal_ns of vCPU {index} after the guest ran"
        );
    }
    Ok(())
}

fn ensure_pinned_read(fuzz: &Fuzz<'_>, reading: &Reading) -> Result<()> {
    let fixture: &Fixture = &fuzz.fixture;
    let vcpus = fixture.vm().vcpus().len();
    let records: Vec<_> = (0..vcpus)
        .map(|index| function(fuzz.state.record(index)))
        .collect();
    let has: Vec<_> = pages(fixture.vm()).into_iter().map(function).collect();
    ensure_eq_hex!(has, records, "the guest's records");
    let clocks = Clocks {
        offsets: fuzz.state.offsets[..vcpus].to_vec(),
        record: records[0],
        pages: records,
        pinned: true,
        clock_diff_ns: Some(0),
    };
    clocks.ensure_reads(reading)
}

/// `reading` with the last record of each vCPU, to compare the TSC alone: KVM may derive the record
/// of each vCPU at another instant.
fn with_own_records(reading: &Reading) -> Reading {
    let of_last = |vcpu: &VcpuReading| VcpuReading {
        record: vcpu
            .samples
            .last()
            .map(|last| last.sample.record)
            .unwrap_or_default(),
        ..vcpu.clone()
    };
    Reading {
        vcpus: reading.vcpus.iter().map(of_last).collect(),
        ..reading.clone()
    }
}
