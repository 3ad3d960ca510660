// SPDX-License-Identifier: GPL-2.0-only

//! Describes a vCPU that left KVM_RUN unexpectedly, for a developer who looks for the cause.

use super::memory::GuestMemory;
use crate::guest::{code, layout, view::VcpuView};
use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_SHUTDOWN};
use kvm_ioctls::VcpuFd;
use std::{fmt::Write, sync::atomic::Ordering};

/// Where an x86 CPU starts after INIT.
const RESET_RIP: u64 = 0xfff0;

/// Appends the exit's own data and the vCPU's registers to `exit`, the name of the exit or errno.
pub(super) fn describe(fd: &mut VcpuFd, mut exit: String) -> String {
    let run = fd.get_kvm_run();
    let reason = run.exit_reason;
    if reason == KVM_EXIT_INTERNAL_ERROR {
        // SAFETY: The exit reason selects this member of the union.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let data: Vec<_> = internal
            .data
            .into_iter()
            .take(internal.ndata as usize)
            .collect();
        let _ = write!(exit, ", suberror {}, data {data:x?}", internal.suberror);
    }
    match (fd.get_regs(), fd.get_sregs()) {
        (Ok(regs), Ok(sregs)) => {
            let _ = write!(
                exit,
                "; RIP {:#x}, RSP {:#x}, RFLAGS {:#x}, CR0 {:#x}, CR2 {:#x}, CR3 {:#x}, CR4 {:#x}",
                regs.rip, regs.rsp, regs.rflags, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4
            );
            if reason == KVM_EXIT_SHUTDOWN && regs.rip == RESET_RIP {
                exit += " (kvm_amd resets a vCPU that shuts down)";
            }
        }
        (Err(e), _) | (_, Err(e)) => exit += &format!("; no registers: {e}"),
    }
    exit
}

/// The progress of vCPU `index` of the built-in guest, and what has changed in its code and page
/// tables.
pub(super) fn describe_guest(memory: &GuestMemory, index: usize) -> String {
    let view = VcpuView::new(memory, index);
    let mut text = format!("{} samples", view.count());
    if let Some(sample) = view.latest() {
        let _ = write!(text, ", the last one at TSC {}", sample.tsc);
    }
    let word = |gpa| memory.word(gpa).load(Ordering::Relaxed);
    for (gpa, entry) in layout::PAGE_TABLES {
        let found = word(gpa) & !layout::PTE_ACCESSED_DIRTY;
        if found != entry {
            let _ = write!(text, "; page table {gpa:#x}: {found:#x}, not {entry:#x}");
        }
    }
    for (gpa, expected) in (layout::CODE..).step_by(8).zip(code::bytes().chunks(8)) {
        let found = word(gpa).to_le_bytes();
        if !found.starts_with(expected) {
            let _ = write!(text, "; code {gpa:#x}: {found:02x?}, not {expected:02x?}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_code_and_page_tables_are_reported() {
        let memory = GuestMemory::new(layout::memory_size(1)).unwrap();
        for (gpa, entry) in layout::PAGE_TABLES {
            memory.write(gpa, &(entry | layout::PTE_ACCESSED_DIRTY).to_le_bytes());
        }
        memory.write(layout::CODE, code::bytes());
        assert_eq!(describe_guest(&memory, 0), "0 samples");
        memory.write(layout::PD, &[0]);
        memory.write(layout::CODE + 8, &[0; 8]);
        let text = describe_guest(&memory, 0);
        assert!(
            text.starts_with("0 samples; page table 0x3000: 0x0, not 0x83; code 0x4008: [00,"),
            "{text}"
        );
    }
}
