// SPDX-License-Identifier: GPL-2.0-only

//! Mode exact at any ratio: it restores all bits, and KVM_GET_CLOCK is the record's function.

use crate::{
    tsc::{ensure_on_function, move_to_domain, Tsc},
    Host, Rate, RATES, VCPUS,
};
use kvm_clock_guest_selftests::{expect::get_clock_and_host_tsc, prelude::*, snippet};
use pvclock::rate::Factor;
use pvclock_reference::arithmetic::extended_kvmclock_ns;

/// Save and restore, over and over.
const CYCLES: u32 = 5;

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = Vec::new();
    for rate in RATES {
        cases.extend([
            Case::new(format!("GET holds at its anchor, {}", rate.name), |host| {
                anchor(host, rate)
            }),
            Case::new(
                format!("exact, {CYCLES} cycles in one VM, {}", rate.name),
                |host| same_vm(host, rate),
            ),
            Case::new(
                format!("exact, {CYCLES} cycles, each into a new VM, {}", rate.name),
                |host| new_vm(host, rate),
            ),
            Case::new(
                format!("exact, before the first KVM_RUN, {}", rate.name),
                |host| before_first_run(host, rate),
            ),
            Case::new(
                format!(
                    "exact with an anchor that this host never reached, {}",
                    rate.name
                ),
                |host| stale(host, rate),
            ),
            Case::new(
                format!("a hot-added vCPU shares the record, {}", rate.name),
                |host| hot_add(host, rate),
            ),
            Case::new(
                format!("the record alone, through a vCPU, {}", rate.name),
                |host| through_vcpu(host, rate),
            ),
        ]);
    }
    cases
}

/// Fails unless `KVM_GET_CLOCK` of the stopped `vm` is the value of `record`, for vCPU 0, at its
/// host TSC, to the ns.
pub(crate) fn ensure_kvm_agrees(vm: &Vm, record: &ClockGuest) -> Result<()> {
    let tsc = Tsc::of(vm, 0)?;
    for _ in 0..100 {
        let data = get_clock_and_host_tsc(vm)?;
        let expected = extended_kvmclock_ns(record, tsc.at(HostTsc(data.host_tsc)));
        ensure_eq!(data.clock, expected, "KVM_GET_CLOCK, ns");
    }
    Ok(())
}

/// Fails unless the stopped `vm` has the clocks `before`, now pinned, and so have its guest and
/// KVM_GET_CLOCK.
pub(crate) fn ensure_pinned(vm: &Vm, before: &Clocks, when: &str) -> Result<()> {
    ensure_kvm_agrees(vm, &before.record)?;
    let reading = run_a_little(vm)?;
    let expected = Clocks {
        pinned: true,
        clock_diff_ns: Some(0),
        ..before.clone()
    };
    expected.ensure_is(&Clocks::of(vm)?, when)?;
    expected.ensure_reads(&reading)?;
    ensure_on_function(vm, &reading)?;
    ensure_kvm_agrees(vm, &before.record)
}

/// `guest_tsc` and `kvmclock_ns` follow from the transform.
fn anchor(host: &Host, rate: &Rate) -> Result<()> {
    for vm in [rate.derived(host)?, rate.pinned(host)?] {
        let clock = get(&vm)?;
        let header = &clock.header;
        let guest_tsc = Tsc::of(&vm, 0)?.at(header.host_tsc);
        let expected = [guest_tsc.0, extended_kvmclock_ns(&header.record, guest_tsc)];
        ensure!(
            header.ref_vcpu_id == 0 && [header.guest_tsc.0, header.kvmclock_ns] == expected,
            "guest TSC and kvmclock at host TSC {} are {expected:?}, GET reports {header:?}",
            header.host_tsc
        );
        let offsets = offsets(&clock);
        let expected = vm.tsc_offsets()?;
        ensure_eq_hex!(offsets, expected, "TSC offsets of GET");
    }
    Ok(())
}

fn same_vm(host: &Host, rate: &Rate) -> Result<()> {
    let vm = rate.derived(host)?;
    let before = Clocks::of(&vm)?;
    ensure!(!before.pinned, "a record is pinned before any SET");
    for cycle in 1..=CYCLES {
        set(&vm, &mut get(&vm)?, MODE_EXACT)?;
        ensure_pinned(&vm, &before, &format!("after cycle {cycle}"))?;
    }
    Ok(())
}

fn new_vm(host: &Host, rate: &Rate) -> Result<()> {
    let mut vm = rate.derived(host)?;
    let before = Clocks::of(&vm)?;
    for cycle in 1..=CYCLES {
        let (state, mut clock) = (vm.save()?, get(&vm)?);
        drop(vm);
        vm = Vm::empty_at_rate(&host.kvm, VCPUS, rate.khz(host))?;
        vm.load(&state)?;
        set(&vm, &mut clock, MODE_EXACT)?;
        ensure_pinned(&vm, &before, &format!("after cycle {cycle}"))?;
    }
    Ok(())
}

fn before_first_run(host: &Host, rate: &Rate) -> Result<()> {
    let new = || Vm::at_rate(&host.kvm, VCPUS, rate.khz(host));
    let (source, target) = (new()?, new()?);
    let mut clock = get(&source)?;
    let record = clock.header.record;
    set(&target, &mut clock, MODE_EXACT)?;

    let offsets = offsets(&clock);
    let before = Clocks::pinned_to(record, offsets);
    ensure_pinned(&target, &before, "after SET and KVM_RUN")
}

fn stale(host: &Host, rate: &Rate) -> Result<()> {
    let vm = rate.derived(host)?;
    let mut clock = get(&vm)?;
    let ahead = clock.header.host_tsc.wrapping_add(1 << 50);
    move_to_domain(&mut clock, ahead);
    clock.header.mode = MODE_EXACT;
    ensure_refused(&vm, libc::ESTALE, |fd| set_vm_clock_guest(fd, &mut clock))
}

fn hot_add(host: &Host, rate: &Rate) -> Result<()> {
    let vm = rate.pinned(host)?;
    let before = Clocks::of(&vm)?;
    let page = snippet::record_in_real_mode(&vm, &mut snippet::add_vcpu(&vm)?)?;
    let expected = before.pages[0];
    ensure_eq_hex!(function(page), function(expected), "the new vCPU's record");
    before.ensure_unchanged(&vm)
}

/// KVM_GET_CLOCK_GUEST and KVM_SET_CLOCK_GUEST: the record of a vCPU, and the rate it must be for.
fn through_vcpu(host: &Host, rate: &Rate) -> Result<()> {
    let vm = rate.derived(host)?;
    let before = Clocks::of(&vm)?;
    for vcpu in vm.vcpus() {
        let record = get_clock_guest(&vcpu.fd()).context("KVM_GET_CLOCK_GUEST")?;
        ensure_eq_hex!(record, before.record, "vCPU {}'s record", vcpu.index());
    }
    ensure_changes_nothing(&vm, |_| {
        for other in RATES
            .iter()
            .filter(|other| other.khz(host) != rate.khz(host))
        {
            let factor = Factor::of_hz(u64::from(other.khz(host)) * 1000).context("a rate of 0")?;
            let foreign = ClockGuest {
                tsc_to_system_mul: factor.mul,
                tsc_shift: factor.shift,
                ..before.record
            };
            let result = set_clock_guest(&vm.vcpus()[0].fd(), &foreign);
            ensure_errno(libc::ERANGE, result)
                .with_context(|| format!("a record for {}", other.name))?;
        }
        Ok(())
    })?;
    set_clock_guest(&vm.vcpus()[1].fd(), &before.record).context("KVM_SET_CLOCK_GUEST")?;
    ensure_pinned(&vm, &before, "after KVM_SET_CLOCK_GUEST")
}
