// SPDX-License-Identifier: GPL-2.0-only

//! What the guest has to say: at times it runs, and its own readings must be what was SET.

use crate::{fuzz::Fuzz, state::State, subject::Subject};
use anyhow::{ensure, Context, Result};
use clockguest::measure::{compare, Reading, VcpuReading};
use kvm_clock_guest_selftests::clocks::{function, pages, versions, Clocks};
use pvclock::abi::PVCLOCK_TSC_STABLE;

/// Lets the guest run. Fails unless a pinned record stays what it is, and the guest reads that, to
/// the tick and the ns; and if `is_settled`, unless no record of a stable clock was written anew.
pub(crate) fn ensure_reads(fuzz: &mut Fuzz<'_>, is_settled: bool) -> Result<()> {
    let version = versions(fuzz.subject.vm());
    let reading = fuzz.subject.read().context("the guest does not run")?;
    let was = fuzz.state.clone();
    fuzz.look_again()?;
    ensure!(
        was.offsets == fuzz.state.offsets,
        "TSC offsets were {:x?}, are {:x?} after the guest ran",
        was.offsets,
        fuzz.state.offsets
    );
    ensure!(
        was.is_pinned() == fuzz.state.is_pinned()
            && was.pinned_function() == fuzz.state.pinned_function(),
        "clocks were {was:x?}\nand are {:x?} after the guest ran",
        fuzz.state
    );
    ensure_steal_shown(&was, fuzz)?;
    if is_settled && fuzz.state.record(0).flags & PVCLOCK_TSC_STABLE != 0 {
        let now = versions(fuzz.subject.vm());
        ensure!(
            now == version,
            "records were written anew: versions {version:?}, now {now:?}"
        );
    }
    if fuzz.state.clock.is_none() {
        // KVM moves its offsets to imitate another rate.
        return Ok(());
    }
    if fuzz.state.is_pinned() {
        return ensure_pinned_read(fuzz, &reading);
    }
    let tsc_ticks = compare(&with_own_records(&reading), &reading)?
        .error
        .tsc_ticks;
    ensure!(tsc_ticks == 0, "the guest's TSC is off by {tsc_ticks}");
    Ok(())
}

/// Fails unless nothing is left of the steal time of vCPUs that ran with their steal clocks enabled,
/// and the others have what they had.
fn ensure_steal_shown(was: &State, fuzz: &Fuzz<'_>) -> Result<()> {
    let (Some(was), Some(is)) = (&was.clock, &fuzz.state.clock) else {
        return Ok(());
    };
    for (index, (was, is)) in was.vcpus.iter().zip(&is.vcpus).enumerate() {
        let expected = match fuzz.subject.accounts_steal(index) {
            true => 0,
            false => was.steal_ns,
        };
        ensure!(
            is.steal_ns == expected,
            "steal_ns of vCPU {index} was {}, is {} after the guest ran, expected {expected}",
            was.steal_ns,
            is.steal_ns
        );
    }
    Ok(())
}

fn ensure_pinned_read(fuzz: &Fuzz<'_>, reading: &Reading) -> Result<()> {
    let subject: &Subject = &fuzz.subject;
    let vcpus = subject.vm().vcpus().len();
    let records: Vec<_> = (0..vcpus)
        .map(|index| function(fuzz.state.record(index)))
        .collect();
    let has: Vec<_> = pages(subject.vm()).into_iter().map(function).collect();
    ensure!(
        has == records,
        "the guest has {has:x?}, expected {records:x?}"
    );
    let clocks = Clocks {
        offsets: fuzz.state.offsets[..vcpus].to_vec(),
        record: records[0],
        pages: records,
        pinned: true,
        clock_diff_ns: Some(0),
    };
    clocks.ensure_reads(reading)
}

/// `reading`, to be compared with itself: where KVM derives a record for each vCPU at its own
/// moment, the TSC is all that can be judged.
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
