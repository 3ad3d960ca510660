// SPDX-License-Identifier: GPL-2.0-only

//! Pages for ioctl arguments that must end at an inaccessible address, or be write-protected.

use std::{io, ptr::NonNull};

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// Pages, the last of which nobody can access.
///
/// # Invariants
///
/// `base` is the start of a private mapping of `pages` pages, readable except for the last, that
/// lives as long as `self` and to which no Rust reference exists.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    pages: usize,
}

impl Mapping {
    /// `pages` pages of zeros and one that nobody can access.
    pub fn new(pages: usize) -> io::Result<Self> {
        let pages = pages + 1;
        // SAFETY: A new anonymous mapping affects no other memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                pages * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).expect("mmap() never chooses address 0");
        // INVARIANT: The mapping is new, and `drop()` alone ends it.
        let mapping = Self { base, pages };
        mapping.protect(pages - 1, libc::PROT_NONE)?;
        Ok(mapping)
    }

    /// Accessible bytes.
    pub fn size(&self) -> usize {
        (self.pages - 1) * PAGE
    }

    /// The address of the byte at `offset`, which is at most [`size`](Self::size).
    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.size());
        // SAFETY: As asserted, it is inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Writes as many of `bytes` at `offset` as are accessible.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let len = bytes.len().min(self.size() - offset);
        // SAFETY: By the type's invariants, and cut at the end of the accessible pages.
        unsafe { self.at(offset).copy_from(bytes.as_ptr(), len) };
    }

    /// Copies `len` accessible bytes at `offset`.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= self.size());
        let mut bytes = vec![0; len];
        // SAFETY: As asserted, that much is readable; `bytes` is as long.
        unsafe { self.at(offset).copy_to(bytes.as_mut_ptr(), len) };
        bytes
    }

    /// Changes the protection of one page.
    pub fn protect(&self, page: usize, prot: libc::c_int) -> io::Result<()> {
        assert!(page < self.pages);
        let address = self.base.as_ptr().wrapping_add(page * PAGE);
        // SAFETY: The page is part of our mapping, to which no reference exists.
        match unsafe { libc::mprotect(address.cast(), PAGE, prot) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants this is the whole mapping, and no reference is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.pages * PAGE) };
    }
}
