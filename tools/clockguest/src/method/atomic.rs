// SPDX-License-Identifier: GPL-2.0-only

//! The clocks of the whole VM, each way with one ioctl of the `kvm_clock_guest` module.

use super::{
    Mode,
    SavedClocks, //
};
use crate::vmm::{
    error::Context,
    Result,
    Vm, //
};
use kvm_clock_ioctls::{
    get_vm_clock_guest,
    set_vm_clock_guest,
    VmClock, //
};
use serde::{
    Deserialize,
    Serialize, //
};

/// What `KVM_GET_VM_CLOCK_GUEST` returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved(pub VmClock);

impl SavedClocks for Saved {
    fn save(vm: &Vm) -> Result<Self> {
        get_vm_clock_guest(vm.fd())
            .map(Self)
            .context("KVM_GET_VM_CLOCK_GUEST")
    }

    fn restore(&self, vm: &Vm) -> Result<()> {
        self.set(vm, Mode::Exact).map(drop)
    }
}

impl Saved {
    /// Writes the clocks of the stopped `vm` by `mode`; returns what the kernel said about it.
    ///
    /// # Errors
    ///
    /// Those of `KVM_SET_VM_CLOCK_GUEST`.
    pub fn set(&self, vm: &Vm, mode: Mode) -> Result<VmClock> {
        let mut clock = self.0.clone();
        clock.header.mode = mode.to_abi();
        set_vm_clock_guest(vm.fd(), &mut clock).context("KVM_SET_VM_CLOCK_GUEST")?;
        Ok(clock)
    }
}
