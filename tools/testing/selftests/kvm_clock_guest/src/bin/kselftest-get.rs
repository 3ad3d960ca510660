// SPDX-License-Identifier: GPL-2.0-only

//! KVM_GET_VM_CLOCK_GUEST: every field holds at one instant, by the host's clocks and by the
//! guest's own readings; and nothing is changed by asking.

use anyhow::{ensure, Result};
use clockguest::{host::rdtsc_ordered, observe, vmm::Vm};
use kvm_clock::VmClock;
use kvm_clock_guest_selftests::{
    clocks::{pages, Clocks},
    fixture::{derived, get, pinned, reference_transform, run_a_little},
    host_clock::{now_ns, TaiOffset},
    ktap::{self, note, Case},
    require,
    time::SECOND_NS,
};
use kvm_ioctls::Kvm;
use pvclock::{
    abi::{PVCLOCK_TSC_STABLE, STATUS_HOST_TSC_STABLE, STATUS_PINNED},
    tsc::TscTransform,
};
use std::process::ExitCode;

const CALLS: usize = 200;

fn main() -> ExitCode {
    let mut cases = Vec::new();
    for (state, make) in [("derived", derived as MakeVm), ("pinned", pinned as MakeVm)] {
        let mut case = |name: &str, run: fn(&Vm) -> Result<()>| {
            cases.push(Case::new(format!("{name}, record {state}"), move |kvm| {
                run(&make(kvm, 4)?)
            }));
        };
        case("fields agree with each other", fields_agree);
        case("anchor lies between readings of the host's clocks", anchor);
        case("fields that are for SET are 0", set_fields);
        case("guest's readings agree to the bit", guest_agrees);
        case("works while vCPUs run", while_running);
        case("changes nothing", changes_nothing);
    }
    cases.extend([
        Case::new("status tells a pinned record", status),
        Case::new("tai_offset_s follows the host", tai_offset),
    ]);
    ktap::main(require::clock_guest, cases)
}

type MakeVm = fn(&Kvm, u32) -> Result<Vm>;

/// Fails unless guest TSC and kvmclock are what offset and record say at the anchor.
fn ensure_consistent(clock: &VmClock) -> Result<()> {
    let header = &clock.header;
    let guest_tsc = reference_transform(clock)?.guest_tsc(header.host_tsc);
    ensure!(
        header.guest_tsc == guest_tsc,
        "guest_tsc is {}, by host_tsc and offset it is {guest_tsc}",
        header.guest_tsc
    );
    let kvmclock_ns = header.record.kvmclock_ns(guest_tsc);
    ensure!(
        header.kvmclock_ns == kvmclock_ns,
        "kvmclock_ns is {}, by guest_tsc and record it is {kvmclock_ns}",
        header.kvmclock_ns
    );
    Ok(())
}

fn fields_agree(vm: &Vm) -> Result<()> {
    let clock = get(vm)?;
    ensure_consistent(&clock)?;
    let (offsets, ids): (Vec<_>, Vec<_>) = clock
        .vcpus
        .iter()
        .map(|vcpu| (vcpu.tsc_offset, vcpu.vcpu_id))
        .unzip();
    let expected = vm.tsc_offsets()?;
    ensure!(
        offsets == expected,
        "offsets are {offsets:x?}, KVM_VCPU_TSC_OFFSET says {expected:x?}"
    );
    ensure!(ids == [0, 1, 2, 3], "vCPU ids are {ids:?}");
    let khz = vm.tsc_khz()?;
    let reported = reference_transform(&clock)?
        .scale
        .apply(clock.header.host_tsc_khz.into());
    ensure!(
        reported.abs_diff(khz.into()) <= 1,
        "rate is {reported} kHz, KVM_GET_TSC_KHZ says {khz} kHz"
    );
    Ok(())
}

/// The host's own clocks, read before and after, enclose it.
fn anchor(vm: &Vm) -> Result<()> {
    let clocks = || {
        (
            rdtsc_ordered(),
            now_ns(libc::CLOCK_TAI),
            now_ns(libc::CLOCK_MONOTONIC_RAW),
        )
    };
    let mut least = u64::MAX;
    for _ in 0..CALLS {
        let before = clocks();
        let header = get(vm)?.header;
        let after = clocks();
        let anchor = (header.host_tsc, header.tai_ns, header.monotonic_raw_ns);
        let within = |low: i64, value: i64, high: i64| (low..=high).contains(&value);
        ensure!(
            (before.0..=after.0).contains(&anchor.0)
                && within(before.1, anchor.1, after.1)
                && within(before.2, anchor.2, after.2),
            "(host_tsc, tai_ns, monotonic_raw_ns) is {anchor:?}, not between {before:?} and \
             {after:?}"
        );
        least = least.min(after.0 - before.0);
    }
    note(&format!(
        "{CALLS} calls, the shortest bracket had {least} host ticks"
    ));
    Ok(())
}

fn set_fields(vm: &Vm) -> Result<()> {
    let header = get(vm)?.header;
    let zeros = [
        i64::from(header.flags),
        i64::from(header.mode),
        i64::from(header.precision_ns),
        i64::from(header.record.pad0),
        header.rate_diff_hz,
    ];
    ensure!(
        zeros == [0; 5],
        "flags, mode, precision_ns, pad0, rate_diff_hz are {zeros:?}"
    );
    ensure!(
        header.record.pad == [0; 2],
        "record's padding is {:?}",
        header.record.pad
    );
    ensure!(
        header.record.version == 0,
        "version is {}",
        header.record.version
    );
    Ok(())
}

/// What the guest read at a TSC is what the record says there, with 0 ns error.
fn guest_agrees(vm: &Vm) -> Result<()> {
    let clock = get(vm)?;
    let record = clock.header.record;
    ensure!(
        record.flags == PVCLOCK_TSC_STABLE,
        "the record's flags are {:#x}",
        record.flags
    );
    let reading = run_a_little(vm)?;
    for (index, vcpu) in reading.vcpus.iter().enumerate() {
        for bracketed in &vcpu.samples {
            let sample = bracketed.sample;
            let transform = TscTransform {
                offset: vcpu.tsc.offset,
                ..reference_transform(&clock)?
            };
            let ns = record.kvmclock_ns(sample.tsc);
            ensure!(
                sample.kvmclock_ns == ns,
                "vCPU {index} read {} ns at TSC {}, the record says {ns} ns",
                sample.kvmclock_ns,
                sample.tsc
            );
            let (low, high) = (
                transform.guest_tsc(bracketed.host_before),
                transform.guest_tsc(bracketed.host_after),
            );
            ensure!(
                (low..=high).contains(&sample.tsc),
                "vCPU {index} read TSC {}, by its offset it was between {low} and {high}",
                sample.tsc
            );
        }
    }
    let pages = pages(vm);
    ensure!(
        pages == [record; 4],
        "the guest has {pages:x?}, GET says {record:x?}"
    );
    Ok(())
}

/// Offsets and record are the same every time, and the anchors go forward.
fn while_running(vm: &Vm) -> Result<()> {
    let before = get(vm)?;
    observe::run(vm)?;
    let mut last = before.header.host_tsc;
    let mut calls = || -> Result<()> {
        for _ in 0..CALLS {
            let clock = get(vm)?;
            ensure_consistent(&clock)?;
            ensure!(
                clock.vcpus == before.vcpus,
                "offsets are {:x?}",
                clock.vcpus
            );
            let record = clock.header.record;
            ensure!(record == before.header.record, "the record is {record:x?}");
            let host_tsc = clock.header.host_tsc;
            ensure!(host_tsc > last, "host_tsc is {host_tsc} after {last}");
            last = host_tsc;
        }
        Ok(())
    };
    let result = calls();
    vm.stop()?;
    result
}

fn changes_nothing(vm: &Vm) -> Result<()> {
    let before = Clocks::of(vm)?;
    for _ in 0..CALLS {
        get(vm)?;
    }
    before.ensure_unchanged(vm)
}

fn status(kvm: &Kvm) -> Result<()> {
    for (make, expected) in [
        (derived as MakeVm, STATUS_HOST_TSC_STABLE),
        (pinned as MakeVm, STATUS_HOST_TSC_STABLE | STATUS_PINNED),
    ] {
        let observed = get(&make(kvm, 1)?)?.header.status;
        ensure!(
            observed == expected,
            "status is {observed:#x}, expected {expected:#x}"
        );
    }
    Ok(())
}

fn tai_offset(kvm: &Kvm) -> Result<()> {
    let vm = derived(kvm, 1)?;
    for expected in [0, 37] {
        let _restored_later = TaiOffset::set(expected)?;
        let utc_ns = now_ns(libc::CLOCK_REALTIME);
        let header = get(&vm)?.header;
        let observed = header.tai_offset_s;
        ensure!(
            observed == expected,
            "tai_offset_s is {observed}, the host's is {expected}"
        );
        let utc_diff_ns = header.tai_ns - i64::from(expected) * SECOND_NS - utc_ns;
        ensure!(
            (0..SECOND_NS).contains(&utc_diff_ns),
            "tai_ns less {expected} s is {utc_diff_ns} ns after UTC"
        );
    }
    Ok(())
}
