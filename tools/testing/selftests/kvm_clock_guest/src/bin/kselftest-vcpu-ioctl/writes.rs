// SPDX-License-Identifier: GPL-2.0-only

//! KVM_SET_CLOCK_GUEST: the record becomes the clock of the whole VM, bit for bit, and stays.

use crate::{
    get,
    list::{set_clock_guest, TimeInfo},
    record, second_descriptor, set, Host, VCPUS,
};
use kvm_clock_guest_selftests::prelude::*;
use pvclock::rate::Factor;

/// The distance by which the last vCPU's TSC is ahead of the first's, ticks.
const AHEAD: i64 = -1_000_000_007;

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = vec![
        Case::new(
            "SET: what GET reported is pinned, to the bit",
            pinned_to_the_bit,
        ),
        Case::new("SET: version and flags are ignored", ignores),
        Case::new("SET: mul and shift are the caller's", callers_factor),
        Case::new("SET: while vCPUs run", running),
    ];
    for index in 0..VCPUS as usize {
        cases.push(Case::new(
            format!("SET: different offsets, through vCPU {index}, sets all"),
            move |host: &Host| apart(host, index),
        ));
    }
    cases
}

/// A clock that differs from all others of the test.
fn an_hour_ahead(info: TimeInfo) -> TimeInfo {
    TimeInfo {
        system_time: info.system_time + HOUR_NS.unsigned_abs(),
        ..info
    }
}

/// SETs through both vCPUs in turn.
fn pinned_to_the_bit(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let before = Clocks::of(&vm)?;
    let expected = before.as_pinned();
    for index in [0, 1, 1, 0] {
        set(&vm, index, &get(&vm, index)?)?;
        expected.ensure_unchanged(&vm)?;
    }
    Ok(())
}

fn ignores(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let before = Clocks::of(&vm)?;
    let info = TimeInfo {
        version: u32::MAX,
        flags: u8::MAX,
        ..get(&vm, 0)?
    };
    set(&vm, 0, &info)?;
    before.as_pinned().ensure_unchanged(&vm)
}

/// The series keeps KVM's own slope; this SET gives the guest the record's slope.
fn callers_factor(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let khz = u64::from(vm.tsc_khz()?);
    let now = get(&vm, 0)?;
    let faster = Factor::of_hz((khz + 1) * 1000).context("no factor")?;
    let [own, other] = [
        (now.tsc_to_system_mul, now.tsc_shift),
        (faster.mul, faster.shift),
    ];
    ensure!(
        own != other,
        "the factors of {khz} and {} kHz are the same",
        khz + 1
    );
    for (mul, shift) in [other, own] {
        let info = TimeInfo {
            tsc_to_system_mul: mul,
            tsc_shift: shift,
            ..an_hour_ahead(now)
        };
        set(&vm, 0, &info)?;
        for _ in 0..2 {
            run_a_little(&vm)?;
            for page in pages(&vm) {
                ensure_eq_hex!(
                    function(page),
                    function(record(&info)),
                    "the guest's record"
                );
            }
        }
    }
    Ok(())
}

/// With different offsets there is no master clock, and SET of the series would fail. All vCPUs
/// read one clock.
fn apart(host: &Host, index: usize) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let info = an_hour_ahead(get(&vm, 0)?);
    let first = vm.tsc_offsets()?[0];
    // CAST: mod 2^64.
    vm.set_tsc_offset(1, first.wrapping_add(AHEAD as u64))?;
    run_a_little(&vm)?;

    let offsets = vm.tsc_offsets()?;
    let of_vcpu = |vcpu: usize| {
        let ticks = offsets[vcpu].since(first);
        TimeInfo {
            tsc_timestamp: info.tsc_timestamp.wrapping_add(ticks),
            flags: 0,
            ..info
        }
    };
    set(&vm, index, &of_vcpu(index))?;
    for _ in 0..3 {
        let reading = run_a_little(&vm)?;
        for (vcpu, read) in reading.vcpus.iter().enumerate() {
            let expected = of_vcpu(vcpu);
            ensure_eq_hex!(get(&vm, vcpu)?, expected, "vCPU {vcpu}: GET");
            let (observed, expected) = (pages(&vm)[vcpu], record(&expected));
            ensure_eq_hex!(observed, expected, "vCPU {vcpu}'s record");
            for sample in read.samples.iter().map(|bracketed| bracketed.sample) {
                let expected_ns = expected.kvmclock_ns(sample.tsc);
                ensure_eq!(
                    sample.kvmclock_ns,
                    expected_ns,
                    "vCPU {vcpu}'s kvmclock, ns"
                );
            }
        }
    }
    ensure_eq_hex!(vm.tsc_offsets()?, offsets, "TSC offsets");
    Clocks::of(&vm)?.ensure_unchanged(&vm)
}

/// The guest sees one clock or the other, neither steps back, and no pending update undoes SET.
fn running(host: &Host) -> Result<()> {
    const TIMES: u32 = 50;

    let vm = derived(&host.kvm, VCPUS)?;
    let fds = [second_descriptor(&vm, 0)?, second_descriptor(&vm, 1)?];
    let before = Clocks::of(&vm)?;
    let mut info = get(&vm, 0)?;
    let steps_back = |vm: &Vm| {
        [0, 1].map(|index| {
            let seen = vm.view(index).backwards();
            seen.own_kvmclock + seen.own_tsc + seen.cross_tsc
        })
    };
    let seen = steps_back(&vm);
    let _run = observe::run(&vm)?;
    let result = (0..TIMES).zip(fds.iter().cycle()).try_for_each(|(_, fd)| {
        info.system_time += HOUR_NS.unsigned_abs();
        set_clock_guest(fd, &info)
    });
    vm.stop()?;
    result.context("KVM_SET_CLOCK_GUEST while vCPUs run")?;

    let expected = Clocks {
        record: record(&info),
        pages: vec![record(&info); VCPUS as usize],
        pinned: true,
        ..before
    };
    run_a_little(&vm)?;
    expected.ensure_is(&Clocks::of(&vm)?, "after the last SET")?;
    expected.ensure_unchanged(&vm)?;
    let now = steps_back(&vm);
    ensure_eq!(now, seen, "steps back by vCPU");
    Ok(())
}
