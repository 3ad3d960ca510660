// SPDX-License-Identifier: GPL-2.0-only

//! `ALLOW_BACKWARDS` by more than the record's age: the record moves back too, by its exact
//! steps, and kvmclock stays the same function of the TSC; or the SET fails.

use crate::{Host, VCPUS};
use kvm_clock_guest_selftests::{expect, prelude::*};
use pvclock_reference::arithmetic::extended_kvmclock_ns;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new(
            "accepted SET: advance by -1 h with ALLOW_BACKWARDS",
            |host: &Host| an_hour_back(&derived(&host.kvm, VCPUS)?),
        ),
        Case::new(
            "EINVAL SET: advance by -1 h, record with room for 2^32 ticks",
            no_room,
        ),
    ]
}

fn an_hour_back(vm: &Vm) -> Result<()> {
    let saved = Clocks::of(vm)?;
    let mut clock = get(vm)?;
    clock.header.mode = MODE_ADVANCE;
    clock.header.flags = FLAG_ALLOW_BACKWARDS;
    clock.header.tai_ns += HOUR_NS;
    let host_before = rdtsc_ordered();
    set_vm_clock_guest(vm.fd(), &mut clock).context("KVM_SET_VM_CLOCK_GUEST")?;
    let host_after = rdtsc_ordered();

    let now = get(vm)?;
    let transform = reference_transform(&now)?;
    let earliest = transform.guest_tsc(host_before);
    let latest = transform.guest_tsc(host_after);
    let (was, is) = (function(saved.record), function(now.header.record));
    ensure!(
        was.tsc_timestamp.is_ahead_of(latest),
        "the guest's TSC, {latest:#x} at most, is not behind the record {was:x?}"
    );
    // It is not ahead of the guest's TSC of that moment, and would be one exact step further.
    ensure_eq_hex!(
        is,
        was.not_ahead_of(is.tsc_timestamp)
            .context("the record cannot move as far")?,
        "the record, moved by exact steps"
    );
    let next = is.tsc_timestamp.wrapping_add(1 << was.exact_step_log2());
    ensure!(
        !is.tsc_timestamp.is_ahead_of(latest) && next.is_ahead_of(earliest),
        "the record is {is:x?}, the guest's TSC was in {earliest:#x}..={latest:#x}"
    );

    // It is the same function of the TSC, before the old timestamp and after it.
    let reach = was.tsc_timestamp.since(is.tsc_timestamp);
    for part in 0..=64u64 {
        for near in 0..=2 {
            let ticks = (reach / 32).wrapping_mul(part) + near;
            let tsc = is.tsc_timestamp.wrapping_add(ticks);
            let (observed, expected) = (is.kvmclock_ns(tsc), extended_kvmclock_ns(&was, tsc));
            ensure_eq!(observed, expected, "kvmclock at TSC {tsc:#x}, ns");
        }
    }
    expect::ensure_reads(&run_a_little(vm)?, &was, transform.offset)?;

    let after = Clocks::of(vm)?;
    Clocks::pinned_to(now.header.record, after.offsets.clone()).ensure_is(&after, "after SET")
}

/// Guests shift the 64-bit ticks since `tsc_timestamp` left by 31 bits.
fn no_room(host: &Host) -> Result<()> {
    for vm in &host.vms {
        let tai_ns = get(vm)?.header.tai_ns;
        let mut clock = request(vm, MODE_ADVANCE)?;
        clock.header.flags = FLAG_ALLOW_BACKWARDS;
        clock.header.tai_ns = tai_ns + HOUR_NS;
        (
            clock.header.record.tsc_shift,
            clock.header.record.tsc_to_system_mul,
        ) = (31, 1);
        ensure_refused(vm, libc::EINVAL, |fd| set_vm_clock_guest(fd, &mut clock))?;
    }
    Ok(())
}
