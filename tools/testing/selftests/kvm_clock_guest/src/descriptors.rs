// SPDX-License-Identifier: GPL-2.0-only

//! Second descriptors of a VM and its vCPUs: [`Vm`] lends those of vCPUs only while they are
//! stopped.

use anyhow::{Context, Result};
use clockguest::vmm::Vm;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};

/// A second descriptor of each vCPU, in order of index. The vCPUs are stopped.
pub fn of_vcpus(vm: &Vm) -> Result<Vec<VcpuFd>> {
    let vcpus = vm.vcpus().iter().map(|vcpu| {
        let fd = vcpu.fd();
        // SAFETY: `fd` is locked, and open, until the end of this closure.
        let copy = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }.try_clone_to_owned()?;
        // SAFETY: It is a descriptor of a vCPU of this VM, and nothing else owns it.
        unsafe { vm.fd().create_vcpu_from_rawfd(copy.into_raw_fd()) }.context("mmap of kvm_run")
    });
    vcpus.collect()
}

/// A second descriptor of the VM.
pub fn of_vm(kvm: &Kvm, vm: &VmFd) -> Result<VmFd> {
    // SAFETY: `vm` is open until this function returns.
    let copy = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }.try_clone_to_owned()?;
    // SAFETY: It is a descriptor of a VM, and nothing else owns it.
    unsafe { kvm.create_vmfd_from_rawfd(copy.into_raw_fd()) }.context("a second VM descriptor")
}
