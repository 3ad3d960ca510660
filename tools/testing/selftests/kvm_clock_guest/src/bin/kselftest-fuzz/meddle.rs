// SPDX-License-Identifier: GPL-2.0-only

//! What else a VMM may do to a stopped VM's clocks, between the calls.

use crate::{
    extremes::{any64, one_in, pick},
    fuzz::Fuzz,
};
use anyhow::{ensure, Context, Result};
use clockguest::{
    guest::{code::MSR_KVM_SYSTEM_TIME_NEW, layout::pvclock_page},
    vmm::{
        vm::{set_msr, MSR_IA32_TSC},
        Vm,
    },
};
use kvm_bindings::kvm_clock_data;
use kvm_clock::set_tsc_offset;
use kvm_clock_guest_selftests::refusal::ensure_errno;
use kvm_ioctls::VcpuFd;
use rand::Rng as _;

/// Does something. Fails unless a pinned record survives whatever does not end it, to the bit.
pub(crate) fn meddle(fuzz: &mut Fuzz<'_>) -> Result<()> {
    let which = fuzz.rng.random_range(0..9);
    let was = fuzz.state.pinned_function();
    do_it(fuzz, which).with_context(|| format!("meddling {which}"))?;
    fuzz.look_again()?;
    let is = fuzz.state.pinned_function();
    match which {
        0 => ensure!(is.is_none(), "KVM_SET_CLOCK left the record {is:x?}"),
        // KVM_SET_CLOCK comes first at times.
        5 if fuzz.scales => (),
        // An added vCPU has the VM's rate, whatever the others were given since: GET cannot tell
        // then.
        8 if fuzz.scales && fuzz.state.clock.is_none() => (),
        _ => ensure!(
            was == is,
            "meddling {which} made {is:x?} of the record {was:x?}"
        ),
    }
    Ok(())
}

fn do_it(fuzz: &mut Fuzz<'_>, which: u32) -> Result<()> {
    let rng = &mut fuzz.rng;
    let value = any64(rng);
    let vm = fuzz.subject.vm();
    let vcpu = &vm.vcpus()[rng.random_range(0..vm.vcpus().len())];
    match which {
        0 => set_clock(vm, value)?,
        1 => set_tsc_offset(&vcpu.fd(), value).context("KVM_VCPU_TSC_OFFSET")?,
        2 => {
            for vcpu in vm.vcpus() {
                set_tsc_offset(&vcpu.fd(), value).context("KVM_VCPU_TSC_OFFSET")?;
            }
        }
        3 => set_msr(&vcpu.fd(), MSR_IA32_TSC, value)?,
        4 => {
            let page = pvclock_page(vcpu.index());
            set_msr(&vcpu.fd(), MSR_KVM_SYSTEM_TIME_NEW, page | 1)?;
        }
        5 => {
            // Any rate on a host that scales, else one that KVM does not imitate.
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
            // The added ones are left at another rate at times.
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
            fuzz.subject.account_steal(index, value & 1 != 0)?;
        }
        _ => fuzz.subject.add_vcpu(fuzz.kvm)?,
    }
    Ok(())
}

/// KVM_SET_TSC_KHZ to `khz`, which where the clock `is_pinned` fails unless the vCPU has that rate.
fn set_tsc_khz(vcpu: &VcpuFd, khz: u32, is_pinned: bool) -> Result<()> {
    let former = vcpu.get_tsc_khz().context("KVM_GET_TSC_KHZ")?;
    let result = vcpu.set_tsc_khz(khz);
    if is_pinned && khz != former {
        return ensure_errno(libc::EBUSY, result);
    }
    result.context("KVM_SET_TSC_KHZ")
}

/// KVM_SET_CLOCK to `ns`, which ends a pinned record.
fn set_clock(vm: &Vm, ns: u64) -> Result<()> {
    let clock = kvm_clock_data {
        clock: ns,
        ..kvm_clock_data::default()
    };
    vm.fd().set_clock(&clock).context("KVM_SET_CLOCK")
}
