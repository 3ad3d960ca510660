// SPDX-License-Identifier: GPL-2.0-only

//! A guest that is a page of the caller's position-independent 64-bit instructions.
//!
//! ```text
//! 0x1000  PML4, 0x2000 PDPT, 0x3000 PD: one 2 MiB page at 0
//! 0x4000  code, at whose first byte every vCPU starts
//! 0x5000  GDT, 0x6000 IDT
//! 0x8000  per vCPU: a page whose address is in RDI, with the stack at its end
//! 0x100000 up to 0x200000: free
//! ```

use super::{
    error::{Context, Result},
    long_mode,
    memory::GuestMemory,
    vm::Vm,
};
use crate::guest::layout::{CODE, PAGE_SIZE};
use kvm_bindings::{kvm_dtable, kvm_mp_state, kvm_regs, KVM_MP_STATE_RUNNABLE};
use kvm_ioctls::VcpuFd;
use std::sync::atomic::{AtomicU64, Ordering};

const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const AREAS: u64 = 0x8000;
/// Guest physical address of 1 MiB for the guest's own structures.
pub const FREE: u64 = 0x10_0000;
const MEMORY: u64 = 2 << 20;

/// Selects 64-bit code: the GDT's second entry.
pub const CODE_SELECTOR: u16 = 8;
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
/// In an IDT entry: present, an interrupt gate.
const INTERRUPT_GATE: u64 = 0x8e00;
const IDT_ENTRY_SIZE: u64 = 16;
const VECTORS: u64 = 256;
/// `IA32_APIC_BASE`: the APIC is enabled, and accessed through MSRs.
const APIC_BASE_X2APIC: u64 = 0xc00;

/// Guest physical address of a vCPU's own page.
pub fn area(vcpu: usize) -> u64 {
    AREAS + vcpu as u64 * PAGE_SIZE
}

/// The word at `offset` of a vCPU's own page.
pub fn area_word(vm: &Vm, vcpu: usize, offset: usize) -> &AtomicU64 {
    vm.memory().word(area(vcpu) + offset as u64)
}

/// Makes the instruction at `offset` of the code the handler of interrupt `vector`.
pub fn handle_interrupt(vm: &Vm, vector: u8, offset: usize) {
    let handler = CODE + offset as u64;
    let low = handler & 0xffff | u64::from(CODE_SELECTOR) << 16 | INTERRUPT_GATE << 32;
    let gate = IDT + u64::from(vector) * IDT_ENTRY_SIZE;
    // The handler's address is below 2^16: its upper bits are 0.
    vm.memory().word(gate).store(low, Ordering::Relaxed);
}

/// Memory with `code`, which is at most a page.
pub(super) fn memory(code: &[u8], nr_vcpus: u32) -> Result<GuestMemory> {
    assert!(code.len() as u64 <= PAGE_SIZE, "{} bytes", code.len());
    assert!(area(nr_vcpus as usize) <= FREE, "{nr_vcpus} vCPUs");
    let memory = GuestMemory::new(MEMORY)?;
    long_mode::write_page_tables(&memory);
    memory.write(
        GDT + u64::from(CODE_SELECTOR),
        &CODE_DESCRIPTOR.to_le_bytes(),
    );
    memory.write(CODE, code);
    Ok(memory)
}

/// Puts a vCPU at the first instruction of the code.
pub(super) fn enter(fd: &VcpuFd, index: usize) -> Result<()> {
    let table = |base: u64, bytes: u64| kvm_dtable {
        base,
        // CAST: less than a page.
        limit: (bytes - 1) as u16,
        ..kvm_dtable::default()
    };
    let regs = kvm_regs {
        rip: CODE,
        rsp: area(index) + PAGE_SIZE,
        rdi: area(index),
        // Bit 1 is always set.
        rflags: 2,
        ..kvm_regs::default()
    };
    long_mode::enter(fd, CODE_SELECTOR, &regs, |sregs| {
        sregs.gdt = table(GDT, u64::from(CODE_SELECTOR) + 8);
        sregs.idt = table(IDT, VECTORS * IDT_ENTRY_SIZE);
        sregs.apic_base |= APIC_BASE_X2APIC;
    })?;
    // All vCPUs but the first would wait for a SIPI.
    let runnable = kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    };
    fd.set_mp_state(runnable).context("KVM_SET_MP_STATE")
}
