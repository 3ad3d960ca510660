// SPDX-License-Identifier: GPL-2.0-only

//! A call that must fail with one errno, and leave everything as it was.

use crate::clocks::Clocks;
use anyhow::{
    bail,
    Result, //
};
use clockguest::vmm::Vm;
use kvm_ioctls::VmFd;
use std::io;
use vmm_sys_util::errno;

/// Fails unless `call` fails with `errno`.
///
/// # Errors
///
/// Says what happened instead.
pub fn ensure_errno(errno: i32, result: errno::Result<()>) -> Result<()> {
    let expected = io::Error::from_raw_os_error(errno);
    match result {
        Ok(()) => bail!("the call succeeded, expected {expected}"),
        Err(e) if e.errno() != errno => bail!("the call failed with {e}, expected {expected}"),
        Err(_) => Ok(()),
    }
}

/// Fails unless `call`, made while `vm` is stopped, fails with `errno` and changes no clock of it.
///
/// # Errors
///
/// Says what happened instead.
pub fn ensure_refused(
    vm: &Vm,
    errno: i32,
    call: impl FnOnce(&VmFd) -> errno::Result<()>,
) -> Result<()> {
    let before = Clocks::of(vm)?;
    ensure_errno(errno, call(vm.fd()))?;
    before.ensure_unchanged(vm)
}
