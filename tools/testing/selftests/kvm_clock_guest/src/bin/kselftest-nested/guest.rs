// SPDX-License-Identifier: GPL-2.0-only

//! The guest, L1, runs a guest of its own, L2, which reads its TSC in a loop. On request, L2 calls
//! L1, which reads its TSC and resumes L2.

use clockguest::{
    guest::{
        code::between,
        layout::{CODE, PAGE_SIZE},
    },
    vmm::code_guest::area_word,
};
use kvm_clock_guest_selftests::prelude::*;
use std::{arch::global_asm, sync::atomic::Ordering};

// In a vCPU's page. In: its VMCB. In and out: not 0 = L2 must call L1; L2 clears it.
const VMCB: usize = 0;
const CALL: usize = 8;
// Out: the TSC before L1 last entered L2, and the number of entries; the number of L2's readings,
// the latest of them, and how many were below the previous one.
const L1_TSC: usize = 16;
const L1_COUNT: usize = 24;
const L2_COUNT: usize = 32;
const L2_BACKWARDS: usize = 40;
const L2_RING: usize = 64;
const RING_LEN: u64 = 16;

/// Exit code of VMMCALL.
const EXIT_VMMCALL: u32 = 0x81;

global_asm!(
    r#"
    .pushsection .text.clockguest_nested, "ax", @progbits
    .balign 16
    .globl clockguest_nested_start
    .hidden clockguest_nested_start
clockguest_nested_start:
    mov r12, rdi
    mov rbx, [r12 + {VMCB}]
2:  lfence
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [r12 + {L1_TSC}], rax
    inc qword ptr [r12 + {L1_COUNT}]
    mov rax, rbx
    vmrun rax
    cmp dword ptr [rbx + {VMCB_EXIT_CODE}], {EXIT_VMMCALL}
    jne 3f
    // Past the VMMCALL.
    add qword ptr [rbx + {VMCB_RIP}], 3
    jmp 2b
    // Without a handler this shuts the vCPU down, which fails the test.
3:  ud2

    .globl clockguest_nested_l2
    .hidden clockguest_nested_l2
clockguest_nested_l2:
    lfence
    rdtsc
    shl rdx, 32
    lea rbp, [rax + rdx]
4:  lfence
    rdtsc
    lfence
    shl rdx, 32
    or rax, rdx
    mov rcx, [r12 + {L2_COUNT}]
    and ecx, {RING_LEN} - 1
    mov [r12 + {L2_RING} + 8 * rcx], rax
    inc qword ptr [r12 + {L2_COUNT}]
    mov rdx, rax
    sub rdx, rbp
    jns 5f
    inc qword ptr [r12 + {L2_BACKWARDS}]
5:  mov rbp, rax
    cmp qword ptr [r12 + {CALL}], 0
    je 4b
    mov qword ptr [r12 + {CALL}], 0
    vmmcall
    jmp 4b

    .globl clockguest_nested_end
    .hidden clockguest_nested_end
clockguest_nested_end:
    .popsection
    "#,
    VMCB = const VMCB,
    CALL = const CALL,
    L1_TSC = const L1_TSC,
    L1_COUNT = const L1_COUNT,
    L2_COUNT = const L2_COUNT,
    L2_BACKWARDS = const L2_BACKWARDS,
    L2_RING = const L2_RING,
    RING_LEN = const RING_LEN,
    EXIT_VMMCALL = const EXIT_VMMCALL,
    VMCB_EXIT_CODE = const crate::svm::EXIT_CODE,
    VMCB_RIP = const crate::svm::RIP,
);

const _: () = assert!(L2_RING + 8 * (RING_LEN as usize) < PAGE_SIZE as usize / 2);

extern "C" {
    static clockguest_nested_start: u8;
    static clockguest_nested_l2: u8;
    static clockguest_nested_end: u8;
}

/// The code; its first byte is the entry point of L1.
pub(crate) fn code() -> &'static [u8] {
    let start = &raw const clockguest_nested_start;
    let end = &raw const clockguest_nested_end;
    // SAFETY: Both symbols are defined by the one assembly block above, `end` after `start` in the
    // same section, and what lies between is never written.
    unsafe { between(start, end) }
}

/// Guest physical address of the entry point of L2.
pub(crate) fn l2_entry() -> u64 {
    let start = &raw const clockguest_nested_start;
    let l2 = &raw const clockguest_nested_l2;
    CODE + (l2.addr() - start.addr()) as u64
}

/// The input and output of a vCPU.
pub(crate) struct Nested<'a> {
    pub(crate) vm: &'a Vm,
    pub(crate) vcpu: usize,
}

impl Nested<'_> {
    fn load(&self, offset: usize) -> u64 {
        area_word(self.vm, self.vcpu, offset).load(Ordering::Acquire)
    }

    fn store(&self, offset: usize, value: u64) {
        area_word(self.vm, self.vcpu, offset).store(value, Ordering::Release);
    }

    /// Sets the address of its VMCB, before it runs.
    pub(crate) fn prepare(&self, vmcb: u64) {
        self.store(VMCB, vmcb);
    }

    /// Requests that L2 calls L1.
    pub(crate) fn call_l1(&self) {
        self.store(CALL, 1);
    }

    /// How often L1 entered L2, and the L1 TSC just before the last time.
    pub(crate) fn l1_entry(&self) -> (u64, GuestTsc) {
        loop {
            let entry = (self.load(L1_COUNT), GuestTsc(self.load(L1_TSC)));
            if entry.0 == self.load(L1_COUNT) {
                return entry;
            }
        }
    }

    /// Readings that L2 made so far.
    pub(crate) fn l2_count(&self) -> u64 {
        self.load(L2_COUNT)
    }

    /// The TSC of L2's latest complete reading.
    pub(crate) fn l2_tsc(&self) -> Option<GuestTsc> {
        loop {
            let number = self.l2_count().checked_sub(1)?;
            // CAST: below RING_LEN.
            let tsc = self.load(L2_RING + 8 * (number % RING_LEN) as usize);
            // The guest did not begin to overwrite it.
            if self.l2_count() < number + RING_LEN {
                return Some(GuestTsc(tsc));
            }
        }
    }

    /// How often a reading of L2 was below the previous one.
    pub(crate) fn l2_backwards(&self) -> u64 {
        self.load(L2_BACKWARDS)
    }
}
