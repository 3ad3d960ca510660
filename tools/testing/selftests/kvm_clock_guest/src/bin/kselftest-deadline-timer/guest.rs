// SPDX-License-Identifier: GPL-2.0-only

//! The guest: arms its TSC-deadline timer once, waits, and notes the TSC at every interrupt.

use clockguest::guest::layout::PAGE_SIZE;
use kvm_clock_guest_selftests::machine::Machine;
use std::{arch::global_asm, sync::atomic::Ordering};

/// The timer's interrupt.
const VECTOR: u8 = 0x40;
/// `IA32_TSC_DEADLINE`.
pub(crate) const MSR_TSC_DEADLINE: u32 = 0x6e0;

// In a vCPU's page. In: how far ahead to arm the timer, ticks, 0 = not at all; not 0 = do not halt.
const AHEAD: usize = 0;
const SPIN: usize = 8;
// Out: the deadline; not 0 once the timer is armed, if it is to be; turns of the loop that waits;
// interrupts, and the TSC at the latest of them.
const DEADLINE: usize = 16;
const READY: usize = 24;
const TURNS: usize = 32;
const COUNT: usize = 40;
const FIRED: usize = 64;
const FIRED_LEN: usize = 8;

global_asm!(
    r#"
    .pushsection .text.clockguest_timer, "ax", @progbits
    .balign 16
    .globl clockguest_timer_start
    .hidden clockguest_timer_start
clockguest_timer_start:
    mov r12, rdi
    xor edx, edx
    // Enable the APIC, and its timer in TSC-deadline mode.
    mov ecx, 0x80f
    mov eax, 0x1ff
    wrmsr
    mov ecx, 0x832
    mov eax, {VECTOR} | 2 << 17
    wrmsr

    mov rbx, [r12 + {AHEAD}]
    test rbx, rbx
    jz 2f
    lfence
    rdtsc
    shl rdx, 32
    or rax, rdx
    add rax, rbx
    mov [r12 + {DEADLINE}], rax
    mov rdx, rax
    shr rdx, 32
    mov ecx, {MSR_TSC_DEADLINE}
    wrmsr
2:  mov qword ptr [r12 + {READY}], 1

    // An interrupt between STI and HLT leaves the guest halted, which is as good.
3:  sti
    inc qword ptr [r12 + {TURNS}]
    cmp qword ptr [r12 + {SPIN}], 0
    jne 3b
    hlt
    jmp 3b

    .globl clockguest_timer_handler
    .hidden clockguest_timer_handler
clockguest_timer_handler:
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

    .globl clockguest_timer_end
    .hidden clockguest_timer_end
clockguest_timer_end:
    .popsection
    "#,
    VECTOR = const VECTOR,
    MSR_TSC_DEADLINE = const MSR_TSC_DEADLINE,
    AHEAD = const AHEAD,
    SPIN = const SPIN,
    DEADLINE = const DEADLINE,
    READY = const READY,
    TURNS = const TURNS,
    COUNT = const COUNT,
    FIRED = const FIRED,
    FIRED_LEN = const FIRED_LEN,
);

const _: () = assert!(FIRED + 8 * FIRED_LEN < PAGE_SIZE as usize / 2);

extern "C" {
    static clockguest_timer_start: u8;
    static clockguest_timer_handler: u8;
    static clockguest_timer_end: u8;
}

/// The code; its first byte is the entry point.
pub(crate) fn code() -> &'static [u8] {
    let start = &raw const clockguest_timer_start;
    let end = &raw const clockguest_timer_end;
    // SAFETY: Both symbols are defined by the one assembly block above, `end` after `start` in the
    // same section, and what lies between is never written.
    unsafe { clockguest::guest::code::between(start, end) }
}

/// Has `machine` use the handler of the timer's interrupt.
pub(crate) fn install_handler(machine: &Machine) {
    let (start, handler) = (
        &raw const clockguest_timer_start,
        &raw const clockguest_timer_handler,
    );
    machine.handle_interrupt(VECTOR, handler.addr() - start.addr());
}

/// How a guest waits for the interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Halted,
    Spinning,
}

/// What a vCPU is told and tells.
pub(crate) struct Timer<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) vcpu: usize,
}

impl Timer<'_> {
    fn load(&self, offset: usize) -> u64 {
        self.machine
            .area_word(self.vcpu, offset)
            .load(Ordering::Acquire)
    }

    /// Before it runs: to arm the timer `ahead` ticks ahead, 0 = not at all, and to wait like this.
    pub(crate) fn prepare(&self, ahead: u64, wait: Wait) {
        let store = |offset, value| {
            self.machine
                .area_word(self.vcpu, offset)
                .store(value, Ordering::Relaxed);
        };
        store(AHEAD, ahead);
        store(SPIN, (wait == Wait::Spinning).into());
    }

    /// Whether the timer is armed, if it is to be.
    pub(crate) fn is_ready(&self) -> bool {
        self.load(READY) != 0
    }

    /// The guest TSC that it armed the timer for, ticks.
    pub(crate) fn deadline(&self) -> u64 {
        self.load(DEADLINE)
    }

    /// Turns of the loop that waits.
    pub(crate) fn turns(&self) -> u64 {
        self.load(TURNS)
    }

    /// The TSC (ticks) at every interrupt; no more than some.
    pub(crate) fn fired(&self) -> Vec<u64> {
        // CAST: few.
        let count = self.load(COUNT) as usize;
        (0..count.min(FIRED_LEN))
            .map(|index| self.load(FIRED + 8 * index))
            .collect()
    }
}
