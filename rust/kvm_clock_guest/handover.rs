// SPDX-License-Identifier: GPL-2.0-only

//! The clocks of a VM for callers in the kernel: as bytes that outlive it, see
//! [`pvclock::handover`](crate::pvclock::handover).

use crate::{
    get,
    kvm::Vm,
    pvclock::{
        abi,
        handover::{
            self,
            Handover,
            HandoverError, //
        },
        request::SetRequest, //
    },
    set,
    vcpus::{
        Few,
        Vcpus, //
    }, //
};
use kernel::prelude::*;

/// Writes the clocks of `vm` to the start of `out`, as `KVM_GET_VM_CLOCK_GUEST` reads them. Returns
/// the bytes that they take; if `out` has fewer, nothing is written.
///
/// # Errors
///
/// Those of [`get::read`], `EINTR`, `ENOMEM`.
pub(crate) fn save(vm: &Vm, out: &mut [u8]) -> Result<u32> {
    let guard = vm.lock()?;
    let nr_vcpus = guard.nr_vcpus();
    let size = handover::size(nr_vcpus).map_err(errno)?;
    // CAST: `usize` has 64 bits.
    if out.len() < size as usize {
        return Ok(size);
    }
    let mut few = Few::default();
    let mut vcpus = Vcpus::new(&mut few, nr_vcpus)?;
    let clock = get::read(guard, &mut vcpus, false)?;
    handover::write(&clock, &vcpus, out).map_err(errno)
}

/// Makes what [`save`] wrote the clocks of `vm`, as `KVM_SET_VM_CLOCK_GUEST` does in mode exact:
/// memory that outlived the kernel proves that the host TSC is the same counter.
///
/// # Errors
///
/// `EBADMSG` if `from` is damaged, `EOPNOTSUPP` if it has another version, `EINVAL` if it is for
/// another VM, those of [`set::write`], `ENOMEM`. Nothing is changed then.
pub(crate) fn restore(vm: &Vm, from: &[u8]) -> Result {
    let saved = Handover::new(from).map_err(errno)?;
    let mut header = abi::VmClockGuest {
        mode: abi::MODE_EXACT,
        ..*saved.clock()
    };
    let request = SetRequest::new(header).map_err(|_| EINVAL)?;
    set::check_nr_vcpus(vm, &header)?;
    let mut few = Few::default();
    let mut entries = Vcpus::new(&mut few, header.nr_vcpus)?;
    for (entry, vcpu) in entries.iter_mut().zip(saved.vcpus()) {
        *entry = vcpu;
    }
    set::write(vm, &request, &mut header, &mut entries, |_| Ok(()))
}

fn errno(error: HandoverError) -> Error {
    match error {
        HandoverError::Version(_) => EOPNOTSUPP,
        HandoverError::Magic
        | HandoverError::Truncated
        | HandoverError::Corrupted
        | HandoverError::Inconsistent => EBADMSG,
    }
}
