// SPDX-License-Identifier: GPL-2.0-only

//! Arguments of the ioctls in pages of their own, so that they can end at an inaccessible address,
//! be longer than the structure, or be write-protected.

use kvm_clock::{raw, VmClock};
use kvm_ioctls::VmFd;
use pvclock::abi::{ClockGuestVcpu, VmClockGuest};
use std::{ffi::c_void, io, mem::offset_of, ptr::NonNull};
use vmm_sys_util::errno;
use zerocopy::IntoBytes;

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Where the header may be: two pages.
const HEADER: usize = 0;
/// Where the array may be: one page.
const ARRAY: usize = 2 * PAGE;
/// A page that nobody can access, the last one.
const GUARD: usize = 3 * PAGE;
const MAPPED: usize = 4 * PAGE;
/// The lowest address that no process can have.
const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;

/// A header and the array it points to.
///
/// # Invariants
///
/// `base` is the start of a private mapping of `MAPPED` bytes, readable below `GUARD`, that lives
/// as long as `self` and to which no Rust reference exists. `header` and `array` are offsets into
/// it, no higher than `GUARD`.
#[derive(Debug)]
pub struct Payload {
    base: NonNull<u8>,
    header: usize,
    array: usize,
}

impl Payload {
    /// `clock`, as a well-meaning caller would pass it.
    ///
    /// # Errors
    ///
    /// Those of `mmap()` and `mprotect()`.
    pub fn new(clock: &VmClock) -> io::Result<Self> {
        // SAFETY: A new anonymous mapping affects no other memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MAPPED,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).expect("mmap() never returns address 0 unasked");
        // INVARIANT: The mapping is new, and `drop()` alone ends it.
        let payload = Self {
            base,
            header: HEADER,
            array: ARRAY,
        };
        payload.protect(GUARD, libc::PROT_NONE)?;
        payload.put(clock);
        Ok(payload)
    }

    /// `clock` with only `bytes` of the header accessible.
    ///
    /// # Errors
    ///
    /// As of [`new`](Self::new).
    pub fn with_header_cut(clock: &VmClock, bytes: usize) -> io::Result<Self> {
        let mut payload = Self::new(clock)?;
        // INVARIANT: No higher than before the subtraction, which does not wrap for what fits.
        payload.header = GUARD - bytes.min(GUARD - ARRAY);
        payload.put(clock);
        Ok(payload)
    }

    /// `clock` with only `entries` of the array accessible.
    ///
    /// # Errors
    ///
    /// As of [`new`](Self::new).
    pub fn with_array_cut(clock: &VmClock, entries: usize) -> io::Result<Self> {
        let mut payload = Self::new(clock)?;
        // INVARIANT: As in `with_header_cut()`.
        payload.array = GUARD - (entries * size_of::<ClockGuestVcpu>()).min(GUARD - ARRAY);
        payload.put(clock);
        Ok(payload)
    }

    /// Write-protects the header, and leaves the array as it is.
    ///
    /// # Errors
    ///
    /// That of `mprotect()`.
    pub fn protect_header(&self) -> io::Result<()> {
        self.protect(HEADER, libc::PROT_READ)
    }

    /// Write-protects the array, and leaves the header as it is.
    ///
    /// # Errors
    ///
    /// That of `mprotect()`.
    pub fn protect_array(&self) -> io::Result<()> {
        self.protect(ARRAY, libc::PROT_READ)
    }

    /// Says that the header has `size` bytes.
    pub fn set_size(&self, size: u32) {
        self.write(self.header, &size.to_ne_bytes());
    }

    /// What the header says about its size.
    pub fn size(&self) -> u32 {
        self.word(offset_of!(VmClockGuest, size))
    }

    /// Sets the byte at `index` from the header's start to 1.
    ///
    /// # Panics
    ///
    /// If that is beyond the header's two pages.
    pub fn set_byte(&self, index: usize) {
        assert!(
            self.header + index < ARRAY,
            "byte {index} is not one of the header's pages"
        );
        self.write(self.header + index, &[1]);
    }

    /// Says that the array has `nr_vcpus` entries.
    pub fn set_nr_vcpus(&self, nr_vcpus: u32) {
        let offset = offset_of!(VmClockGuest, nr_vcpus);
        self.write(self.header + offset, &nr_vcpus.to_ne_bytes());
    }

    /// Says that the array is in the kernel's half of the address space.
    pub fn point_array_into_kernel(&self) {
        let offset = offset_of!(VmClockGuest, vcpus);
        self.write(self.header + offset, &KERNEL_HALF.to_ne_bytes());
    }

    /// All bytes below the guard page.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; GUARD];
        // SAFETY: By the type's invariants that much is readable; `bytes` is as long.
        unsafe { self.base.as_ptr().copy_to(bytes.as_mut_ptr(), GUARD) };
        bytes
    }

    /// What the header says about the array.
    pub fn nr_vcpus(&self) -> u32 {
        self.word(offset_of!(VmClockGuest, nr_vcpus))
    }

    /// `KVM_GET_VM_CLOCK_GUEST` with it.
    ///
    /// # Errors
    ///
    /// The errno.
    pub fn get(&self, vm: &VmFd) -> errno::Result<()> {
        // SAFETY: Wherever in the mapping header and array are, nobody holds a reference into it,
        // and what lies beyond its end cannot be reached past the guard page.
        unsafe { raw::get(vm, self.argument()) }
    }

    /// `KVM_SET_VM_CLOCK_GUEST` with it.
    ///
    /// # Errors
    ///
    /// The errno.
    pub fn set(&self, vm: &VmFd) -> errno::Result<()> {
        // SAFETY: As in `get()`.
        unsafe { raw::set(vm, self.argument()) }
    }

    /// The 32-bit word at `offset` of the header.
    fn word(&self, offset: usize) -> u32 {
        let at = self.header + offset;
        u32::from_ne_bytes(self.bytes()[at..at + 4].try_into().expect("4 bytes"))
    }

    fn argument(&self) -> *mut c_void {
        self.at(self.header).cast()
    }

    fn at(&self, offset: usize) -> *mut u8 {
        // SAFETY: Offsets are below `MAPPED`.
        unsafe { self.base.as_ptr().add(offset) }
    }

    fn put(&self, clock: &VmClock) {
        let header = VmClockGuest {
            // CAST: the structure has some hundred bytes.
            size: size_of::<VmClockGuest>() as u32,
            // CAST: far fewer than 2^32.
            nr_vcpus: clock.vcpus.len() as u32,
            vcpus: self.at(self.array).addr() as u64,
            ..clock.header
        };
        self.write(self.array, clock.vcpus.as_bytes());
        self.write(self.header, header.as_bytes());
    }

    /// Writes as much of `bytes` as is accessible.
    fn write(&self, offset: usize, bytes: &[u8]) {
        let len = bytes.len().min(GUARD - offset);
        // SAFETY: By the type's invariants, and cut short at the guard page.
        unsafe { self.at(offset).copy_from(bytes.as_ptr(), len) };
    }

    fn protect(&self, offset: usize, prot: libc::c_int) -> io::Result<()> {
        // SAFETY: The page is part of our mapping, to which no reference exists.
        match unsafe { libc::mprotect(self.at(offset).cast(), PAGE, prot) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants this is the whole mapping, and no reference is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), MAPPED) };
    }
}
