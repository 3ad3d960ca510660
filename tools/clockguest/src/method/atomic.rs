// SPDX-License-Identifier: GPL-2.0-only

//! The clocks of the whole VM, saved and restored by the crate `kvm-clock`: with one ioctl each of
//! the `kvm_clock_guest` module, if it is loaded.

use super::{Mode, SavedClocks};
use crate::vmm::{vcpu::Stopped, Result, Vm};
use kvm_clock::{HostId, ModeChoice, Outcome, Policy};
use serde::{Deserialize, Serialize};

/// The saved clocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved(pub kvm_clock::SavedClocks);

impl SavedClocks for Saved {
    fn save(vm: &Vm) -> Result<Self> {
        let host = HostId::read()?;
        let saved = with_vcpus(vm, |vcpus| {
            kvm_clock::SavedClocks::save(vm.fd(), vcpus, &host)
        });
        Ok(Self(saved?))
    }

    fn restore(&self, vm: &Vm) -> Result<()> {
        self.set(vm, Mode::Exact).map(drop)
    }
}

impl Saved {
    /// The precision that the kernel reports, ns; 0 if the host TSC is stable.
    pub fn precision_ns(&self) -> u32 {
        let clock = self.0.clock();
        clock.map_or(0, |clock| clock.header.precision_ns)
    }

    /// Restores the clocks of the stopped `vm` in `mode`.
    ///
    /// # Errors
    ///
    /// Those of [`kvm_clock::SavedClocks::restore`].
    pub fn set(&self, vm: &Vm, mode: Mode) -> Result<Outcome> {
        let policy = Policy {
            mode: ModeChoice::Always(mode.into()),
            ..Policy::default()
        };
        Ok(self.set_by(vm, &policy)?)
    }

    /// Restores the clocks of the stopped `vm` by `policy`.
    ///
    /// # Errors
    ///
    /// Those of [`kvm_clock::SavedClocks::restore`].
    pub fn set_by(
        &self,
        vm: &Vm,
        policy: &Policy,
    ) -> std::result::Result<Outcome, kvm_clock::Error> {
        with_vcpus(vm, |vcpus| self.0.restore(vm.fd(), vcpus, policy))
    }
}

/// Calls `call` with the vCPUs of the stopped `vm`.
pub fn with_vcpus<T>(vm: &Vm, call: impl FnOnce(&[kvm_clock::Vcpu<'_, Stopped<'_>>]) -> T) -> T {
    let fds: Vec<_> = vm.vcpus().iter().map(|vcpu| vcpu.fd()).collect();
    call(&kvm_clock::Vcpu::numbered(&fds))
}
