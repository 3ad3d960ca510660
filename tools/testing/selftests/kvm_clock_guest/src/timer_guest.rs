// SPDX-License-Identifier: GPL-2.0-only

//! A guest that records the TSC at every timer interrupt; it may arm its TSC-deadline timer itself.

use crate::{
    msr::MSR_IA32_TSC_DEADLINE,
    wait::{wait_for_guest, POLL},
};
use anyhow::Result;
use clockguest::{
    guest::{code::between, layout::PAGE_SIZE},
    vmm::{
        code_guest::{area_word, handle_interrupt},
        Guest, Vm, VmBuilder,
    },
};
use kvm_ioctls::Kvm;
use pvclock::counter::GuestTsc;
use std::{arch::global_asm, sync::atomic::Ordering, thread::sleep, time::Duration};

/// The timer's interrupt.
pub const VECTOR: u8 = 0x40;
/// How much the host's time, which KVM's hrtimers use, may differ from the guest's when a timer
/// fires.
pub const EARLY_NS: i64 = 1_000_000;
/// How late an interrupt may be: far less than it would be by the former clock.
pub const LATE_NS: i64 = 10_000_000_000;
/// A second interrupt would have come by then.
pub const AFTERWARDS: Duration = Duration::from_millis(100);

// In a vCPU's page. In: how far ahead to arm the timer, ticks, 0 = not at all; not 0 = do not halt.
const AHEAD: usize = 0;
const SPIN: usize = 8;
// Out: the deadline; not 0 once the APIC is enabled and the timer armed; rounds of the loop that
// waits; interrupts, and the TSC at the latest of them.
const DEADLINE: usize = 16;
const READY: usize = 24;
const ROUNDS: usize = 32;
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
    mov ecx, {MSR_IA32_TSC_DEADLINE}
    wrmsr
2:  mov qword ptr [r12 + {READY}], 1

    // An interrupt between STI and HLT leaves the guest halted, which is as good.
3:  inc qword ptr [r12 + {ROUNDS}]
    sti
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
    MSR_IA32_TSC_DEADLINE = const MSR_IA32_TSC_DEADLINE,
    AHEAD = const AHEAD,
    SPIN = const SPIN,
    DEADLINE = const DEADLINE,
    READY = const READY,
    ROUNDS = const ROUNDS,
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

/// A stopped VM of the guest.
pub fn new(kvm: &Kvm, vcpus: u32) -> Result<Vm> {
    let [start, handler, end] = [
        &raw const clockguest_timer_start,
        &raw const clockguest_timer_handler,
        &raw const clockguest_timer_end,
    ];
    // SAFETY: The symbols are defined by the one assembly block above, `end` after `start` in the
    // same section, and what lies between is never written.
    let code = unsafe { between(start, end) };
    let vm = VmBuilder::new(kvm, vcpus)
        .guest(Guest::Code(code))
        .build()?;
    handle_interrupt(&vm, VECTOR, handler.addr() - start.addr());
    Ok(vm)
}

/// Returns when the guest of the running `vm` made `done` true.
pub fn wait(vm: &Vm, what: &str, patience: Duration, done: impl Fn() -> bool) -> Result<()> {
    wait_for_guest(vm, &format!("the guest {what}"), patience, done)
}

/// Returns a little after every vCPU of the running `vm` took `count` interrupts; the VM is stopped
/// then.
pub fn wait_for_interrupts(vm: &Vm, count: u64, patience: Duration) -> Result<()> {
    let taken = wait(vm, "takes the timers' interrupts", patience, || {
        timers(vm).all(|timer| timer.count() >= count)
    });
    sleep(AFTERWARDS.max(POLL));
    vm.stop()?;
    taken
}

/// How a guest waits for the interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It halts.
    Halted,
    /// It executes instructions all the time.
    Spinning,
}

/// The input and output of a vCPU of the guest.
#[derive(Clone, Copy, Debug)]
pub struct Timer<'a> {
    /// The VM.
    pub vm: &'a Vm,
    /// Index of the vCPU.
    pub vcpu: usize,
}

/// All vCPUs of `vm`.
pub fn timers(vm: &Vm) -> impl Iterator<Item = Timer<'_>> + Clone {
    (0..vm.vcpus().len()).map(move |vcpu| Timer { vm, vcpu })
}

impl Timer<'_> {
    fn load(&self, offset: usize) -> u64 {
        area_word(self.vm, self.vcpu, offset).load(Ordering::Acquire)
    }

    /// Makes a vCPU that has not run yet arm its timer `ahead` ticks ahead, 0 = not at all, and
    /// wait in this way.
    pub fn prepare(&self, ahead: u64, wait: Wait) {
        let store = |offset, value| {
            area_word(self.vm, self.vcpu, offset).store(value, Ordering::Relaxed);
        };
        store(AHEAD, ahead);
        store(SPIN, (wait == Wait::Spinning).into());
    }

    /// Whether the APIC is enabled, and the timer armed if it is to be.
    pub fn is_ready(&self) -> bool {
        self.load(READY) != 0
    }

    /// The guest TSC for which the timer was armed.
    pub fn deadline(&self) -> GuestTsc {
        GuestTsc(self.load(DEADLINE))
    }

    /// Rounds of the loop that waits; 0 until the vCPU takes interrupts.
    pub fn rounds(&self) -> u64 {
        self.load(ROUNDS)
    }

    /// Interrupts that the vCPU took.
    pub fn count(&self) -> u64 {
        self.load(COUNT)
    }

    /// The TSC at the vCPU's first interrupts, a few at most.
    pub fn fired(&self) -> Vec<GuestTsc> {
        // CAST: few.
        let count = self.count() as usize;
        (0..count.min(FIRED_LEN))
            .map(|index| GuestTsc(self.load(FIRED + 8 * index)))
            .collect()
    }
}
