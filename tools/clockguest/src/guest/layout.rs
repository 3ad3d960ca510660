// SPDX-License-Identifier: GPL-2.0-only

//! The guest's physical memory, which is identity-mapped.
//!
//! ```text
//! 0x1000  PML4, 0x2000 PDPT, 0x3000 PD: one 2 MiB page at 0
//! 0x4000  code
//! 0x5000  maxima shared by all vCPUs
//! 0x8000  per vCPU: a page for the pvclock record, a page for the sample area and the stack
//! ```

use std::mem::size_of;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;
/// Top-level page table.
pub const PML4: u64 = 0x1000;
/// Second-level page table.
pub const PDPT: u64 = 0x2000;
/// Third-level page table, with one large page.
pub const PD: u64 = 0x3000;
/// The guest's code.
pub const CODE: u64 = 0x4000;
/// [`SHARED_MAX_TSC`] and [`SHARED_MAX_NS`].
pub const SHARED: u64 = 0x5000;

/// Page table entry: the page is present and writable.
const PTE_PRESENT_WRITE: u64 = 0x3;
/// Page table entry: it maps a large page.
const PTE_LARGE: u64 = 0x80;
/// Page table entry: the bits that the CPU sets.
pub const PTE_ACCESSED_DIRTY: u64 = 0x60;
/// The address and the only entry of each page table.
pub const PAGE_TABLES: [(u64, u64); 3] = [
    (PML4, PDPT | PTE_PRESENT_WRITE),
    (PDPT, PD | PTE_PRESENT_WRITE),
    (PD, PTE_LARGE | PTE_PRESENT_WRITE),
];

const VCPUS: u64 = 0x8000;
const VCPU_STRIDE: u64 = 2 * PAGE_SIZE;
/// Bytes that the large page maps.
const MAPPED: u64 = 2 << 20;

/// The number of vCPUs that fit into the mapped memory.
// CAST: 252.
pub const MAX_VCPUS: u32 = ((MAPPED - VCPUS) / VCPU_STRIDE) as u32;

/// In the shared page: highest TSC (ticks) that any vCPU read.
pub const SHARED_MAX_TSC: usize = 0;
/// In the shared page: highest kvmclock (ns) that any vCPU read; on a cache line of its own.
pub const SHARED_MAX_NS: usize = 64;

/// In the sample area: the number of published samples, written last: it marks the complete slots
/// of the ring.
pub const AREA_COUNT: usize = 0;
/// In the sample area: how often the TSC was below the vCPU's own previous reading.
pub const AREA_OWN_TSC: usize = 8;
/// In the sample area: how often kvmclock was below the vCPU's own previous reading.
pub const AREA_OWN_NS: usize = 16;
/// In the sample area: how often the TSC was below the maximum before the reading.
pub const AREA_CROSS_TSC: usize = 24;
/// In the sample area: how often kvmclock was below the maximum before the reading.
pub const AREA_CROSS_NS: usize = 32;
/// In the sample area: the last step back of the vCPU's own kvmclock: the readings before and after
/// it (ns), and the TSC of the latter (ticks).
pub const AREA_STEP: usize = 40;
/// In the sample area: the last [`RING_LEN`] samples.
pub const AREA_RING: usize = 1024;

/// Samples in the ring; a power of two.
pub const RING_LEN: usize = 32;
/// Log2 of the bytes of a slot.
pub const SLOT_SHIFT: u32 = 6;
/// In a slot: the sample's number, from 0.
pub const SLOT_NUMBER: usize = 0;
/// In a slot: RDTSC (ticks).
pub const SLOT_TSC: usize = 8;
/// In a slot: kvmclock (ns) at that TSC, as the guest computes it.
pub const SLOT_NS: usize = 16;
/// In a slot: the pvclock record of that computation.
pub const SLOT_RECORD: usize = 24;

const _: () = {
    assert!(RING_LEN.is_power_of_two());
    assert!(SLOT_RECORD + size_of::<pvclock::abi::ClockGuest>() <= 1 << SLOT_SHIFT);
    // The stack, which holds a return address, grows down from the page's end.
    assert!(AREA_RING + (RING_LEN << SLOT_SHIFT) + 256 <= PAGE_SIZE as usize);
};

/// The memory size of a guest with `nr_vcpus` vCPUs, bytes.
pub const fn memory_size(nr_vcpus: u32) -> u64 {
    VCPUS + nr_vcpus as u64 * VCPU_STRIDE
}

/// Guest physical address of vCPU `index`'s pvclock record.
pub const fn pvclock_page(index: usize) -> u64 {
    VCPUS + index as u64 * VCPU_STRIDE
}

/// Guest physical address of vCPU `index`'s sample area.
pub const fn sample_area(index: usize) -> u64 {
    pvclock_page(index) + PAGE_SIZE
}
