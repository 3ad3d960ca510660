// SPDX-License-Identifier: GPL-2.0-only

//! A VM whose vCPUs' TSCs differ, as a guest may have made them.

use crate::fixture::{pinned, run_a_little};
use anyhow::{ensure, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::set_tsc_offset;
use kvm_ioctls::Kvm;

/// How far each vCPU's TSC is ahead of the first one's, ticks.
pub const AHEAD: [i64; 4] = [0, 1, -1_000_000_007, 1 << 40];

/// A stopped VM with a pinned record whose vCPUs are [`AHEAD`] of the first.
///
/// # Errors
///
/// Those of the ioctls.
pub fn apart(kvm: &Kvm) -> Result<Vm> {
    // CAST: A few.
    let vm = pinned(kvm, AHEAD.len() as u32)?;
    let first = vm.tsc_offsets()?[0];
    for (vcpu, ahead) in vm.vcpus().iter().zip(AHEAD) {
        set_tsc_offset(&vcpu.fd(), first.wrapping_add_signed(ahead))
            .context("KVM_VCPU_TSC_OFFSET")?;
    }
    run_a_little(&vm)?;
    ensure_apart(&vm)?;
    Ok(vm)
}

/// Fails unless the vCPUs of the stopped `vm` are [`AHEAD`] of the first.
///
/// # Errors
///
/// Says how far they are; that of the ioctl.
pub fn ensure_apart(vm: &Vm) -> Result<()> {
    let offsets = vm.tsc_offsets()?;
    // CAST: the signed differences of values mod 2^64.
    let ahead = offsets
        .iter()
        .map(|offset| offset.wrapping_sub(offsets[0]) as i64);
    let ahead: Vec<_> = ahead.collect();
    ensure!(
        ahead == AHEAD,
        "vCPUs are {ahead:?} ticks ahead of the first, were {AHEAD:?}"
    );
    Ok(())
}
