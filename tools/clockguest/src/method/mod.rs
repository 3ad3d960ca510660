// SPDX-License-Identifier: GPL-2.0-only

//! The ways to save and restore the clocks of a VM.

pub mod atomic;
pub mod convert;
pub mod legacy_msr;
pub mod legacy_offset;

use crate::{
    host::Unavailable,
    vmm::{Result, Vm},
};
use kvm_clock::clock_guest_cap;
use pvclock::abi;
use serde::{Deserialize, Serialize};

/// The clocks of a stopped VM as one method saves them.
pub trait SavedClocks: Sized {
    /// Saves the clocks of `vm`, right after its vCPUs stopped.
    ///
    /// # Errors
    ///
    /// Those of the method's ioctls.
    fn save(vm: &Vm) -> Result<Self>;

    /// Restores them in a new VM, whose memory and registers are there already, right before its
    /// vCPUs run.
    ///
    /// # Errors
    ///
    /// Those of the method's ioctls.
    fn restore(&self, vm: &Vm) -> Result<()>;

    /// Restores them in the VM they were saved from, right before its vCPUs go on.
    ///
    /// # Errors
    ///
    /// Those of the method's ioctls.
    fn resume(&self, vm: &Vm) -> Result<()> {
        self.restore(vm)
    }
}

/// A method by name.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// KVM_GET_VM_CLOCK_GUEST and KVM_SET_VM_CLOCK_GUEST, mode exact; needs kvm_clock_guest
    Atomic,
    /// What QEMU does: MSR_IA32_TSC per vCPU, KVM_GET_CLOCK and KVM_SET_CLOCK by value
    LegacyMsr,
    /// What the kernel documents: KVM_VCPU_TSC_OFFSET, KVM_GET_CLOCK with host TSC and REALTIME
    LegacyOffset,
}

/// How [`Method::Atomic`] carries the clocks over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Same host TSC, though perhaps another kernel: everything comes back bit for bit
    Exact,
    /// Another host: the guest's TSC goes on by the TAI that passed
    Advance,
    /// Hide the pause: the guest's TSC goes on from where it was
    Freeze,
}

impl Mode {
    /// `MODE_*` of the ioctl.
    pub fn to_abi(self) -> u32 {
        match self {
            Self::Exact => abi::MODE_EXACT,
            Self::Advance => abi::MODE_ADVANCE,
            Self::Freeze => abi::MODE_FREEZE,
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Advance => "advance",
            Self::Freeze => "freeze",
        }
    }
}

/// Clocks saved by any of the methods.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Saved {
    /// By [`Method::Atomic`].
    Atomic(atomic::Saved),
    /// By [`Method::LegacyMsr`].
    LegacyMsr(legacy_msr::Saved),
    /// By [`Method::LegacyOffset`].
    LegacyOffset(legacy_offset::Saved),
}

impl Method {
    /// All of them, in the order of the demo's columns.
    pub const ALL: [Self; 3] = [Self::Atomic, Self::LegacyOffset, Self::LegacyMsr];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Atomic => "atomic",
            Self::LegacyMsr => "legacy-msr",
            Self::LegacyOffset => "legacy-offset",
        }
    }

    /// Whether the method claims to lose nothing, so that any error is a failure.
    pub fn is_exact(self) -> bool {
        self == Self::Atomic
    }

    /// Refuses a method that this host cannot do.
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
        })
    }
}

impl Saved {
    /// What is said of their precision, ns; 0 if nothing is.
    pub fn precision_ns(&self) -> u32 {
        match self {
            Self::Atomic(saved) => saved.precision_ns(),
            Self::LegacyMsr(_) | Self::LegacyOffset(_) => 0,
        }
    }

    /// As [`SavedClocks::restore`].
    ///
    /// # Errors
    ///
    /// Those of the method's ioctls.
    pub fn restore(&self, vm: &Vm) -> Result<()> {
        match self {
            Self::Atomic(saved) => saved.restore(vm),
            Self::LegacyMsr(saved) => saved.restore(vm),
            Self::LegacyOffset(saved) => saved.restore(vm),
        }
    }

    /// As [`SavedClocks::resume`].
    ///
    /// # Errors
    ///
    /// Those of the method's ioctls.
    pub fn resume(&self, vm: &Vm) -> Result<()> {
        match self {
            Self::Atomic(saved) => saved.resume(vm),
            Self::LegacyMsr(saved) => saved.resume(vm),
            Self::LegacyOffset(saved) => saved.resume(vm),
        }
    }
}
