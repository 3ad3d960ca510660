// SPDX-License-Identifier: GPL-2.0-only

//! The guest, L1, runs a guest of its own, L2, which counts until the VMX preemption timer makes it
//! exit. L1 then records its TSC and the exit reason, and spins.

use clockguest::{
    guest::{code::between, layout::CODE},
    vmm::code_guest::area_word,
};
use kvm_clock_guest_selftests::prelude::*;
use std::{arch::global_asm, sync::atomic::Ordering};

// In a vCPU's page. In: its VMXON region, its VMCS, the fields to write and their number.
const VMXON: usize = 0;
const VMCS: usize = 8;
const FIELDS: usize = 16;
const COUNT: usize = 24;
// Out: rounds of L2; the TSC before L1 entered L2, and after L2 exited; the exit reason, and the
// number of exits; the last field that was written, to diagnose a mistake.
const L2_ROUNDS: usize = 32;
const ENTRY_TSC: usize = 40;
const EXIT_TSC: usize = 48;
const EXIT_REASON: usize = 56;
const EXITS: usize = 64;
const LAST_FIELD: usize = 72;

/// CR4: VMX enabled.
pub(crate) const CR4_VMXE: u64 = 0x2000;

global_asm!(
    r#"
    .pushsection .text.clockguest_nested_vmx, "ax", @progbits
    .balign 16
    .globl clockguest_nested_vmx_start
    .hidden clockguest_nested_vmx_start
clockguest_nested_vmx_start:
    mov r12, rdi
    mov rax, cr4
    or eax, {CR4_VMXE}
    mov cr4, rax
    vmxon qword ptr [r12 + {VMXON}]
    jbe 3f
    vmclear qword ptr [r12 + {VMCS}]
    jbe 3f
    vmptrld qword ptr [r12 + {VMCS}]
    jbe 3f
    mov rsi, [r12 + {FIELDS}]
    mov rcx, [r12 + {COUNT}]
2:  mov rax, [rsi]
    mov [r12 + {LAST_FIELD}], rax
    vmwrite rax, qword ptr [rsi + 8]
    jbe 3f
    add rsi, 16
    dec rcx
    jnz 2b
    lfence
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [r12 + {ENTRY_TSC}], rax
    vmlaunch
    // Without a handler this shuts the vCPU down, which fails the test.
3:  ud2

    .globl clockguest_nested_vmx_exit
    .hidden clockguest_nested_vmx_exit
clockguest_nested_vmx_exit:
    lfence
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [r12 + {EXIT_TSC}], rax
    mov eax, {VM_EXIT_REASON}
    vmread qword ptr [r12 + {EXIT_REASON}], rax
    inc qword ptr [r12 + {EXITS}]
    // As in L2, see vmx.rs.
    sti
4:  pause
    jmp 4b

    .globl clockguest_nested_vmx_l2
    .hidden clockguest_nested_vmx_l2
clockguest_nested_vmx_l2:
    inc qword ptr [r12 + {L2_ROUNDS}]
    pause
    jmp clockguest_nested_vmx_l2

    .globl clockguest_nested_vmx_end
    .hidden clockguest_nested_vmx_end
clockguest_nested_vmx_end:
    .popsection
    "#,
    VMXON = const VMXON,
    VMCS = const VMCS,
    FIELDS = const FIELDS,
    COUNT = const COUNT,
    L2_ROUNDS = const L2_ROUNDS,
    ENTRY_TSC = const ENTRY_TSC,
    EXIT_TSC = const EXIT_TSC,
    EXIT_REASON = const EXIT_REASON,
    EXITS = const EXITS,
    LAST_FIELD = const LAST_FIELD,
    CR4_VMXE = const CR4_VMXE,
    VM_EXIT_REASON = const crate::vmx::VM_EXIT_REASON,
);

extern "C" {
    static clockguest_nested_vmx_start: u8;
    static clockguest_nested_vmx_exit: u8;
    static clockguest_nested_vmx_l2: u8;
    static clockguest_nested_vmx_end: u8;
}

/// The code; its first byte is the entry point of L1.
pub(crate) fn code() -> &'static [u8] {
    let start = &raw const clockguest_nested_vmx_start;
    let end = &raw const clockguest_nested_vmx_end;
    // SAFETY: Both symbols are defined by the one assembly block above, `end` after `start` in the
    // same section, and what lies between is never written.
    unsafe { between(start, end) }
}

fn address(label: *const u8) -> u64 {
    let start = &raw const clockguest_nested_vmx_start;
    CODE + (label.addr() - start.addr()) as u64
}

/// Guest physical address at which L1 continues when L2 exits.
pub(crate) fn l1_exit() -> u64 {
    address(&raw const clockguest_nested_vmx_exit)
}

/// Guest physical address of the entry point of L2.
pub(crate) fn l2_entry() -> u64 {
    address(&raw const clockguest_nested_vmx_l2)
}

/// The input and output of the vCPU.
pub(crate) struct Nested<'a>(pub(crate) &'a Vm);

impl Nested<'_> {
    fn load(&self, offset: usize) -> u64 {
        area_word(self.0, 0, offset).load(Ordering::Acquire)
    }

    fn store(&self, offset: usize, value: u64) {
        area_word(self.0, 0, offset).store(value, Ordering::Release);
    }

    /// Sets the addresses of its VMXON region, its VMCS and the VMCS's fields, before it runs.
    pub(crate) fn prepare(&self, vmxon: u64, vmcs: u64, fields: u64, count: u64) {
        self.store(VMXON, vmxon);
        self.store(VMCS, vmcs);
        self.store(FIELDS, fields);
        self.store(COUNT, count);
    }

    /// Rounds of L2 so far.
    pub(crate) fn l2_rounds(&self) -> u64 {
        self.load(L2_ROUNDS)
    }

    /// L1's TSC just before it entered L2.
    pub(crate) fn entry_tsc(&self) -> GuestTsc {
        GuestTsc(self.load(ENTRY_TSC))
    }

    /// L1's TSC just after L2 exited, and the exit reason.
    pub(crate) fn exit(&self) -> Option<(GuestTsc, u64)> {
        (self.load(EXITS) != 0).then(|| (GuestTsc(self.load(EXIT_TSC)), self.load(EXIT_REASON)))
    }

    /// The last field that L1 wrote.
    pub(crate) fn last_field(&self) -> u64 {
        self.load(LAST_FIELD)
    }
}
