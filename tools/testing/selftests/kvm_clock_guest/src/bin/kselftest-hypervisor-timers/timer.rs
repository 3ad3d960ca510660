// SPDX-License-Identifier: GPL-2.0-only

//! The timers, and how they are armed.

use clockguest::vmm::code_guest::FREE;
use kvm_clock_guest_selftests::{
    hyperv::{self, Stimer, UNIT_NS},
    prelude::*,
    timer_guest::VECTOR,
    xen,
};
use std::sync::atomic::Ordering;

/// A kind of timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Hyper-V's first synthetic timer, once.
    HyperV,
    /// The same in a VM with a TSC page, from which the reference counter is then computed.
    HyperVWithPage,
    Xen,
}

const HYPERV_PAGE: u64 = FREE;
const SHARED_INFO: u64 = FREE;
/// One page for each vCPU.
const VCPU_INFOS: u64 = FREE + 0x1000;
const PAGE_SIZE: u64 = 0x1000;
/// The event that Xen's timers raise; any but 0.
const PORT: u32 = 5;

impl Timer {
    pub(crate) const ALL: [Self; 3] = [Self::HyperV, Self::HyperVWithPage, Self::Xen];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::HyperV => "Hyper-V's synthetic timer",
            Self::HyperVWithPage => "Hyper-V's synthetic timer beside a TSC page",
            Self::Xen => "Xen's timer",
        }
    }

    /// Enables what the timer needs, before `vm` first runs.
    pub(crate) fn prepare(self, vm: &Vm) -> Result<()> {
        match self {
            Self::HyperV | Self::HyperVWithPage => {
                for vcpu in vm.vcpus() {
                    hyperv::enable_synthetic_interrupts(&vcpu.fd())?;
                    hyperv::enable(&vcpu.fd())?;
                }
                if self == Self::HyperVWithPage {
                    hyperv::enable_tsc_page(&vm.vcpus()[0].fd(), HYPERV_PAGE)?;
                }
            }
            Self::Xen => {
                xen::enable(vm.fd())?;
                xen::set_shared_info(vm.fd(), SHARED_INFO)?;
                for vcpu in vm.vcpus() {
                    let gpa = VCPU_INFOS + vcpu.index() as u64 * PAGE_SIZE;
                    xen::set_vcpu_info(&vcpu.fd(), gpa)?;
                    xen::set_upcall_vector(&vcpu.fd(), VECTOR)?;
                }
            }
        }
        Ok(())
    }

    /// Fails unless the stopped `vm`, which ran, has what [`prepare`](Self::prepare) enabled.
    pub(crate) fn ensure_prepared(self, vm: &Vm) -> Result<()> {
        if self == Self::HyperVWithPage {
            let sequence = vm.memory().word(HYPERV_PAGE).load(Ordering::Acquire);
            // CAST: The word's lower half.
            ensure!(sequence as u32 != 0, "KVM wrote no TSC page");
        }
        Ok(())
    }

    /// Arms the timer of a vCPU of the stopped `vm` for kvmclock `deadline_ns` (ns).
    pub(crate) fn arm(self, vm: &Vm, vcpu: usize, deadline_ns: u64) -> Result<()> {
        let fd = vm.vcpus()[vcpu].fd();
        match self {
            Self::HyperV | Self::HyperVWithPage => {
                hyperv::arm_stimer(&fd, Stimer::At(deadline_ns.div_ceil(UNIT_NS)), VECTOR)
            }
            // All vCPUs share the events.
            // CAST: a few.
            Self::Xen => xen::set_timer(&fd, PORT + vcpu as u32, deadline_ns),
        }
    }
}
