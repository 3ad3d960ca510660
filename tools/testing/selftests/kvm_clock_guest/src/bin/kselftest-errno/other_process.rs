// SPDX-License-Identifier: GPL-2.0-only

//! `EIO`, as from any ioctl of KVM: the caller is not the process that created the VM.

use crate::Host;
use kvm_clock_guest_selftests::{payload::Payload, prelude::*};
use std::io;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        Case::new("EIO GET: from another process", |host: &Host| {
            for vm in &host.vms {
                let payload = Payload::new(&get(vm)?)?;
                ensure_changes_nothing(vm, |fd| ensure_eio(|| payload.get(fd)))?;
            }
            Ok(())
        }),
        Case::new("EIO SET: from another process", |host: &Host| {
            for vm in &host.vms {
                let clock = request(vm, MODE_EXACT)?;
                let payload = Payload::new(&clock)?;
                ensure_changes_nothing(vm, |fd| ensure_eio(|| payload.set(fd)))?;
            }
            Ok(())
        }),
    ]
}

/// Fails unless `call`, made by a child process, fails with `EIO`.
fn ensure_eio(call: impl FnOnce() -> kvm_clock::Result<()>) -> Result<()> {
    // SAFETY: The child only has this thread; it makes one system call and exits, and so needs
    // nothing that another thread may have locked.
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
