// SPDX-License-Identifier: GPL-2.0-only

//! What a test program needs of the host; what is missing makes it exit with status 4.

use crate::ktap::Skip;
use anyhow::Result;
use clockguest::host::open_kvm;
use kvm_ioctls::{Cap, Kvm};
use pvclock::abi;

/// All that these tests exercise.
const NEEDED: u32 =
    abi::CAP_EXACT | abi::CAP_ADVANCE | abi::CAP_FREEZE | abi::CAP_FALLBACK | abi::CAP_VCPU;

/// KVM by the CPU vendor's module.
///
/// # Errors
///
/// [`Skip`].
pub fn vendor_kvm() -> Result<Kvm> {
    open_kvm(false).map_err(|error| Skip(error.to_string()).into())
}

/// KVM whose guest clock ioctls are served.
///
/// # Errors
///
/// [`Skip`].
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

/// `KVM_CAP_VM_CLOCK_GUEST`: `CAP_*` bits, 0 without the module.
pub fn capability(kvm: &Kvm) -> u32 {
    // A negative answer is an errno.
    u32::try_from(kvm.check_extension_raw(abi::KVM_CAP_VM_CLOCK_GUEST.into())).unwrap_or(0)
}

/// Whether guests may have a TSC rate other than the host's.
pub fn scales(kvm: &Kvm) -> bool {
    kvm.check_extension(Cap::TscControl)
}
