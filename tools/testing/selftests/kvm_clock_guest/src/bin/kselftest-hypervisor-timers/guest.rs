// SPDX-License-Identifier: GPL-2.0-only

//! The guest: enables its local APIC, halts, and notes the TSC at every interrupt.

use clockguest::guest::layout::PAGE_SIZE;
use kvm_clock_guest_selftests::machine::Machine;
use std::{arch::global_asm, sync::atomic::Ordering};

/// The timer's interrupt.
pub(crate) const VECTOR: u8 = 0x40;

// In a vCPU's page: turns of the loop that halts, the first once the APIC is enabled; interrupts,
// and the TSC at the latest of them.
const TURNS: usize = 0;
const COUNT: usize = 8;
const FIRED: usize = 64;
const FIRED_LEN: usize = 8;

global_asm!(
    r#"
    .pushsection .text.clockguest_hypervisor_timer, "ax", @progbits
    .balign 16
    .globl clockguest_hypervisor_timer_start
    .hidden clockguest_hypervisor_timer_start
clockguest_hypervisor_timer_start:
    mov r12, rdi
    // Enable the APIC.
    xor edx, edx
    mov ecx, 0x80f
    mov eax, 0x1ff
    wrmsr

    // An interrupt between STI and HLT leaves the guest halted, which is as good.
2:  inc qword ptr [r12 + {TURNS}]
    sti
    hlt
    jmp 2b

    .globl clockguest_hypervisor_timer_handler
    .hidden clockguest_hypervisor_timer_handler
clockguest_hypervisor_timer_handler:
    push rax
    push rcx
    push rdx
    lfence
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov rcx, [r12 + {COUNT}]
    and ecx, {FIRED_LEN} - 1
    mov [r12 + {FIRED} + 8 * rcx], rax
    inc qword ptr [r12 + {COUNT}]
    // End of interrupt.
    xor eax, eax
    xor edx, edx
    mov ecx, 0x80b
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq

    .globl clockguest_hypervisor_timer_end
    .hidden clockguest_hypervisor_timer_end
clockguest_hypervisor_timer_end:
    .popsection
    "#,
    TURNS = const TURNS,
    COUNT = const COUNT,
    FIRED = const FIRED,
    FIRED_LEN = const FIRED_LEN,
);

const _: () = assert!(FIRED + 8 * FIRED_LEN < PAGE_SIZE as usize / 2);

extern "C" {
    static clockguest_hypervisor_timer_start: u8;
    static clockguest_hypervisor_timer_handler: u8;
    static clockguest_hypervisor_timer_end: u8;
}

/// The code; its first byte is the entry point.
pub(crate) fn code() -> &'static [u8] {
    let start = &raw const clockguest_hypervisor_timer_start;
    let end = &raw const clockguest_hypervisor_timer_end;
    // SAFETY: Both symbols are defined by the one assembly block above, `end` after `start` in the
    // same section, and what lies between is never written.
    unsafe { clockguest::guest::code::between(start, end) }
}

/// Has `machine` use the handler of the timer's interrupt.
pub(crate) fn install_handler(machine: &Machine) {
    let (start, handler) = (
        &raw const clockguest_hypervisor_timer_start,
        &raw const clockguest_hypervisor_timer_handler,
    );
    machine.handle_interrupt(VECTOR, handler.addr() - start.addr());
}

/// How often the vCPU halted, or is about to; 0 until it takes interrupts.
pub(crate) fn turns(machine: &Machine, vcpu: usize) -> u64 {
    machine.area_word(vcpu, TURNS).load(Ordering::Acquire)
}

/// Interrupts that the vCPU took.
pub(crate) fn count(machine: &Machine, vcpu: usize) -> u64 {
    machine.area_word(vcpu, COUNT).load(Ordering::Acquire)
}

/// The TSC (ticks) at the vCPU's first interrupts; no more than some.
pub(crate) fn fired(machine: &Machine, vcpu: usize) -> Vec<u64> {
    // CAST: few.
    let count = count(machine, vcpu) as usize;
    let word = |index| machine.area_word(vcpu, FIRED + 8 * index);
    (0..count.min(FIRED_LEN))
        .map(|index| word(index).load(Ordering::Acquire))
        .collect()
}
