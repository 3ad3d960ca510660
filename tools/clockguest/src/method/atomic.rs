// SPDX-License-Identifier: GPL-2.0-only

//! The clocks of the whole VM, saved and restored with one ioctl each of the `kvm_clock_guest`
//! module.

use super::{Mode, SavedClocks};
use crate::vmm::{error::Context, Result, Vm};
use kvm_clock::{get_vm_clock_guest_or_fall_back, set_vm_clock_guest, VmClock};
use pvclock::abi::FLAG_FALLBACK;
use serde::{Deserialize, Serialize};

/// The result of `KVM_GET_VM_CLOCK_GUEST`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved(pub VmClock);

impl SavedClocks for Saved {
    fn save(vm: &Vm) -> Result<Self> {
        get_vm_clock_guest_or_fall_back(vm.fd())
            .map(Self)
            .context("KVM_GET_VM_CLOCK_GUEST")
    }

    fn restore(&self, vm: &Vm) -> Result<()> {
        self.set(vm, Mode::Exact).map(drop)
    }
}

impl Saved {
    /// The precision that the kernel reports, ns; 0 if the host TSC is stable.
    pub fn precision_ns(&self) -> u32 {
        self.0.header.precision_ns
    }

    /// Writes the clocks of the stopped `vm` in `mode`; returns them with the kernel's output
    /// fields. It sets `FLAG_FALLBACK`, so that it works without a stable host TSC.
    ///
    /// # Errors
    ///
    /// Those of `KVM_SET_VM_CLOCK_GUEST`.
    pub fn set(&self, vm: &Vm, mode: Mode) -> Result<VmClock> {
        let mut clock = self.0.clone();
        (clock.header.mode, clock.header.flags) = (mode.to_abi(), FLAG_FALLBACK);
        set_vm_clock_guest(vm.fd(), &mut clock).context("KVM_SET_VM_CLOCK_GUEST")?;
        Ok(clock)
    }
}
