// SPDX-License-Identifier: GPL-2.0-only

//! VMs in the states that cases start from.

use crate::time::HOUR_NS;
use anyhow::{bail, Context, Result};
use clockguest::host::rdtsc_ordered;
use clockguest::{measure::Reading, observe, vmm::Vm};
use kvm_clock::{get_vm_clock_guest, set_vm_clock_guest, tsc_offset, tsc_scale, VmClock};
use kvm_ioctls::{Kvm, VcpuFd};
use pvclock::{
    abi::{ClockGuest, MODE_EXACT},
    rate::GuestRate,
    tsc::{Scale, TscTransform},
};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// A VM that has run and is stopped, its clocks derived by KVM.
///
/// # Errors
///
/// Those of KVM.
pub fn derived(kvm: &Kvm, vcpus: u32) -> Result<Vm> {
    let vm = Vm::new(kvm, vcpus)?;
    // The first run takes up the master clock and writes every vCPU's record.
    settle(&vm)?;
    Ok(vm)
}

/// A VM that has run and is stopped, with a pinned record.
///
/// # Errors
///
/// Those of KVM.
pub fn pinned(kvm: &Kvm, vcpus: u32) -> Result<Vm> {
    let vm = derived(kvm, vcpus)?;
    set(&vm, &mut get(&vm)?, MODE_EXACT)?;
    run_a_little(&vm)?;
    Ok(vm)
}

/// Lets every vCPU run and make readings, and stops.
///
/// # Errors
///
/// If a vCPU does not.
pub fn run_a_little(vm: &Vm) -> Result<Reading> {
    let run = observe::run(vm)?;
    vm.stop()?;
    Ok(run.finish(vm, rdtsc_ordered())?)
}

/// Lets the VM run and stops it, until no clock update is pending.
///
/// # Errors
///
/// As of [`run_a_little`].
pub fn settle(vm: &Vm) -> Result<Reading> {
    let reading = run_a_little(vm)?;
    // A vCPU that was late to run may have had the master clock, and thereby all records, updated
    // once more, when the others had made their readings already.
    run_a_little(vm)?;
    Ok(reading)
}

/// Returns when vCPU `index` executes guest instructions, and so is inside KVM_RUN.
///
/// # Errors
///
/// If it does not.
pub fn wait_in_guest(vm: &Vm, index: usize) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);

    let (count, start) = (vm.view(index).count(), Instant::now());
    while vm.view(index).count() == count {
        vm.vcpus()[index].check()?;
        if start.elapsed() > PATIENCE {
            bail!("vCPU {index} made no reading in {PATIENCE:?}, after {count} before");
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// `KVM_GET_VM_CLOCK_GUEST`.
///
/// # Errors
///
/// Those of the ioctl.
pub fn get(vm: &Vm) -> Result<VmClock> {
    get_vm_clock_guest(vm.fd()).context("KVM_GET_VM_CLOCK_GUEST")
}

/// `KVM_SET_VM_CLOCK_GUEST` with `mode`.
///
/// # Errors
///
/// Those of the ioctl.
pub fn set(vm: &Vm, clock: &mut VmClock, mode: u32) -> Result<()> {
    clock.header.mode = mode;
    set_vm_clock_guest(vm.fd(), clock)
        .with_context(|| format!("KVM_SET_VM_CLOCK_GUEST, mode {mode}"))
}

/// TSC offset (ticks) of the reference vCPU of `clock`; 0 if it is not in the array.
pub fn reference_offset(clock: &VmClock) -> u64 {
    let id = clock.header.ref_vcpu_id;
    let reference = clock.vcpus.iter().find(|vcpu| vcpu.vcpu_id == id);
    reference.map_or(0, |vcpu| vcpu.tsc_offset)
}

/// Makes `guest_tsc` and `kvmclock_ns` follow from the rest of `clock`, where it has a ratio at
/// all.
pub fn make_consistent(clock: &mut VmClock) {
    let offset = reference_offset(clock);
    let header = &mut clock.header;
    if let Some(scale) = Scale::new(header.tsc_ratio, header.tsc_frac_bits) {
        header.guest_tsc = TscTransform { scale, offset }.guest_tsc(header.host_tsc);
        header.kvmclock_ns = header.record.kvmclock_ns(header.guest_tsc);
    }
}

/// Makes `clock` one that was saved where the host TSC was `host_tsc` at the anchor: every vCPU's
/// TSC and the record stay what they are, the offsets differ.
pub fn move_to_domain(clock: &mut VmClock, host_tsc: u64) {
    let header = &mut clock.header;
    let scale = Scale::new(header.tsc_ratio, header.tsc_frac_bits).unwrap_or(Scale::IDENTITY);
    let shift = scale
        .apply(header.host_tsc)
        .wrapping_sub(scale.apply(host_tsc));
    header.host_tsc = host_tsc;
    for vcpu in &mut clock.vcpus {
        vcpu.tsc_offset = vcpu.tsc_offset.wrapping_add(shift);
    }
}

/// The L1 TSC of the reference vCPU of `clock` as a function of the host's.
///
/// # Errors
///
/// If `clock` has no valid ratio.
pub fn reference_transform(clock: &VmClock) -> Result<TscTransform> {
    let (ratio, frac_bits) = (clock.header.tsc_ratio, clock.header.tsc_frac_bits);
    let scale = Scale::new(ratio, frac_bits)
        .with_context(|| format!("{ratio:#x} with {frac_bits} fraction bits is no ratio"))?;
    Ok(TscTransform {
        scale,
        offset: reference_offset(clock),
    })
}

/// The L1 TSC of a stopped vCPU as a function of the host's, by `KVM_VCPU_TSC_SCALE` and
/// `KVM_VCPU_TSC_OFFSET`.
///
/// # Errors
///
/// Those of the ioctls.
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

/// `clock` with a record that is an hour ahead of what it is, and 50 or 100 ppm off KVM's own rate
/// from its anchor on: no clock of KVM's own making, nor `clock`, is mistaken for it.
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
    let off_by_ppm = |ppm: i64| {
        let mul = i64::from(own.mul) + i64::from(own.mul) * ppm / 1_000_000;
        // SET takes no mul with a highest bit of 0.
        u32::try_from(mul).ok().filter(|mul| mul >> 31 == 1)
    };
    let is_other = |&mul: &u32| mul != header.record.tsc_to_system_mul;
    let mul = [100, -100, 50, -50]
        .into_iter()
        .filter_map(off_by_ppm)
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

/// `clock` with kvmclock an hour ahead of what it is, so that no clock of KVM's own making is
/// mistaken for it.
pub fn an_hour_ahead(mut clock: VmClock) -> VmClock {
    clock.header.record.system_time += HOUR_NS.unsigned_abs();
    clock.header.kvmclock_ns += HOUR_NS.unsigned_abs();
    clock
}

/// `clock` as another VM's: other offsets, another record, and saved an hour ago, so that a SET of
/// it leaves nothing as it is, in any mode.
pub fn unlike(clock: VmClock) -> VmClock {
    let mut clock = at_another_rate(clock);
    let host_tsc = clock.header.host_tsc / 2;
    move_to_domain(&mut clock, host_tsc);
    clock.header.tai_ns -= HOUR_NS;
    clock
}
