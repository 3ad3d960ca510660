// SPDX-License-Identifier: GPL-2.0-only

//! vCPUs in 64-bit mode, with one large page that maps the first 2 MiB of memory.

use super::{
    error::{Context, Result},
    memory::GuestMemory,
};
use crate::guest::{code, layout};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

/// CR0: protection, numeric errors, paging.
pub const CR0_PE_MP_ET_NE_PG: u64 = 0x8000_0033;
/// CR4: PAE.
pub const CR4_PAE: u64 = 0x20;
/// EFER: long mode enabled and active.
pub const EFER_LME_LMA: u64 = 0x500;
/// Bit 1 is always set. Interrupts are enabled, although the guest gets none: in Bochs 2.7 the
/// host's interrupts do not interrupt a guest that has them disabled.
const RFLAGS: u64 = 0x202;

/// Writes the page tables.
pub(super) fn write_page_tables(memory: &GuestMemory) {
    for (gpa, entry) in layout::PAGE_TABLES {
        memory.write(gpa, &entry.to_le_bytes());
    }
}

/// Writes the page tables and the code of the built-in guest.
pub(super) fn write_reader(memory: &GuestMemory) {
    write_page_tables(memory);
    memory.write(layout::CODE, code::bytes());
}

/// Puts a vCPU at the first instruction of the built-in guest.
pub(super) fn enter_reader(fd: &VcpuFd, index: usize) -> Result<()> {
    let regs = kvm_regs {
        rip: layout::CODE,
        rsp: layout::sample_area(index) + layout::PAGE_SIZE,
        rdi: layout::sample_area(index),
        rsi: layout::pvclock_page(index),
        r15: layout::SHARED,
        rflags: RFLAGS,
        ..kvm_regs::default()
    };
    enter(fd, 0, &regs, |_| ())
}

/// Puts a vCPU into long mode with `regs`; `change` completes the special registers.
pub(super) fn enter(
    fd: &VcpuFd,
    code_selector: u16,
    regs: &kvm_regs,
    change: impl FnOnce(&mut kvm_sregs),
) -> Result<()> {
    let segment = |selector: u16, type_: u8, long: u8| kvm_segment {
        selector,
        limit: u32::MAX,
        type_,
        present: 1,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..kvm_segment::default()
    };
    // Execute/read/accessed, and read/write/accessed.
    let (code, data) = (segment(code_selector, 11, 1), segment(0, 3, 0));

    let mut sregs = fd.get_sregs().context("KVM_GET_SREGS")?;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs) = (data, data, data);
    (sregs.gs, sregs.ss) = (data, data);
    sregs.cr0 = CR0_PE_MP_ET_NE_PG;
    sregs.cr3 = layout::PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    change(&mut sregs);
    fd.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    fd.set_regs(regs).context("KVM_SET_REGS")
}
