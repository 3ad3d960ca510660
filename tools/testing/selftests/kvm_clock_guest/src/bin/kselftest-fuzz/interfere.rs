// SPDX-License-Identifier: GPL-2.0-only

//! Other changes that a VMM may make to a stopped VM's clocks between the calls.

use crate::{
    extremes::{any64, one_in, pick},
    fuzz::Fuzz,
};
use clockguest::guest::layout::pvclock_page;
use kvm_clock_guest_selftests::{
    msr::{set_msr, MSR_IA32_TSC, MSR_KVM_SYSTEM_TIME_NEW},
    prelude::*,
};
use rand::Rng as _;

/// Changes something. Fails unless a pinned record keeps every bit, if the change does not end it.
pub(crate) fn interfere(fuzz: &mut Fuzz<'_>) -> Result<()> {
    let which = fuzz.rng.random_range(0..9);
    let was = fuzz.state.pinned_function();
    change(fuzz, which).with_context(|| format!("interference {which}"))?;
    fuzz.refresh()?;
    let is = fuzz.state.pinned_function();
    match which {
        0 => ensure!(is.is_none(), "KVM_SET_CLOCK left the record {is:x?}"),
        // KVM_SET_CLOCK sometimes comes first.
        5 if fuzz.scales => (),
        // An added vCPU has the VM's rate. If the others have another one, GET fails.
        8 if fuzz.scales && fuzz.state.clock.is_none() => (),
        _ => ensure_eq_hex!(is, was, "the record after interference {which}"),
    }
    Ok(())
}

fn change(fuzz: &mut Fuzz<'_>, which: u32) -> Result<()> {
    let rng = &mut fuzz.rng;
    let value = any64(rng);
    let vm = fuzz.fixture.vm();
    let vcpu = &vm.vcpus()[rng.random_range(0..vm.vcpus().len())];
    match which {
        0 => set_clock(vm, value)?,
        1 => vm.set_tsc_offset(vcpu.index(), TscOffset(value))?,
        2 => {
            for vcpu in vm.vcpus() {
                vm.set_tsc_offset(vcpu.index(), TscOffset(value))?;
            }
        }
        3 => set_msr(&vcpu.fd(), MSR_IA32_TSC, value)?,
        4 => {
            let page = pvclock_page(vcpu.index());
            set_msr(&vcpu.fd(), MSR_KVM_SYSTEM_TIME_NEW, page | 1)?;
        }
        5 => {
            // Any rate on a host that scales TSCs, else one that KVM does not imitate.
            let host = fuzz.host_khz;
            let khz = match fuzz.scales && one_in(rng, 2) {
                true => pick(rng, &[host / 2, host, host / 3 * 2]),
                false => host.wrapping_add_signed(rng.random_range(-99..=99)),
            };
            // Only a clock that is not pinned lets a vCPU have another rate.
            let unpins = fuzz.scales && one_in(rng, 2);
            if unpins {
                set_clock(vm, value)?;
            }
            let is_pinned = fuzz.state.is_pinned() && !unpins;
            // The added vCPUs keep their rate.
            for vcpu in vm.vcpus() {
                set_tsc_khz(&vcpu.fd(), khz, is_pinned)?;
            }
        }
        6 => {
            // Refused before the guest enabled kvmclock.
            let _ = vcpu.fd().kvmclock_ctrl();
        }
        7 => {
            let index = vcpu.index();
            fuzz.fixture.account_steal(index, value & 1 != 0)?;
        }
        _ => fuzz.fixture.add_vcpu()?,
    }
    Ok(())
}

/// KVM_SET_TSC_KHZ to `khz`, which must fail if the clock `is_pinned` and the vCPU has another
/// rate.
fn set_tsc_khz(vcpu: &VcpuFd, khz: u32, is_pinned: bool) -> Result<()> {
    let former = vcpu.get_tsc_khz().context("KVM_GET_TSC_KHZ")?;
    let result = vcpu.set_tsc_khz(khz);
    if is_pinned && khz != former {
        return ensure_errno(libc::EBUSY, result);
    }
    result.context("KVM_SET_TSC_KHZ")
}
