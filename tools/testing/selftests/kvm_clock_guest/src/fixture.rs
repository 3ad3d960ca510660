// SPDX-License-Identifier: GPL-2.0-only

//! VMs in the states that cases start from, and changes of saved clocks.

use crate::{time::HOUR_NS, wait::wait_for_guest};
use anyhow::{Context, Result};
use clockguest::{host::rdtsc_ordered, measure::Reading, observe, vmm::Vm};
use kvm_bindings::kvm_clock_data;
use kvm_clock::{
    get_vm_clock_guest, get_vm_clock_guest_or_fall_back, set_vm_clock_guest, tsc_offset, tsc_scale,
    VmClock,
};
use kvm_ioctls::{Kvm, VcpuFd};
use pvclock::{
    abi::{ClockGuest, MODE_ADVANCE, MODE_EXACT, MODE_FREEZE},
    counter::{HostTsc, TscOffset},
    rate::GuestRate,
    tsc::{Scale, TscTransform},
};
use std::time::Duration;

/// The modes of SET.
pub const MODES: [(&str, u32); 3] = [
    ("exact", MODE_EXACT),
    ("advance", MODE_ADVANCE),
    ("freeze", MODE_FREEZE),
];

/// A host TSC of another domain, far ahead of this host's.
pub const OTHER_DOMAIN: HostTsc = HostTsc(1 << 60);

/// A VM that has run and is stopped, with a derived clock.
pub fn derived(kvm: &Kvm, vcpus: u32) -> Result<Vm> {
    let vm = Vm::new(kvm, vcpus)?;
    // The first run makes KVM use a master clock and write every vCPU's record.
    settle(&vm)?;
    Ok(vm)
}

/// The same at a TSC rate of `khz` kHz.
pub fn derived_at_rate(kvm: &Kvm, vcpus: u32, khz: u32) -> Result<Vm> {
    let vm = Vm::at_rate(kvm, vcpus, khz)?;
    settle(&vm)?;
    Ok(vm)
}

/// A VM that has run and is stopped, with a pinned clock.
pub fn pinned(kvm: &Kvm, vcpus: u32) -> Result<Vm> {
    Ok(pinned_with(kvm, vcpus, |clock| clock)?.0)
}

/// The same with a clock an hour ahead, and that clock.
pub fn pinned_an_hour_ahead(kvm: &Kvm, vcpus: u32) -> Result<(Vm, VmClock)> {
    pinned_with(kvm, vcpus, an_hour_ahead)
}

/// The same with a clock changed by `change`.
pub fn pinned_with(
    kvm: &Kvm,
    vcpus: u32,
    change: impl FnOnce(VmClock) -> VmClock,
) -> Result<(Vm, VmClock)> {
    let vm = derived(kvm, vcpus)?;
    let clock = pin(&vm, change)?;
    Ok((vm, clock))
}

/// Pins the clock of the stopped `vm` as changed by `change`, and lets it run.
pub fn pin(vm: &Vm, change: impl FnOnce(VmClock) -> VmClock) -> Result<VmClock> {
    let mut clock = change(get(vm)?);
    set(vm, &mut clock, MODE_EXACT)?;
    run_a_little(vm)?;
    Ok(clock)
}

/// The stopped `vm` in a new VM with the same memory and registers, but no clocks.
pub fn successor(kvm: &Kvm, vm: Vm) -> Result<Vm> {
    let (state, vcpus, khz) = (vm.save()?, vm.vcpus().len(), vm.tsc_khz()?);
    drop(vm);
    // CAST: a few.
    let vm = Vm::empty_at_rate(kvm, vcpus as u32, khz)?;
    vm.load(&state)?;
    Ok(vm)
}

/// Lets every vCPU run and make readings, and stops.
pub fn run_a_little(vm: &Vm) -> Result<Reading> {
    let run = observe::run(vm)?;
    vm.stop()?;
    Ok(run.finish(vm, rdtsc_ordered())?)
}

/// Lets the VM run and stops it, until no clock update is pending.
pub fn settle(vm: &Vm) -> Result<Reading> {
    let reading = run_a_little(vm)?;
    // A vCPU that was late to run may have caused another update of the master clock, and so of all
    // records, after the others had made their readings.
    run_a_little(vm)?;
    Ok(reading)
}

/// Returns when vCPU `index` executes guest instructions, and so is inside KVM_RUN.
pub fn wait_in_guest(vm: &Vm, index: usize) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);

    let count = vm.view(index).count();
    let what = format!("vCPU {index} makes a reading, after {count} before");
    wait_for_guest(vm, &what, PATIENCE, || vm.view(index).count() != count)
}

/// `KVM_GET_VM_CLOCK_GUEST`.
pub fn get(vm: &Vm) -> Result<VmClock> {
    get_vm_clock_guest(vm.fd()).context("KVM_GET_VM_CLOCK_GUEST")
}

/// `KVM_GET_VM_CLOCK_GUEST` with FALLBACK.
pub fn get_or_fall_back(vm: &Vm) -> Result<VmClock> {
    get_vm_clock_guest_or_fall_back(vm.fd()).context("KVM_GET_VM_CLOCK_GUEST with FALLBACK")
}

/// `KVM_SET_VM_CLOCK_GUEST` with `mode`.
pub fn set(vm: &Vm, clock: &mut VmClock, mode: u32) -> Result<()> {
    clock.header.mode = mode;
    set_vm_clock_guest(vm.fd(), clock)
        .with_context(|| format!("KVM_SET_VM_CLOCK_GUEST, mode {mode}"))
}

/// `KVM_GET_CLOCK`.
pub fn get_clock(vm: &Vm) -> Result<kvm_clock_data> {
    vm.fd().get_clock().context("KVM_GET_CLOCK")
}

/// `KVM_SET_CLOCK` to `ns`, which unpins the clock.
pub fn set_clock(vm: &Vm, ns: u64) -> Result<()> {
    let data = kvm_clock_data {
        clock: ns,
        ..kvm_clock_data::default()
    };
    vm.fd().set_clock(&data).context("KVM_SET_CLOCK")
}

/// `KVM_SET_TSC_KHZ` of the vCPUs from `first` on.
pub fn set_tsc_khz(vm: &Vm, first: usize, khz: u32) -> Result<()> {
    vm.vcpus()[first..]
        .iter()
        .try_for_each(|vcpu| vcpu.fd().set_tsc_khz(khz).context("KVM_SET_TSC_KHZ"))
}

/// TSC offsets of all vCPUs of `clock`.
pub fn offsets(clock: &VmClock) -> Vec<TscOffset> {
    clock.vcpus.iter().map(|vcpu| vcpu.tsc_offset).collect()
}

/// TSC offset of the reference vCPU of `clock`; 0 if it is not in the array.
pub fn reference_offset(clock: &VmClock) -> TscOffset {
    let id = clock.header.ref_vcpu_id;
    let reference = clock.vcpus.iter().find(|vcpu| vcpu.vcpu_id == id);
    reference.map_or(TscOffset(0), |vcpu| vcpu.tsc_offset)
}

/// Recomputes `guest_tsc` and `kvmclock_ns` from the rest of `clock`, if it has a valid ratio.
pub fn make_consistent(clock: &mut VmClock) {
    let offset = reference_offset(clock);
    let header = &mut clock.header;
    if let Some(scale) = Scale::new(header.tsc_ratio, header.tsc_frac_bits) {
        header.guest_tsc = TscTransform { scale, offset }.guest_tsc(header.host_tsc);
        header.kvmclock_ns = header.record.kvmclock_ns(header.guest_tsc);
    }
}

/// Adds `ticks` to the TSCs of all vCPUs of `clock`.
pub fn add_to_offsets(clock: &mut VmClock, ticks: u64) {
    for vcpu in &mut clock.vcpus {
        vcpu.tsc_offset = vcpu.tsc_offset.wrapping_add(ticks);
    }
}

/// Moves the TSCs of all vCPUs of `clock`, and the record with them, by `ticks`.
pub fn shift(clock: &mut VmClock, ticks: u64) {
    add_to_offsets(clock, ticks);
    let header = &mut clock.header;
    header.guest_tsc = header.guest_tsc.wrapping_add(ticks);
    header.record = header.record.shifted_by(ticks);
}

/// Makes `clock` one that was saved where the host TSC was `host_tsc` at the anchor: the offsets
/// differ, every vCPU's TSC and the record do not.
pub fn move_to_domain(clock: &mut VmClock, host_tsc: HostTsc) {
    let header = &mut clock.header;
    let scale = Scale::new(header.tsc_ratio, header.tsc_frac_bits).unwrap_or(Scale::IDENTITY);
    let shift = scale
        .apply(header.host_tsc.0)
        .wrapping_sub(scale.apply(host_tsc.0));
    header.host_tsc = host_tsc;
    add_to_offsets(clock, shift);
}

/// Makes `clock` one that was saved on another host an hour ago.
pub fn move_to_other_host(clock: &mut VmClock) {
    move_to_domain(clock, OTHER_DOMAIN);
    clock.header.tai_ns -= HOUR_NS;
}

/// The L1 TSC of the reference vCPU of `clock` as a function of the host TSC.
pub fn reference_transform(clock: &VmClock) -> Result<TscTransform> {
    let (ratio, frac_bits) = (clock.header.tsc_ratio, clock.header.tsc_frac_bits);
    let scale = Scale::new(ratio, frac_bits)
        .with_context(|| format!("{ratio:#x} with {frac_bits} fraction bits is no ratio"))?;
    Ok(TscTransform {
        scale,
        offset: reference_offset(clock),
    })
}

/// The L1 TSC of a stopped vCPU as a function of the host TSC, from `KVM_VCPU_TSC_SCALE` and
/// `KVM_VCPU_TSC_OFFSET`.
pub fn vcpu_transform(vcpu: &VcpuFd) -> Result<TscTransform> {
    let scale = match tsc_scale(vcpu) {
        // CAST: at most 63.
        Ok(scale) => Scale::new(scale.tsc_ratio, scale.tsc_frac_bits as u32)
            .context("KVM_VCPU_TSC_SCALE is no ratio")?,
        Err(e) if e.errno() == libc::ENXIO => Scale::IDENTITY,
        Err(e) => return Err(e).context("KVM_VCPU_TSC_SCALE"),
    };
    let offset = tsc_offset(vcpu).context("KVM_VCPU_TSC_OFFSET")?;
    Ok(TscTransform { scale, offset })
}

/// `clock` with a record that is an hour ahead, and whose rate differs by 50 or 100 ppm from KVM's
/// own: no other clock can be mistaken for it.
///
/// # Panics
///
/// If `clock` has no rate.
pub fn at_another_rate(clock: VmClock) -> VmClock {
    let mut clock = an_hour_ahead(clock);
    let header = &mut clock.header;
    let own = Scale::new(header.tsc_ratio, header.tsc_frac_bits)
        .and_then(|scale| {
            let host_khz = header.host_tsc_khz;
            GuestRate { host_khz, scale }.factor()
        })
        .expect("GET returns a rate");
    let changed_by_ppm = |ppm: i64| {
        let mul = i64::from(own.mul) + i64::from(own.mul) * ppm / 1_000_000;
        // SET refuses a mul whose highest bit is 0.
        u32::try_from(mul).ok().filter(|mul| mul >> 31 == 1)
    };
    let is_other = |&mul: &u32| mul != header.record.tsc_to_system_mul;
    let mul = [100, -100, 50, -50]
        .into_iter()
        .filter_map(changed_by_ppm)
        .find(is_other)
        .expect("either two of them are slower, or two are faster");
    header.record = ClockGuest {
        tsc_timestamp: header.guest_tsc,
        system_time: header.kvmclock_ns,
        tsc_to_system_mul: mul,
        tsc_shift: own.shift,
        ..header.record
    };
    clock
}

/// `clock` with kvmclock an hour ahead: no clock that KVM derives can be mistaken for it.
pub fn an_hour_ahead(mut clock: VmClock) -> VmClock {
    clock.header.record.system_time += HOUR_NS.unsigned_abs();
    clock.header.kvmclock_ns += HOUR_NS.unsigned_abs();
    clock
}

/// `clock` with other offsets and another record, saved an hour ago: a SET of it changes
/// everything, in any mode.
pub fn unlike(clock: VmClock) -> VmClock {
    let mut clock = at_another_rate(clock);
    let host_tsc = HostTsc(clock.header.host_tsc.0 / 2);
    move_to_domain(&mut clock, host_tsc);
    clock.header.tai_ns -= HOUR_NS;
    clock
}

/// A SET for `vm` in `mode` that changes everything.
pub fn request(vm: &Vm, mode: u32) -> Result<VmClock> {
    let mut clock = unlike(get(vm)?);
    clock.header.mode = mode;
    Ok(clock)
}
