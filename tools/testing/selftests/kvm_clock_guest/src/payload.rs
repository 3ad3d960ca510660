// SPDX-License-Identifier: GPL-2.0-only

//! An ioctl argument in pages of its own: it may end at an inaccessible address, be longer than the
//! structure, or be write-protected.

use crate::mapping::Mapping;
use kvm_clock::{raw, VmClock};
use kvm_ioctls::VmFd;
use pvclock::abi::{ClockGuestVcpu, VmClockGuest};
use std::{ffi::c_void, io, mem::offset_of};
use zerocopy::IntoBytes;

pub use crate::mapping::PAGE;

/// Where the header is: two pages.
const HEADER: usize = 0;
/// Where the array is: one page.
const ARRAY: usize = 2 * PAGE;
const ARRAY_PAGE: usize = 2;
const PAGES: usize = 3;
/// The first inaccessible byte.
const END: usize = PAGES * PAGE;
/// The lowest address of the kernel's half.
const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;

/// A header and the array it points to.
#[derive(Debug)]
pub struct Payload {
    mapping: Mapping,
    /// Offsets into the mapping.
    header: usize,
    array: usize,
}

impl Payload {
    /// `clock`, all of it accessible.
    pub fn new(clock: &VmClock) -> io::Result<Self> {
        Self::at(clock, HEADER, ARRAY)
    }

    /// `clock` with only `bytes` of the header accessible.
    pub fn with_header_cut(clock: &VmClock, bytes: usize) -> io::Result<Self> {
        Self::at(clock, END - bytes.min(PAGE), ARRAY)
    }

    /// `clock` with only `entries` of the array accessible.
    pub fn with_array_cut(clock: &VmClock, entries: usize) -> io::Result<Self> {
        let bytes = entries * size_of::<ClockGuestVcpu>();
        Self::at(clock, HEADER, END - bytes.min(PAGE))
    }

    fn at(clock: &VmClock, header: usize, array: usize) -> io::Result<Self> {
        let mapping = Mapping::new(PAGES)?;
        let content = VmClockGuest {
            // CAST: the structure has some hundred bytes.
            size: size_of::<VmClockGuest>() as u32,
            // CAST: far fewer than 2^32.
            nr_vcpus: clock.vcpus.len() as u32,
            vcpus: mapping.at(array).addr() as u64,
            ..clock.header
        };
        mapping.write(array, clock.vcpus.as_bytes());
        mapping.write(header, content.as_bytes());
        Ok(Self {
            mapping,
            header,
            array,
        })
    }

    /// Write-protects the header, but not the array.
    pub fn protect_header(&self) -> io::Result<()> {
        self.mapping.protect(self.header / PAGE, libc::PROT_READ)
    }

    /// Write-protects the array, but not the header.
    pub fn protect_array(&self) -> io::Result<()> {
        assert_eq!(self.array / PAGE, ARRAY_PAGE);
        self.mapping.protect(ARRAY_PAGE, libc::PROT_READ)
    }

    /// Sets the size that the header claims.
    pub fn set_size(&self, size: u32) {
        self.mapping.write(self.header, &size.to_ne_bytes());
    }

    /// The size that the header claims.
    pub fn size(&self) -> u32 {
        self.word(offset_of!(VmClockGuest, size))
    }

    /// Sets the byte at `index` from the header's start, in the header's two pages, to 1.
    pub fn set_byte(&self, index: usize) {
        assert!(self.header + index < ARRAY);
        self.mapping.write(self.header + index, &[1]);
    }

    /// Sets the number of array entries that the header claims.
    pub fn set_nr_vcpus(&self, nr_vcpus: u32) {
        let offset = offset_of!(VmClockGuest, nr_vcpus);
        self.mapping
            .write(self.header + offset, &nr_vcpus.to_ne_bytes());
    }

    /// The number of array entries that the header claims.
    pub fn nr_vcpus(&self) -> u32 {
        self.word(offset_of!(VmClockGuest, nr_vcpus))
    }

    /// Sets the array's address to one in the kernel's half of the address space.
    pub fn point_array_into_kernel(&self) {
        let offset = offset_of!(VmClockGuest, vcpus);
        self.mapping
            .write(self.header + offset, &KERNEL_HALF.to_ne_bytes());
    }

    /// All accessible bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.mapping.read(0, END)
    }

    /// `KVM_GET_VM_CLOCK_GUEST` with it.
    pub fn get(&self, vm: &VmFd) -> kvm_clock::Result<()> {
        // SAFETY: No reference into the mapping exists, and the kernel cannot reach past the
        // inaccessible page at its end.
        unsafe { raw::get(vm, self.argument()) }
    }

    /// `KVM_SET_VM_CLOCK_GUEST` with it.
    pub fn set(&self, vm: &VmFd) -> kvm_clock::Result<()> {
        // SAFETY: As in `get()`.
        unsafe { raw::set(vm, self.argument()) }
    }

    /// The 32-bit word at `offset` of the header.
    fn word(&self, offset: usize) -> u32 {
        let bytes = self.mapping.read(self.header + offset, 4);
        u32::from_ne_bytes(bytes.try_into().expect("4 bytes"))
    }

    fn argument(&self) -> *mut c_void {
        self.mapping.at(self.header).cast()
    }
}
