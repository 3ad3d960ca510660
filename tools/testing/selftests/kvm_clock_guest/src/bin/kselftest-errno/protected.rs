// SPDX-License-Identifier: GPL-2.0-only

//! `EOPNOTSUPP` for a guest whose TSC is out of the host's hands.
//!
//! There is no SEV-SNP and no TDX here. KVM is told by `modules/protect_guest_tsc.c` that the guest
//! is one of those; what it does then is its own.

use crate::{Host, VCPUS};
use anyhow::{bail, Context, Result};
use clockguest::vmm::Vm;
use kvm_clock::{get_clock_guest, get_vm_clock_guest, set_clock_guest, set_vm_clock_guest};
use kvm_clock_guest_selftests::{
    clocks::Clocks,
    fixture::{get, unlike},
    host_module,
    ktap::Case,
    refusal::ensure_errno,
};
use pvclock::abi::MODE_EXACT;
use std::os::fd::AsRawFd;

pub(crate) fn cases() -> Vec<Case<Host>> {
    // One vCPU is enough, whichever.
    (0..VCPUS as usize)
        .map(|index| {
            Case::new(
                format!(
                    "EOPNOTSUPP GET, SET, vCPU GET, vCPU SET: TSC of vCPU {index} is protected"
                ),
                move |host| refuses(host, index),
            )
        })
        .collect()
}

fn refuses(host: &Host, index: usize) -> Result<()> {
    for vm in &host.vms {
        let mut clock = unlike(get(vm)?);
        clock.header.mode = MODE_EXACT;
        let record = clock.header.record;
        let before = Clocks::of(vm)?;

        protect(vm, index, true)?;
        let vcpu = vm.vcpus()[0].fd();
        let refused = [
            ("GET", get_vm_clock_guest(vm.fd()).map(drop)),
            ("SET", set_vm_clock_guest(vm.fd(), &mut clock)),
            ("vCPU GET", get_clock_guest(&vcpu).map(drop)),
            ("vCPU SET", set_clock_guest(&vcpu, &record)),
        ];
        drop(vcpu);
        protect(vm, index, false)?;

        for (call, result) in refused {
            ensure_errno(libc::EOPNOTSUPP, result).context(call)?;
        }
        before.ensure_unchanged(vm)?;
    }
    Ok(())
}

fn protect(vm: &Vm, index: usize, protected: bool) -> Result<()> {
    let module = host_module::open("protect_guest_tsc")?;
    let fd = vm.vcpus()[index].fd().as_raw_fd();
    match host_module::load(&module, &format!("vcpu_fd={fd} protected={protected}")) {
        // It has done its work.
        Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => Ok(()),
        Err(error) => Err(error).context("protect_guest_tsc.ko"),
        Ok(()) => bail!("protect_guest_tsc.ko stays"),
    }
}
