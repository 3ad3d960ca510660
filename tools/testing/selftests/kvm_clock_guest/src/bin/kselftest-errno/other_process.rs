// SPDX-License-Identifier: GPL-2.0-only

//! `EIO`: the caller is not the process that created the VM, as for any ioctl of KVM.

use crate::Host;
use anyhow::{ensure, Result};
use kvm_clock_guest_selftests::{
    fixture::{get, unlike},
    ktap::Case,
    payload::Payload,
    refusal::ensure_changes_nothing,
};
use pvclock::abi::MODE_EXACT;
use std::io;
use vmm_sys_util::errno;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("EIO GET: by another process", |host: &Host| {
            for vm in &host.vms {
                let payload = Payload::new(&get(vm)?)?;
                ensure_changes_nothing(vm, |fd| ensure_eio(|| payload.get(fd)))?;
            }
            Ok(())
        }),
        Case::new("EIO SET: by another process", |host: &Host| {
            for vm in &host.vms {
                let mut clock = unlike(get(vm)?);
                clock.header.mode = MODE_EXACT;
                let payload = Payload::new(&clock)?;
                ensure_changes_nothing(vm, |fd| ensure_eio(|| payload.set(fd)))?;
            }
            Ok(())
        }),
    ]
}

/// Fails unless `call`, made by a child process, fails with `EIO`.
fn ensure_eio(call: impl FnOnce() -> errno::Result<()>) -> Result<()> {
    // SAFETY: The child has no thread but this one; it makes one system call and exits, and so
    // needs nothing that another thread may have held.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = call().map_or_else(|error| error.errno(), |()| 0);
        // SAFETY: No destructor and no exit handler runs.
        unsafe { libc::_exit(status) }
    }
    if child < 0 {
        return Err(io::Error::last_os_error().into());
    }
    let mut status = 0;
    // SAFETY: `status` may be written.
    if unsafe { libc::waitpid(child, &mut status, 0) } != child {
        return Err(io::Error::last_os_error().into());
    }
    ensure!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == libc::EIO,
        "the child's status is {status:#x}, expected an exit with {}",
        libc::EIO
    );
    Ok(())
}
