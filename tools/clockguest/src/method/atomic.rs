// SPDX-License-Identifier: GPL-2.0-only

//! The clocks of the whole VM, each way with one ioctl of the `kvm_clock_guest` module.

use super::SavedClocks;
use crate::vmm::{
    error::Context,
    ioctl::{
        get_vm_clock_guest,
        set_vm_clock_guest,
        VmClock, //
    },
    Result,
    Vm, //
};
use pvclock::abi::MODE_EXACT;
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
        let mut clock = self.0.clone();
        clock.header.mode = MODE_EXACT;
        set_vm_clock_guest(vm.fd(), &mut clock).context("KVM_SET_VM_CLOCK_GUEST")
    }
}
