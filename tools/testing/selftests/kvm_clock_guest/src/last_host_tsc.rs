// SPDX-License-Identifier: GPL-2.0-only

//! What KVM believes of the host's TSC when a vCPU was last on a CPU; needs root and
//! `modules/set_last_host_tsc.c`.

use crate::host_module;
use anyhow::{bail, Context, Result};
use clockguest::vmm::Vm;
use std::{ops::Range, os::fd::AsRawFd};

/// Makes it `ticks` for these `vcpus` of the stopped `vm`. Every ioctl of a vCPU makes it the present
/// TSC again.
///
/// # Errors
///
/// If the module cannot do that.
pub fn set(vm: &Vm, vcpus: Range<usize>, ticks: u64) -> Result<()> {
    let module = host_module::open("set_last_host_tsc")?;
    for vcpu in &vm.vcpus()[vcpus] {
        let fd = vcpu.fd().as_raw_fd();
        match host_module::load(&module, &format!("vcpu_fd={fd} ticks={ticks}")) {
            Err(e) if e.raw_os_error() == Some(libc::ECANCELED) => (),
            Err(e) => return Err(e).context("set_last_host_tsc"),
            Ok(()) => bail!("set_last_host_tsc stays loaded"),
        }
    }
    Ok(())
}
