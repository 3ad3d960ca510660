// SPDX-License-Identifier: GPL-2.0-only

//! The guest's code: position-independent long-mode instructions, copied into guest memory.
//!
//! On entry RDI is the vCPU's sample area, RSI its pvclock page, R15 the shared page and RSP the
//! stack, all guest physical addresses. The guest enables kvmclock, then reads forever. Its whole
//! state is in registers and memory, so a restored copy continues counting where the saved one was.

use super::layout;
use pvclock::abi::ClockGuest;
use std::{arch::global_asm, mem::offset_of};

/// `MSR_KVM_SYSTEM_TIME_NEW`: guest physical address of the pvclock record, bit 0 enables.
pub const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;

global_asm!(
    r#"
    .pushsection .text.clockguest, "ax", @progbits
    .balign 16
    .globl clockguest_guest_start
    .hidden clockguest_guest_start
clockguest_guest_start:
    mov r12, rdi
    mov r13, rsi

    // The first vCPU initialises the shared maximum of the TSC, and each vCPU its own previous
    // value: the TSC may start anywhere. kvmclock starts at 0.
    lfence
    rdtsc
    shl rdx, 32
    lea rbx, [rax + rdx]
    xor ebp, ebp
    xor eax, eax
    lock cmpxchg [r15 + {SHARED_MAX_TSC}], rbx

    mov ecx, {MSR_KVM_SYSTEM_TIME_NEW}
    mov eax, r13d
    or eax, 1
    xor edx, edx
    wrmsr

2:  // The ring's next slot; the host reads it only after the count includes it.
    mov r14, [r12 + {AREA_COUNT}]
    and r14d, {RING_LEN} - 1
    shl r14d, {SLOT_SHIFT}
    lea r14, [r12 + r14 + {AREA_RING}]

    // The maxima of all vCPUs before this reading.
    mov r10, [r15 + {SHARED_MAX_TSC}]
    mov r11, [r15 + {SHARED_MAX_NS}]

3:  // The pvclock protocol: same even version before and after.
    mov r9d, [r13]
    lfence
    rdtsc
    lfence
    shl rdx, 32
    lea r8, [rax + rdx]
    mov rax, [r13]
    mov rcx, [r13 + 8]
    mov rdx, [r13 + 16]
    mov rdi, [r13 + 24]
    mov [r14 + {SLOT_RECORD}], rax
    mov [r14 + {SLOT_RECORD} + 8], rcx
    mov [r14 + {SLOT_RECORD} + 16], rdx
    mov [r14 + {SLOT_RECORD} + 24], rdi
    cmp r9d, [r13]
    jne 3b
    test r9d, 1
    jnz 3b

    lea rdi, [r14 + {SLOT_RECORD}]
    mov rsi, r8
    call clockguest_guest_pvclock_ns
    mov r9, rax

    // Complete the slot, then publish it: x86 keeps stores in order.
    mov rax, [r12 + {AREA_COUNT}]
    mov [r14 + {SLOT_NUMBER}], rax
    mov [r14 + {SLOT_TSC}], r8
    mov [r14 + {SLOT_NS}], r9
    inc rax
    mov [r12 + {AREA_COUNT}], rax

    // Compares modular counters. A step back also moves the maximum back, so that it is counted
    // once, and not until the clock has caught up.
    .macro clockguest_check value, previous, seen, maximum, own, cross
    mov rax, \value
    sub rax, \previous
    jns 4f
    inc qword ptr [r12 + \own]
    .ifc \value, r9
    mov [r12 + {AREA_STEP}], \previous
    mov [r12 + {AREA_STEP} + 8], \value
    mov [r12 + {AREA_STEP} + 16], r8
    .endif
4:  mov \previous, \value
    mov rax, \seen
    mov rdx, \value
    sub rdx, rax
    jns 5f
    inc qword ptr [r12 + \cross]
    lock cmpxchg [r15 + \maximum], \value
    jmp 6f
5:  lock cmpxchg [r15 + \maximum], \value
    je 6f
    mov rdx, \value
    sub rdx, rax
    jns 5b
6:
    .endm

    clockguest_check r8, rbx, r10, {SHARED_MAX_TSC}, {AREA_OWN_TSC}, {AREA_CROSS_TSC}
    clockguest_check r9, rbp, r11, {SHARED_MAX_NS}, {AREA_OWN_NS}, {AREA_CROSS_NS}
    .purgem clockguest_check
    jmp 2b

    // RAX = kvmclock (ns) of the record at RDI, at TSC RSI; clobbers RCX, RDX, RSI.
    // Also a C function, for a test.
    .globl clockguest_guest_pvclock_ns
    .hidden clockguest_guest_pvclock_ns
clockguest_guest_pvclock_ns:
    sub rsi, [rdi + {TSC_TIMESTAMP}]
    movsx ecx, byte ptr [rdi + {TSC_SHIFT}]
    test ecx, ecx
    jns 7f
    neg ecx
    shr rsi, cl
    jmp 8f
7:  shl rsi, cl
8:  mov eax, [rdi + {TSC_TO_SYSTEM_MUL}]
    mul rsi
    shrd rax, rdx, 32
    add rax, [rdi + {SYSTEM_TIME}]
    ret

    .globl clockguest_guest_end
    .hidden clockguest_guest_end
clockguest_guest_end:
    .popsection
    "#,
    MSR_KVM_SYSTEM_TIME_NEW = const MSR_KVM_SYSTEM_TIME_NEW,
    SHARED_MAX_TSC = const layout::SHARED_MAX_TSC,
    SHARED_MAX_NS = const layout::SHARED_MAX_NS,
    AREA_COUNT = const layout::AREA_COUNT,
    AREA_OWN_TSC = const layout::AREA_OWN_TSC,
    AREA_OWN_NS = const layout::AREA_OWN_NS,
    AREA_CROSS_TSC = const layout::AREA_CROSS_TSC,
    AREA_CROSS_NS = const layout::AREA_CROSS_NS,
    AREA_STEP = const layout::AREA_STEP,
    AREA_RING = const layout::AREA_RING,
    RING_LEN = const layout::RING_LEN,
    SLOT_SHIFT = const layout::SLOT_SHIFT,
    SLOT_NUMBER = const layout::SLOT_NUMBER,
    SLOT_TSC = const layout::SLOT_TSC,
    SLOT_NS = const layout::SLOT_NS,
    SLOT_RECORD = const layout::SLOT_RECORD,
    TSC_TIMESTAMP = const offset_of!(ClockGuest, tsc_timestamp),
    SYSTEM_TIME = const offset_of!(ClockGuest, system_time),
    TSC_TO_SYSTEM_MUL = const offset_of!(ClockGuest, tsc_to_system_mul),
    TSC_SHIFT = const offset_of!(ClockGuest, tsc_shift),
);

extern "C" {
    static clockguest_guest_start: u8;
    static clockguest_guest_end: u8;
}

/// The guest's code, for [`layout::CODE`]; the entry point is its first byte.
pub fn bytes() -> &'static [u8] {
    let start = &raw const clockguest_guest_start;
    let end = &raw const clockguest_guest_end;
    // SAFETY: The assembly block above defines both symbols in this order in one section, and
    // nothing writes the bytes between them.
    unsafe { between(start, end) }
}

/// The code of a guest, from symbol `start` to symbol `end`.
///
/// # Safety
///
/// `start` and `end` are in one section of this program, in this order, and nothing writes the
/// bytes between them.
pub unsafe fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: The caller ensures it; a program's sections are initialised and always valid.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use pvclock::counter::GuestTsc;

    extern "C" {
        fn clockguest_guest_pvclock_ns(record: *const ClockGuest, tsc: GuestTsc) -> u64;
    }

    proptest! {
        #[test]
        fn guest_computes_the_same_kvmclock_as_pvclock(
            tsc_timestamp: u64,
            system_time: u64,
            tsc_to_system_mul: u32,
            tsc_shift in -31i8..=31,
            tsc: u64,
        ) {
            let record = ClockGuest {
                tsc_timestamp: GuestTsc(tsc_timestamp),
                system_time,
                tsc_to_system_mul,
                tsc_shift,
                ..ClockGuest::default()
            };
            let tsc = GuestTsc(tsc);
            // SAFETY: The routine follows the C ABI and reads only the borrowed record.
            let ns = unsafe { clockguest_guest_pvclock_ns(&record, tsc) };
            prop_assert_eq!(ns, record.kvmclock_ns(tsc));
        }
    }

    #[test]
    fn code_fits_its_page() {
        let len = bytes().len() as u64;
        assert!(len > 0 && len <= layout::PAGE_SIZE, "{len} bytes");
    }
}
