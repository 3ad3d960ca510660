// SPDX-License-Identifier: GPL-2.0-only

//! What else KVM computes from a guest's kvmclock is the same function as the record it keeps.
//!
//! The guest's own copy of the record is in every other program's cases.

use anyhow::{
    ensure,
    Context,
    Result, //
};
use clockguest::vmm::{
    ioctl::VmClock,
    vm::set_msr,
    Vm, //
};
use kvm_bindings::KVM_CLOCK_HOST_TSC;
use kvm_clock_guest_selftests::{
    fixture::{
        at_twice_the_rate,
        get,
        kept,
        reference_relation,
        set, //
    },
    ktap::{
        self,
        note,
        Case, //
    },
    require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::MODE_EXACT;
use std::{
    process::ExitCode,
    sync::atomic::Ordering,
    thread::sleep,
    time::Duration, //
};

/// `MSR_KVM_WALL_CLOCK_NEW`: a write makes KVM write the guest's epoch to that address.
const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
/// Where: in a page that `clockguest::guest::layout` leaves free.
const WALL_CLOCK: u64 = 0x7000;
const SECOND_NS: i64 = 1_000_000_000;
const CALLS: usize = 200;

fn main() -> ExitCode {
    let cases = vec![
        Case::new("KVM_GET_CLOCK evaluates the kept record", kvm_get_clock),
        Case::new("wall clock MSR gives the kept record's epoch", wall_clock),
    ];
    ktap::main(require::clock_guest, cases)
}

fn kvm_get_clock(kvm: &Kvm) -> Result<()> {
    let vm = kept(kvm, 2)?;
    let mut clock = at_twice_the_rate(get(&vm)?);
    set(&vm, &mut clock, MODE_EXACT)?;
    let relation = reference_relation(&clock)?;
    for _ in 0..CALLS {
        let data = vm.fd().get_clock().context("KVM_GET_CLOCK")?;
        ensure!(
            data.flags & KVM_CLOCK_HOST_TSC != 0,
            "KVM_GET_CLOCK's flags are {:#x}",
            data.flags
        );
        let ns = clock
            .header
            .record
            .kvmclock_ns(relation.guest_tsc(data.host_tsc));
        ensure!(
            data.clock == ns,
            "KVM_GET_CLOCK says {} ns at host TSC {}, the record {ns} ns",
            data.clock,
            data.host_tsc
        );
    }
    Ok(())
}

/// The epoch is UTC minus kvmclock, and between those of two GETs: 1 us is all that they may differ
/// by at KVM's own rate; at twice the rate the epoch goes back, which KVM's own would not.
fn wall_clock(kvm: &Kvm) -> Result<()> {
    const LONG_AGAINST_A_CALL: Duration = Duration::from_millis(50);

    let vm = kept(kvm, 1)?;
    ensure_epoch(&vm)?;
    set(&vm, &mut at_twice_the_rate(get(&vm)?), MODE_EXACT)?;
    sleep(LONG_AGAINST_A_CALL);
    ensure_epoch(&vm)
}

fn ensure_epoch(vm: &Vm) -> Result<()> {
    /// The rates of UTC and TSC differ by what NTP makes of them.
    const TOLERANCE_NS: i64 = 1_000;

    let before = epoch_ns(&get(vm)?)?;
    set_msr(&vm.vcpus()[0].fd(), MSR_KVM_WALL_CLOCK_NEW, WALL_CLOCK)?;
    let after = epoch_ns(&get(vm)?)?;
    // struct pvclock_wall_clock: version, sec, nsec, each of 32 bits.
    let word = |gpa| vm.memory().word(gpa).load(Ordering::Acquire);
    let (sec, nsec) = (
        word(WALL_CLOCK) >> 32,
        word(WALL_CLOCK + 8) & u64::from(u32::MAX),
    );
    let observed = i64::try_from(sec)? * SECOND_NS + i64::try_from(nsec)?;
    note(&format!(
        "epoch went back {} ns between two GETs",
        before - after
    ));
    ensure!(
        (after - TOLERANCE_NS..=before + TOLERANCE_NS).contains(&observed),
        "epoch is {observed} ns, by the record {before} ns before and {after} ns after"
    );
    Ok(())
}

/// UTC at which kvmclock was 0, ns.
fn epoch_ns(clock: &VmClock) -> Result<i64> {
    let header = &clock.header;
    let utc_ns = header.tai_ns - i64::from(header.tai_offset_s) * SECOND_NS;
    Ok(utc_ns - i64::try_from(header.kvmclock_ns)?)
}
