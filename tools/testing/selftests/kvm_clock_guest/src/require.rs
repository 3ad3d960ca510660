// SPDX-License-Identifier: GPL-2.0-only

//! What a test program needs of the host; it exits with status 4 if the host lacks that.

use crate::{ktap::Skip, note};
use anyhow::Result;
use clockguest::host::open_kvm;
use kvm_ioctls::{Cap, Kvm};
use pvclock::abi;

/// Capabilities that the tests exercise.
const NEEDED: u32 =
    abi::CAP_EXACT | abi::CAP_ADVANCE | abi::CAP_FREEZE | abi::CAP_FALLBACK | abi::CAP_VCPU;

/// KVM with the CPU vendor's module; [`Skip`] without.
pub fn vendor_kvm() -> Result<Kvm> {
    open_kvm(false).map_err(|error| Skip(error.to_string()).into())
}

/// KVM with the module under test; [`Skip`] without.
pub fn clock_guest() -> Result<Kvm> {
    let kvm = vendor_kvm()?;
    let cap = capability(&kvm);
    if cap & NEEDED != NEEDED {
        return Err(Skip(format!(
            "KVM_CAP_VM_CLOCK_GUEST is {cap:#x}, these tests need {NEEDED:#x}: load kvm_clock_guest"
        ))
        .into());
    }
    Ok(kvm)
}

/// As [`clock_guest`], for programs that omit cases if [`host_scales`] returns false.
pub fn clock_guest_of_any_rate() -> Result<Kvm> {
    let kvm = clock_guest()?;
    if !scales(&kvm) {
        note!("this host does not scale a guest's TSC: cases at other rates are omitted");
    }
    Ok(kvm)
}

/// `KVM_CAP_VM_CLOCK_GUEST`: `CAP_*` bits, 0 without the module.
pub fn capability(kvm: &Kvm) -> u32 {
    // A negative answer is an errno.
    u32::try_from(kvm.check_extension_raw(abi::KVM_CAP_VM_CLOCK_GUEST.into())).unwrap_or(0)
}

/// Whether guests may have a TSC rate other than the host's.
pub fn scales(kvm: &Kvm) -> bool {
    kvm.check_extension(Cap::TscControl)
}

/// The same before the requirements are checked.
pub fn host_scales() -> bool {
    vendor_kvm().is_ok_and(|kvm| scales(&kvm))
}
