// SPDX-License-Identifier: GPL-2.0-only

//! Further descriptors of a VM and of its vCPUs: [`Vm`] lends a vCPU's own only while it is
//! stopped.

use anyhow::{Context, Result};
use clockguest::vmm::Vm;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};

/// One of each vCPU, in order of index. The vCPUs are stopped.
///
/// # Errors
///
/// Those of `dup()` and `mmap()`.
pub fn of_vcpus(vm: &Vm) -> Result<Vec<VcpuFd>> {
    let vcpus = vm.vcpus().iter().map(|vcpu| {
        let fd = vcpu.fd();
        // SAFETY: `fd` is locked, and open, until the end of this closure.
        let copy = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }.try_clone_to_owned()?;
        // SAFETY: It is a descriptor of a vCPU of this VM, and nobody else's.
        unsafe { vm.fd().create_vcpu_from_rawfd(copy.into_raw_fd()) }.context("mmap of kvm_run")
    });
    vcpus.collect()
}

/// One of the VM.
///
/// # Errors
///
/// That of `dup()`.
pub fn of_vm(kvm: &Kvm, vm: &VmFd) -> Result<VmFd> {
    // SAFETY: `vm` is open until this function returns.
    let copy = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }.try_clone_to_owned()?;
    // SAFETY: It is a descriptor of a VM, and nobody else's.
    unsafe { kvm.create_vmfd_from_rawfd(copy.into_raw_fd()) }.context("a second VM descriptor")
}
