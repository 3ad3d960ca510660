// SPDX-License-Identifier: GPL-2.0-only

//! Bytes at the end of accessible memory.

use std::{io, ptr::NonNull};

const PAGE: usize = 4096;

/// A page of zeros that is followed by one nobody can access.
///
/// # Invariants
///
/// `base` is the start of a private mapping of two pages, the first readable, that lives as long as
/// `self` and to which no Rust reference exists.
#[derive(Debug)]
pub(crate) struct Edge {
    base: NonNull<u8>,
}

impl Edge {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: A new anonymous mapping affects no other memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                2 * PAGE,
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
        let edge = Self { base };
        edge.protect(1, libc::PROT_NONE)?;
        Ok(edge)
    }

    /// Puts `bytes` where only the first `accessible` of them are; returns their address.
    ///
    /// # Panics
    ///
    /// If more are accessible than a page has.
    pub(crate) fn put(&self, bytes: &[u8], accessible: usize) -> usize {
        let start = PAGE - accessible;
        let len = bytes.len().min(accessible);
        // SAFETY: By the type's invariants, and cut short at the end of the page.
        unsafe { self.base.as_ptr().add(start).copy_from(bytes.as_ptr(), len) };
        // KVM gets to know of it, hence exposed.
        self.base.as_ptr().expose_provenance() + start
    }

    /// Write-protects the accessible page.
    pub(crate) fn write_protect(&self) -> io::Result<()> {
        self.protect(0, libc::PROT_READ)
    }

    fn protect(&self, page: usize, prot: libc::c_int) -> io::Result<()> {
        // SAFETY: The page is part of our mapping, to which no reference exists.
        match unsafe { libc::mprotect(self.base.as_ptr().add(page * PAGE).cast(), PAGE, prot) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants this is the whole mapping, and no reference is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), 2 * PAGE) };
    }
}
