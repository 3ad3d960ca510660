// SPDX-License-Identifier: GPL-2.0-only

//! Requests just within the limits, which show that the cause of a failure is the intended one.

use crate::{Host, VCPUS};
use kvm_clock::get_vm_clock_guest_or_fall_back;
use kvm_clock_guest_selftests::{
    payload::{Payload, PAGE},
    prelude::*,
};
use pvclock::abi::{FLAGS_KNOWN, FLAG_ALLOW_RATE_MISMATCH, STATUS_KNOWN};

type Edit = fn(&mut VmClock);

const SET: &[(&str, Edit)] = &[
    ("what GET returned", |c| c.header.mode = MODE_EXACT),
    ("all known flags and status bits", |c| {
        c.header.mode = MODE_EXACT;
        c.header.flags = FLAGS_KNOWN;
        c.header.status = STATUS_KNOWN;
    }),
    // The oldest and the newest record.
    ("record as old as TSCs compare", |c| {
        c.header.mode = MODE_EXACT;
        set_age(c, 1 << 63);
    }),
    ("record of the anchor's tick", |c| {
        c.header.mode = MODE_EXACT;
        set_age(c, 0);
    }),
    ("record's version and unknown flags are ignored", |c| {
        c.header.mode = MODE_EXACT;
        c.header.record.version = u32::MAX;
        c.header.record.flags = u8::MAX;
    }),
    ("freeze at a rate 200 ppm off", |c| {
        c.header.mode = MODE_FREEZE;
        c.header.host_tsc_khz += c.header.host_tsc_khz / 5_000;
    }),
    ("advance at a rate 200 ppm off", |c| {
        c.header.mode = MODE_ADVANCE;
        c.header.host_tsc_khz -= c.header.host_tsc_khz / 5_000;
    }),
    ("freeze at twice the rate with ALLOW_RATE_MISMATCH", |c| {
        c.header.mode = MODE_FREEZE;
        c.header.flags = FLAG_ALLOW_RATE_MISMATCH;
        c.header.host_tsc_khz *= 2;
    }),
    ("advance at half the rate with ALLOW_RATE_MISMATCH", |c| {
        c.header.mode = MODE_ADVANCE;
        c.header.flags = FLAG_ALLOW_RATE_MISMATCH;
        c.header.host_tsc_khz /= 2;
    }),
];

pub(crate) fn cases() -> Vec<Case<Host>> {
    let set = SET.iter().map(|&(name, edit)| {
        Case::new(format!("accepted SET: {name}"), move |host| {
            accepted(host, edit)
        })
    });
    set.chain([
        Case::new("accepted GET: FALLBACK with a master clock", fall_back),
        Case::new("accepted GET and SET: a page with a tail of zeros", larger),
        Case::new("accepted SET: array write-protected", array_read_only),
    ])
    .collect()
}

/// The record's `tsc_timestamp` is `ticks` behind the guest's TSC at the anchor.
fn set_age(clock: &mut VmClock, ticks: u64) {
    let header = &mut clock.header;
    header.record.tsc_timestamp = header.guest_tsc.wrapping_sub(ticks);
    header.kvmclock_ns = header.record.kvmclock_ns(header.guest_tsc);
}

/// The record is pinned, bit for bit, in every mode.
fn accepted(host: &Host, edit: Edit) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let before = Clocks::of(&vm)?;
    let mut clock = get(&vm)?;
    let here = i64::from(clock.header.host_tsc_khz);
    edit(&mut clock);
    let saved = i64::from(clock.header.host_tsc_khz);
    let record = ClockGuest {
        version: 0,
        flags: before.record.flags,
        ..clock.header.record
    };
    set_vm_clock_guest(vm.fd(), &mut clock).context("KVM_SET_VM_CLOCK_GUEST")?;

    let (expected, observed) = ((here - saved) * 1000, clock.header.rate_diff_hz);
    ensure_eq!(observed, expected, "rate_diff_hz");
    run_a_little(&vm)?;
    let after = Clocks::of(&vm)?;
    let expected = Clocks {
        pinned: true,
        // Advance and freeze move them.
        offsets: after.offsets.clone(),
        record,
        pages: vec![record; VCPUS as usize],
        ..before
    };
    expected.ensure_is(&after, "after SET")
}

/// It has no effect then.
fn fall_back(host: &Host) -> Result<()> {
    for vm in &host.vms {
        let without = get(vm)?;
        let with = get_vm_clock_guest_or_fall_back(vm.fd()).context("KVM_GET_VM_CLOCK_GUEST")?;
        ensure!(
            with.header.record == without.header.record
                && with.header.status == without.header.status
                && with.vcpus == without.vcpus
                && with.header.precision_ns == 0,
            "with FALLBACK {with:x?}, without {without:x?}"
        );
    }
    Ok(())
}

/// The module reports its own size, and ignores the rest.
fn larger(host: &Host) -> Result<()> {
    let known = size_of::<VmClockGuest>() as u32;
    let vm = derived(&host.kvm, VCPUS)?;
    let before = Clocks::of(&vm)?;
    let mut clock = get(&vm)?;

    let payload = Payload::new(&clock)?;
    payload.set_size(PAGE as u32);
    payload.get(vm.fd()).context("KVM_GET_VM_CLOCK_GUEST")?;
    let size = payload.size();
    ensure_eq!(size, known, "size");

    clock.header.mode = MODE_EXACT;
    let payload = Payload::new(&clock)?;
    payload.set_size(PAGE as u32);
    payload.set(vm.fd()).context("KVM_SET_VM_CLOCK_GUEST")?;
    before.as_pinned().ensure_unchanged(&vm)
}

fn array_read_only(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let before = Clocks::of(&vm)?;
    let mut clock = get(&vm)?;
    clock.header.mode = MODE_EXACT;
    let payload = Payload::new(&clock)?;
    payload.protect_array()?;
    payload.set(vm.fd()).context("KVM_SET_VM_CLOCK_GUEST")?;
    before.as_pinned().ensure_unchanged(&vm)
}
