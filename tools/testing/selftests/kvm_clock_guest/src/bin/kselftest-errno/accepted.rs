// SPDX-License-Identifier: GPL-2.0-only

//! What is just inside the limits, so that a refusal is known to be due to its cause.

use crate::{
    Host,
    VCPUS, //
};
use anyhow::{
    ensure,
    Context,
    Result, //
};
use clockguest::vmm::ioctl::{
    set_vm_clock_guest,
    VmClock, //
};
use kvm_clock_guest_selftests::{
    clocks::Clocks,
    fixture::{
        derived,
        get,
        run_a_little, //
    },
    ktap::Case,
    payload::{
        Payload,
        PAGE, //
    },
};
use pvclock::abi::{
    VmClockGuest,
    FLAGS_KNOWN,
    FLAG_ALLOW_BACKWARDS,
    FLAG_ALLOW_RATE_MISMATCH,
    MODE_ADVANCE,
    MODE_EXACT,
    MODE_FREEZE,
    STATUS_KNOWN, //
};

const SECOND_NS: i64 = 1_000_000_000;

type Edit = fn(&mut VmClock);

const SET: &[(&str, Edit)] = &[
    ("what GET returned", |c| c.header.mode = MODE_EXACT),
    ("all known flags and status bits", |c| {
        c.header.mode = MODE_EXACT;
        c.header.flags = FLAGS_KNOWN;
        c.header.status = STATUS_KNOWN;
    }),
    ("record's version and flags are ignored", |c| {
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
    ("advance by -1 h with ALLOW_BACKWARDS", |c| {
        c.header.mode = MODE_ADVANCE;
        c.header.flags = FLAG_ALLOW_BACKWARDS;
        c.header.tai_ns += 3600 * SECOND_NS;
    }),
];

pub(crate) fn cases() -> Vec<Case<Host>> {
    let set = SET.iter().map(|&(name, edit)| {
        Case::new(format!("accepted SET: {name}"), move |host| {
            accepted(host, edit)
        })
    });
    set.chain([
        Case::new("accepted GET and SET: a page with a tail of zeros", larger),
        Case::new("accepted SET: array write-protected", array_read_only),
    ])
    .collect()
}

/// The record is kept, bit for bit, in every mode.
fn accepted(host: &Host, edit: Edit) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let before = Clocks::of(&vm)?;
    let mut clock = get(&vm)?;
    let here = i64::from(clock.header.host_tsc_khz);
    edit(&mut clock);
    let saved = i64::from(clock.header.host_tsc_khz);
    set_vm_clock_guest(vm.fd(), &mut clock).context("KVM_SET_VM_CLOCK_GUEST")?;

    let (expected, observed) = ((here - saved) * 1000, clock.header.rate_diff_hz);
    ensure!(
        observed == expected,
        "rate_diff_hz is {observed}, expected {expected}"
    );
    run_a_little(&vm)?;
    let after = Clocks::of(&vm)?;
    let expected = Clocks {
        kept: true,
        // Advance and freeze move them.
        offsets: after.offsets.clone(),
        ..before
    };
    expected.ensure_is(&after, "after SET")
}

/// The module says what it knows, and leaves the rest alone.
fn larger(host: &Host) -> Result<()> {
    let known = size_of::<VmClockGuest>() as u32;
    let vm = derived(&host.kvm, VCPUS)?;
    let before = Clocks::of(&vm)?;
    let mut clock = get(&vm)?;

    let payload = Payload::new(&clock)?;
    payload.set_size(PAGE as u32);
    payload.get(vm.fd()).context("KVM_GET_VM_CLOCK_GUEST")?;
    let size = payload.size();
    ensure!(
        size == known,
        "size is {size}, the structure has {known} bytes"
    );

    clock.header.mode = MODE_EXACT;
    let payload = Payload::new(&clock)?;
    payload.set_size(PAGE as u32);
    payload.set(vm.fd()).context("KVM_SET_VM_CLOCK_GUEST")?;
    Clocks {
        kept: true,
        ..before
    }
    .ensure_unchanged(&vm)
}

fn array_read_only(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let before = Clocks::of(&vm)?;
    let mut clock = get(&vm)?;
    clock.header.mode = MODE_EXACT;
    let payload = Payload::new(&clock)?;
    payload.protect_array()?;
    payload.set(vm.fd()).context("KVM_SET_VM_CLOCK_GUEST")?;
    Clocks {
        kept: true,
        ..before
    }
    .ensure_unchanged(&vm)
}
