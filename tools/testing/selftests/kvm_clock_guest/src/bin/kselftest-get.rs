// SPDX-License-Identifier: GPL-2.0-only

//! KVM_GET_VM_CLOCK_GUEST: every field is true at one instant, according to the host's clocks and
//! the guest's readings; and GET changes nothing.

use kvm_clock_guest_selftests::{
    host_clock::{now_ns, TaiOffset},
    prelude::*,
};

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
        case("fields of SET are 0", set_fields);
        case("guest's readings agree to the bit", guest_agrees);
        case("GET works while vCPUs run", while_running);
        case("GET changes nothing", changes_nothing);
    }
    cases.extend([
        Case::new("status reports a pinned record", status),
        Case::new("tai_offset_s follows the host", tai_offset),
    ]);
    ktap::main(require::clock_guest, cases)
}

type MakeVm = fn(&Kvm, u32) -> Result<Vm>;

/// Fails unless guest TSC and kvmclock follow from offset and record at the anchor.
fn ensure_consistent(clock: &VmClock) -> Result<()> {
    let header = &clock.header;
    let guest_tsc = reference_transform(clock)?.guest_tsc(header.host_tsc);
    ensure_eq!(
        header.guest_tsc,
        guest_tsc,
        "guest_tsc by host_tsc and offset"
    );
    let kvmclock_ns = header.record.kvmclock_ns(guest_tsc);
    ensure_eq!(
        header.kvmclock_ns,
        kvmclock_ns,
        "kvmclock_ns by guest_tsc and record"
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
    ensure_eq_hex!(offsets, expected, "TSC offsets of GET");
    ensure_eq!(ids, [0, 1, 2, 3], "vCPU ids");
    let khz = vm.tsc_khz()?;
    let reported = reference_transform(&clock)?
        .scale
        .apply(clock.header.host_tsc_khz.into());
    ensure!(
        reported.abs_diff(khz.into()) <= 1,
        "rate is {reported} kHz, KVM_GET_TSC_KHZ returns {khz} kHz"
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
            anchor.0.is_between(before.0, after.0)
                && within(before.1, anchor.1, after.1)
                && within(before.2, anchor.2, after.2),
            "(host_tsc, tai_ns, monotonic_raw_ns) is {anchor:?}, not between {before:?} and \
             {after:?}"
        );
        least = least.min(after.0.since(before.0));
    }
    note!("{CALLS} calls, the shortest bracket had {least} host ticks");
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
    ensure_eq!(
        zeros,
        [0; 5],
        "flags, mode, precision_ns, pad0, rate_diff_hz"
    );
    ensure_eq!(header.record.pad, [0; 2], "the record's padding");
    ensure_eq!(header.record.version, 0, "the record's version");
    Ok(())
}

/// The guest's readings are the record's function of the TSC, with 0 ns error.
fn guest_agrees(vm: &Vm) -> Result<()> {
    let clock = get(vm)?;
    let record = clock.header.record;
    ensure_eq_hex!(record.flags, PVCLOCK_TSC_STABLE, "the record's flags");
    let reading = run_a_little(vm)?;
    for (index, vcpu) in reading.vcpus.iter().enumerate() {
        for bracketed in &vcpu.samples {
            let sample = bracketed.sample;
            let transform = TscTransform {
                offset: vcpu.tsc.offset,
                ..reference_transform(&clock)?
            };
            let ns = record.kvmclock_ns(sample.tsc);
            ensure_eq!(
                sample.kvmclock_ns,
                ns,
                "vCPU {index}'s kvmclock at TSC {}, ns",
                sample.tsc
            );
            let (low, high) = (
                transform.guest_tsc(bracketed.host_before),
                transform.guest_tsc(bracketed.host_after),
            );
            ensure!(
                sample.tsc.is_between(low, high),
                "vCPU {index} read TSC {}, by its offset it was between {low} and {high}",
                sample.tsc
            );
        }
    }
    let pages = pages(vm);
    ensure_eq_hex!(pages, [record; 4], "the guest's records");
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
            ensure_eq_hex!(clock.vcpus, before.vcpus, "vCPUs");
            let record = clock.header.record;
            ensure_eq_hex!(record, before.header.record, "the record");
            let host_tsc = clock.header.host_tsc;
            ensure!(
                host_tsc.is_ahead_of(last),
                "host_tsc is {host_tsc} after {last}"
            );
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
        ensure_eq_hex!(observed, expected, "status");
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
        ensure_eq!(observed, expected, "tai_offset_s");
        let utc_diff_ns = header.tai_ns - i64::from(expected) * SECOND_NS - utc_ns;
        ensure!(
            (0..SECOND_NS).contains(&utc_diff_ns),
            "tai_ns less {expected} s is {utc_diff_ns} ns after UTC"
        );
    }
    Ok(())
}
