// SPDX-License-Identifier: GPL-2.0-only

//! The ways to save and restore the clocks of a VM.

pub mod atomic;
pub mod legacy_msr;
pub mod legacy_offset;
pub mod luo_msr;

use crate::{
    host::Unavailable,
    vmm::{Result, Vm},
};
use kvm_clock::clock_guest_cap;
use pvclock::abi;
use serde::{Deserialize, Serialize};

/// The clocks of a stopped VM, saved with one method.
pub trait SavedClocks {
    /// Saves the clocks of `vm`; call it right after the vCPUs stop.
    ///
    /// # Errors
    ///
    /// Those of the method's ioctls.
    fn save(vm: &Vm) -> Result<Self>
    where
        Self: Sized;

    /// Restores the clocks in a new VM with loaded memory and registers; call it right before the
    /// vCPUs run.
    ///
    /// # Errors
    ///
    /// Those of the method's ioctls.
    fn restore(&self, vm: &Vm) -> Result<()>;

    /// Restores the clocks in the VM that they were saved from; call it right before the vCPUs run.
    ///
    /// # Errors
    ///
    /// Those of the method's ioctls.
    fn resume(&self, vm: &Vm) -> Result<()> {
        self.restore(vm)
    }
}

/// A method.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// KVM_GET_VM_CLOCK_GUEST and KVM_SET_VM_CLOCK_GUEST in mode exact; needs kvm_clock_guest
    #[default]
    Atomic,
    /// QEMU's procedure: MSR_IA32_TSC per vCPU, the values of KVM_GET_CLOCK and KVM_SET_CLOCK
    LegacyMsr,
    /// The kernel's documented procedure: KVM_VCPU_TSC_OFFSET, KVM_GET_CLOCK with host TSC and
    /// REALTIME
    LegacyOffset,
    /// As public patches that preserve VMs over a live update: MSR_IA32_TSC and KVM_GET_CLOCK vCPU
    /// by vCPU, KVM_SET_CLOCK for the first
    LuoMsr,
}

/// The mode of KVM_SET_VM_CLOCK_GUEST.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Same host TSC, perhaps another kernel: restore everything bit for bit
    #[default]
    Exact,
    /// Another host: advance the guest's TSC by the elapsed TAI
    Advance,
    /// Hide the pause: continue the guest's TSC from its saved value
    Freeze,
}

impl Mode {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        kvm_clock::Mode::from(self).name()
    }
}

impl From<Mode> for kvm_clock::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Exact => Self::Exact,
            Mode::Advance => Self::Advance,
            Mode::Freeze => Self::Freeze,
        }
    }
}

impl From<kvm_clock::Mode> for Mode {
    fn from(mode: kvm_clock::Mode) -> Self {
        match mode {
            kvm_clock::Mode::Exact => Self::Exact,
            kvm_clock::Mode::Advance => Self::Advance,
            kvm_clock::Mode::Freeze => Self::Freeze,
        }
    }
}

/// Clocks saved with any method.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Saved {
    /// With [`Method::Atomic`].
    Atomic(atomic::Saved),
    /// With [`Method::LegacyMsr`].
    LegacyMsr(legacy_msr::Saved),
    /// With [`Method::LegacyOffset`].
    LegacyOffset(legacy_offset::Saved),
    /// With [`Method::LuoMsr`].
    LuoMsr(luo_msr::Saved),
}

impl Method {
    /// The methods of the demo, in the order of its columns.
    pub const ALL: [Self; 3] = [Self::Atomic, Self::LegacyOffset, Self::LegacyMsr];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Atomic => "atomic",
            Self::LegacyMsr => "legacy-msr",
            Self::LegacyOffset => "legacy-offset",
            Self::LuoMsr => "luo-msr",
        }
    }

    /// Whether any clock error of this method is a failure.
    pub fn is_exact(self) -> bool {
        self == Self::Atomic
    }

    /// Checks that the host supports the method.
    ///
    /// # Errors
    ///
    /// [`Unavailable::NoClockGuest`].
    pub fn check(self, vm: &Vm) -> std::result::Result<(), Unavailable> {
        let cap = clock_guest_cap(vm.fd());
        if self == Self::Atomic && cap & abi::CAP_EXACT == 0 {
            return Err(Unavailable::NoClockGuest(cap));
        }
        Ok(())
    }

    /// Saves the clocks of the stopped `vm`.
    ///
    /// # Errors
    ///
    /// Those of the method's ioctls.
    pub fn save(self, vm: &Vm) -> Result<Saved> {
        Ok(match self {
            Self::Atomic => Saved::Atomic(SavedClocks::save(vm)?),
            Self::LegacyMsr => Saved::LegacyMsr(SavedClocks::save(vm)?),
            Self::LegacyOffset => Saved::LegacyOffset(SavedClocks::save(vm)?),
            Self::LuoMsr => Saved::LuoMsr(SavedClocks::save(vm)?),
        })
    }
}

impl Saved {
    /// The precision that the kernel reports, ns; 0 if exact or unknown.
    pub fn precision_ns(&self) -> u32 {
        match self {
            Self::Atomic(saved) => saved.precision_ns(),
            Self::LegacyMsr(_) | Self::LegacyOffset(_) | Self::LuoMsr(_) => 0,
        }
    }

    /// As [`SavedClocks::restore`].
    ///
    /// # Errors
    ///
    /// Those of the method's ioctls.
    pub fn restore(&self, vm: &Vm) -> Result<()> {
        self.clocks().restore(vm)
    }

    /// As [`SavedClocks::resume`].
    ///
    /// # Errors
    ///
    /// Those of the method's ioctls.
    pub fn resume(&self, vm: &Vm) -> Result<()> {
        self.clocks().resume(vm)
    }

    fn clocks(&self) -> &dyn SavedClocks {
        match self {
            Self::Atomic(saved) => saved,
            Self::LegacyMsr(saved) => saved,
            Self::LegacyOffset(saved) => saved,
            Self::LuoMsr(saved) => saved,
        }
    }
}
