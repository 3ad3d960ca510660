// SPDX-License-Identifier: GPL-2.0-only

//! Calls that must fail with an errno, and change nothing.

use crate::clocks::{versions, Clocks};
use anyhow::{bail, ensure, Result};
use clockguest::vmm::Vm;
use kvm_ioctls::VmFd;
use pvclock::abi::PVCLOCK_TSC_STABLE;
use std::io;

/// Fails unless `result` is `errno`.
pub fn ensure_errno<E: Into<io::Error>>(errno: i32, result: Result<(), E>) -> Result<()> {
    let expected = io::Error::from_raw_os_error(errno);
    match result.map_err(Into::into) {
        Ok(()) => bail!("the call succeeded, expected {expected}"),
        Err(e) if e.raw_os_error() != Some(errno) => {
            bail!("the call failed with {e}, expected {expected}")
        }
        Err(_) => Ok(()),
    }
}

/// Fails unless `call`, made while `vm` is stopped, fails with `errno`, changes no clock and causes
/// no clock update.
pub fn ensure_refused<E: Into<io::Error>>(
    vm: &Vm,
    errno: i32,
    call: impl FnOnce(&VmFd) -> Result<(), E>,
) -> Result<()> {
    ensure_changes_nothing(vm, |fd| ensure_errno(errno, call(fd)))
}

/// Fails unless `call`, made while `vm` is stopped, succeeds, changes no clock and causes no clock
/// update.
pub fn ensure_changes_nothing(vm: &Vm, call: impl FnOnce(&VmFd) -> Result<()>) -> Result<()> {
    let (before, version) = (Clocks::of(vm)?, versions(vm));
    call(vm.fd())?;
    before.ensure_unchanged(vm)?;
    // Without a master clock, KVM updates a vCPU's record whenever the vCPU changes its CPU.
    let now = versions(vm);
    ensure!(
        before.record.flags & PVCLOCK_TSC_STABLE == 0 || now == version,
        "KVM rewrote the records: versions were {version:?}, are {now:?}"
    );
    Ok(())
}
