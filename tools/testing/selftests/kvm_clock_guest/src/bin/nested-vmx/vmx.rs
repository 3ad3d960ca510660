// SPDX-License-Identifier: GPL-2.0-only

//! The VMCS fields with which L1 runs L2; see Intel's manual, volume 3, appendix B.

use crate::guest::{l1_exit, l2_entry, Nested, CR4_VMXE};
use clockguest::{
    guest::layout::{PAGE_SIZE, PML4},
    vmm::{
        code_guest::{area, CODE_SELECTOR, FREE},
        long_mode::{CR0_PE_MP_ET_NE_PG, CR4_PAE},
    },
};
use kvm_clock_guest_selftests::{
    msr::{get_msr, set_msr},
    prelude::*,
};
use std::sync::atomic::Ordering;

/// `IA32_FEATURE_CONTROL`.
pub(crate) const MSR_FEATURE_CONTROL: u32 = 0x3a;
const FEATURE_CONTROL_LOCKED_VMXON: u64 = 0b101;
/// `IA32_VMX_BASIC`, whose lower half is the revision that regions begin with.
const MSR_VMX_BASIC: u32 = 0x480;
// The controls that must be 1, in the lower half.
const MSR_VMX_TRUE_PINBASED: u32 = 0x48d;
const MSR_VMX_TRUE_PROCBASED: u32 = 0x48e;
const MSR_VMX_TRUE_EXIT: u32 = 0x48f;
const MSR_VMX_TRUE_ENTRY: u32 = 0x490;

const PIN_PREEMPTION_TIMER: u64 = 1 << 6;
const EXIT_HOST_64_BIT: u64 = 1 << 9;
const ENTRY_GUEST_64_BIT: u64 = 1 << 9;

/// Field: the exit reason.
pub(crate) const VM_EXIT_REASON: u32 = 0x4402;
/// Exit reason: the preemption timer reached 0.
pub(crate) const EXIT_PREEMPTION_TIMER: u64 = 52;
/// Ticks of L1's TSC per tick of the preemption timer, as a power of 2: KVM's choice.
pub(crate) const TIMER_SHIFT: u32 = 5;

// Access rights: present, 64-bit, execute/read/accessed; read/write/accessed; a busy TSS; unusable.
const CODE_RIGHTS: u64 = 0xa09b;
const DATA_RIGHTS: u64 = 0xc093;
const TSS_RIGHTS: u64 = 0x8b;
const UNUSABLE: u64 = 0x1_0000;
const TSS_LIMIT: u64 = 0x67;
/// Any except 0: the descriptor is not read.
const TSS_SELECTOR: u64 = 0x18;

/// RFLAGS with interrupts enabled, although L1 has none. Bochs masks the host's interrupts when it
/// enters a guest that has disabled its own (`VMenterLoadCheckGuestState()` loads RFLAGS before
/// `in_vmx_guest` is set), so a guest that spins never exits again, whatever the host waits for.
const RFLAGS_IF: u64 = 0x202;

const VMXON: u64 = FREE;
const VMCS: u64 = FREE + PAGE_SIZE;
const FIELDS: u64 = FREE + 2 * PAGE_SIZE;

/// Lets L1, which never ran, run an L2 in its own address space, which exits when L1's TSC has
/// grown by `ticks`.
pub(crate) fn prepare(vm: &Vm, ticks: u64) -> Result<()> {
    let fd = vm.vcpus()[0].fd();
    set_msr(&fd, MSR_FEATURE_CONTROL, FEATURE_CONTROL_LOCKED_VMXON)?;
    let needed = |msr| get_msr(&fd, msr).map(|both| both & 0xffff_ffff);
    let revision = needed(MSR_VMX_BASIC)?;
    let sregs = fd.get_sregs()?;
    let cr4 = CR4_PAE | CR4_VMXE;
    let (cs, stack) = (CODE_SELECTOR.into(), area(0) + PAGE_SIZE);

    let mut fields = vec![
        // Controls: pin-based, processor-based, exit, entry; the preemption timer.
        (
            0x4000,
            needed(MSR_VMX_TRUE_PINBASED)? | PIN_PREEMPTION_TIMER,
        ),
        (0x4002, needed(MSR_VMX_TRUE_PROCBASED)?),
        (0x400c, needed(MSR_VMX_TRUE_EXIT)? | EXIT_HOST_64_BIT),
        (0x4012, needed(MSR_VMX_TRUE_ENTRY)? | ENTRY_GUEST_64_BIT),
        (0x482e, ticks >> TIMER_SHIFT),
        // No VMCS link.
        (0x2800, u64::MAX),
        // L2: CS, the busy TSS, no LDT.
        (0x0802, cs),
        (0x4816, CODE_RIGHTS),
        (0x080e, TSS_SELECTOR),
        (0x480e, TSS_LIMIT),
        (0x4822, TSS_RIGHTS),
        (0x4820, UNUSABLE),
        // GDT and IDT: limits, bases.
        (0x4810, sregs.gdt.limit.into()),
        (0x4812, sregs.idt.limit.into()),
        (0x6816, sregs.gdt.base),
        (0x6818, sregs.idt.base),
        // Control registers, DR7, RSP, RIP, RFLAGS.
        (0x6800, CR0_PE_MP_ET_NE_PG),
        (0x6802, PML4),
        (0x6804, cr4),
        (0x681a, 0x400),
        (0x681c, stack),
        (0x681e, l2_entry()),
        (0x6820, RFLAGS_IF),
        // L1 when L2 exits: CS, TR, control registers, GDT, IDT, RSP, RIP.
        (0x0c02, cs),
        (0x0c0c, TSS_SELECTOR),
        (0x6c00, CR0_PE_MP_ET_NE_PG),
        (0x6c02, PML4),
        (0x6c04, cr4),
        (0x6c0c, sregs.gdt.base),
        (0x6c0e, sregs.idt.base),
        (0x6c14, stack),
        (0x6c16, l1_exit()),
    ];
    // ES, SS, DS, FS, GS of L2: rights; limits, and CS'.
    fields.extend([0x4814, 0x4818, 0x481a, 0x481c, 0x481e].map(|field| (field, DATA_RIGHTS)));
    fields.extend(
        [0x4800, 0x4802, 0x4804, 0x4806, 0x4808, 0x480a].map(|field| (field, u32::MAX.into())),
    );
    // All other fields of a cleared VMCS are 0.

    let store = |gpa, value| vm.memory().word(gpa).store(value, Ordering::Relaxed);
    store(VMXON, revision);
    store(VMCS, revision);
    for (at, (field, value)) in (FIELDS..).step_by(16).zip(&fields) {
        store(at, *field);
        store(at + 8, *value);
    }
    Nested(vm).prepare(VMXON, VMCS, FIELDS, fields.len() as u64);
    Ok(())
}
