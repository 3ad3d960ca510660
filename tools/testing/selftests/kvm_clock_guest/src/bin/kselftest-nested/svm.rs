// SPDX-License-Identifier: GPL-2.0-only

//! The VMCB with which L1 runs L2; see AMD's manual, volume 2, appendix B.

use clockguest::{
    guest::layout::{PAGE_SIZE, PML4},
    vmm::{
        code_guest::{CODE_SELECTOR, FREE},
        long_mode::{CR0_PE_MP_ET_NE_PG, CR4_PAE, EFER_LME_LMA},
    },
};
use kvm_clock_guest_selftests::{msr::set_msr, prelude::*};
use std::sync::atomic::Ordering;

/// `VM_HSAVE_PA`: the address at which the CPU saves L1's state while L2 runs.
pub(crate) const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;
const EFER_SVME: u64 = 1 << 12;

// Control area.
const INTERCEPTS: u64 = 0x10;
const INTERCEPT_VMRUN_VMMCALL: u64 = 0b11;
const TSC_OFFSET: u64 = 0x50;
const ASID: u64 = 0x58;
/// Why L2 ended.
pub(crate) const EXIT_CODE: u32 = 0x70;

// State save area. A segment: selector, attributes, limit, base.
const ES: u64 = 0x400;
const CS: u64 = 0x410;
const SS: u64 = 0x420;
const DS: u64 = 0x430;
const EFER: u64 = 0x4d0;
const CR4: u64 = 0x548;
const CR3: u64 = 0x550;
const CR0: u64 = 0x558;
const DR7: u64 = 0x560;
const DR6: u64 = 0x568;
const RFLAGS: u64 = 0x570;
/// Where L2 continues.
pub(crate) const RIP: u32 = 0x578;
const PAT: u64 = 0x668;

// Present, 64-bit, execute/read/accessed; and read/write/accessed.
const CODE_ATTRIBUTES: u64 = 0xa9b;
const DATA_ATTRIBUTES: u64 = 0xc93;

/// Guest physical address of the VMCB of a vCPU; the page for L1's state follows.
pub(crate) fn vmcb(vcpu: usize) -> u64 {
    FREE + vcpu as u64 * 2 * PAGE_SIZE
}

/// Lets L1 on a vCPU that never ran run an L2 that starts at `entry` in L1's address space, with an
/// offset of `tsc_offset` ticks to L1's TSC. L1 intercepts only L2's calls.
pub(crate) fn prepare(vm: &Vm, vcpu: usize, entry: u64, tsc_offset: u64) -> Result<()> {
    let fd = vm.vcpus()[vcpu].fd();
    let mut sregs = fd.get_sregs().context("KVM_GET_SREGS")?;
    sregs.efer |= EFER_SVME;
    fd.set_sregs(&sregs).context("KVM_SET_SREGS with SVM")?;
    let vmcb = vmcb(vcpu);
    set_msr(&fd, MSR_VM_HSAVE_PA, vmcb + PAGE_SIZE)?;

    let store = |offset, value| {
        let word = vm.memory().word(vmcb + offset);
        word.store(value, Ordering::Relaxed);
    };
    let segment = |offset, selector: u16, attributes: u64| {
        let limit = u64::from(u32::MAX) << 32;
        store(offset, u64::from(selector) | attributes << 16 | limit);
    };
    store(INTERCEPTS, INTERCEPT_VMRUN_VMMCALL);
    store(TSC_OFFSET, tsc_offset);
    // Any except 0, the host's.
    store(ASID, 1);
    segment(CS, CODE_SELECTOR, CODE_ATTRIBUTES);
    for offset in [ES, SS, DS] {
        segment(offset, 0, DATA_ATTRIBUTES);
    }
    store(EFER, EFER_LME_LMA | EFER_SVME);
    store(CR0, CR0_PE_MP_ET_NE_PG);
    store(CR3, PML4);
    store(CR4, CR4_PAE);
    // As after a reset.
    store(DR6, 0xffff_0ff0);
    store(DR7, 0x400);
    store(PAT, 0x0007_0406_0007_0406);
    // Bit 1 is always set.
    store(RFLAGS, 2);
    store(RIP.into(), entry);
    Ok(())
}
