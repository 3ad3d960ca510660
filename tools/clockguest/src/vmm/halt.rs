// SPDX-License-Identifier: GPL-2.0-only

//! vCPUs that execute HLT in real mode, and nothing else.

use super::{
    error::{Context, Error, Result},
    memory::GuestMemory,
    vm::set_msr,
};
use crate::guest::{code::MSR_KVM_SYSTEM_TIME_NEW, layout::PAGE_SIZE};
use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd};

/// `hlt`, and a jump back to it.
pub const CODE: [u8; 3] = [0xf4, 0xeb, 0xfd];
/// Guest physical address of the code.
const CODE_AT: u64 = 0;
/// Guest physical address of the pvclock records, one after the other.
const RECORDS_AT: u64 = 0x1000;
const RECORD_SIZE: u64 = 32;

pub(super) fn memory(nr_vcpus: u32) -> Result<GuestMemory> {
    let records = u64::from(nr_vcpus) * RECORD_SIZE;
    let memory = GuestMemory::new(RECORDS_AT + records.next_multiple_of(PAGE_SIZE))?;
    memory.write(CODE_AT, &CODE);
    Ok(memory)
}

pub(super) fn enter(fd: &VcpuFd, index: usize) -> Result<()> {
    start_at(fd, CODE_AT)?;
    let record = RECORDS_AT + index as u64 * RECORD_SIZE;
    set_msr(fd, MSR_KVM_SYSTEM_TIME_NEW, record | 1)
}

/// Puts a vCPU that is in real mode at [`CODE`] at guest physical address `gpa`, below 64 KiB.
///
/// # Errors
///
/// Those of the ioctls.
pub fn start_at(fd: &VcpuFd, gpa: u64) -> Result<()> {
    let mut sregs = fd.get_sregs().context("KVM_GET_SREGS")?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    fd.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let regs = kvm_regs {
        rip: gpa,
        // Bit 1 is always set.
        rflags: 2,
        ..kvm_regs::default()
    };
    fd.set_regs(&regs).context("KVM_SET_REGS")
}

/// Runs a vCPU until it halts.
///
/// # Errors
///
/// That of `KVM_RUN`; [`Error::NoHalt`] for any other exit.
pub fn run(fd: &mut VcpuFd) -> Result<()> {
    match fd.run().context("KVM_RUN")? {
        VcpuExit::Hlt => Ok(()),
        exit => Err(Error::NoHalt(format!("{exit:?}"))),
    }
}
