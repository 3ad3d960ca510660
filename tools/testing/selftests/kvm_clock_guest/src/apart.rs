// SPDX-License-Identifier: GPL-2.0-only

//! A VM whose vCPUs' TSCs differ, as a guest can make them.

use crate::{
    ensure_eq,
    fixture::{pinned, run_a_little},
};
use anyhow::Result;
use clockguest::vmm::Vm;
use kvm_ioctls::Kvm;

/// How far each vCPU's TSC is ahead of the first one's, ticks.
pub const AHEAD: [i64; 4] = [0, 1, -1_000_000_007, 1 << 40];

/// A stopped VM with a pinned record whose vCPUs are [`AHEAD`] of the first.
pub fn apart(kvm: &Kvm) -> Result<Vm> {
    // CAST: A few.
    let vm = pinned(kvm, AHEAD.len() as u32)?;
    pull_apart(&vm, &AHEAD)?;
    ensure_apart(&vm)?;
    Ok(vm)
}

/// Moves the TSC of each vCPU of the stopped `vm` `ahead` (ticks) of the first one's.
pub fn pull_apart(vm: &Vm, ahead: &[i64]) -> Result<()> {
    let first = vm.tsc_offsets()?[0];
    for (index, &ahead) in ahead.iter().enumerate() {
        // CAST: mod 2^64.
        vm.set_tsc_offset(index, first.wrapping_add(ahead as u64))?;
    }
    run_a_little(vm).map(drop)
}

/// Fails unless the vCPUs of the stopped `vm` are [`AHEAD`] of the first.
pub fn ensure_apart(vm: &Vm) -> Result<()> {
    let offsets = vm.tsc_offsets()?;
    // CAST: the signed differences of values mod 2^64.
    let ahead = offsets.iter().map(|offset| offset.since(offsets[0]) as i64);
    let ahead: Vec<_> = ahead.collect();
    ensure_eq!(ahead, AHEAD, "vCPUs' TSCs ahead of the first, ticks");
    Ok(())
}
