// SPDX-License-Identifier: GPL-2.0-only

//! Memory for the ioctls' arguments: writable, read-only and inaccessible pages side by side. A
//! second, writable mapping of the same memory fills and checks them.

use crate::extremes::{any64, one_in, pick, Rng};
use rand::Rng as _;
use std::{
    arch::asm,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::AtomicU8,
};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;

const NONE: libc::c_int = libc::PROT_NONE;
const RO: libc::c_int = libc::PROT_READ;
const RW: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// How the ioctls may access each page. A header takes at most a page and its neighbour, an array
/// far less.
const PAGES: [libc::c_int; 13] = [NONE, RW, RW, NONE, RW, RW, NONE, RO, RO, RW, RO, NONE, NONE];
const MAPPED: usize = PAGES.len() * PAGE;

/// Where headers and records usually are.
pub(crate) const HEADER: usize = PAGE;
/// Where arrays usually are.
pub(crate) const ARRAY: usize = 4 * PAGE;
/// Bytes at either.
pub(crate) const ROOM: usize = 2 * PAGE;
/// Boundaries between pages that differ.
const EDGES: [usize; 7] = [
    PAGE,
    3 * PAGE,
    4 * PAGE,
    6 * PAGE,
    7 * PAGE,
    9 * PAGE,
    10 * PAGE,
];

/// The pages.
///
/// # Invariants
///
/// `user` and `alias` are mappings of the same `MAPPED` bytes that live as long as `self`, to which
/// no Rust reference but to atomic bytes exists. The latter is readable and writable.
#[derive(Debug)]
pub(crate) struct Arena {
    user: NonNull<u8>,
    alias: NonNull<u8>,
    file: OwnedFd,
}

// SAFETY: By the type's invariants only atomic bytes are shared.
unsafe impl Sync for Arena {}

impl Arena {
    /// New pages of zeros.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: The name is a string.
        let file = unsafe { libc::memfd_create(c"kselftest-fuzz".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: It was just opened, and nothing else owns it.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        // SAFETY: The descriptor is open, and the length positive.
        if unsafe { libc::ftruncate(file.as_raw_fd(), MAPPED as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let map = || {
            // SAFETY: A new mapping affects no other memory.
            let address = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    MAPPED,
                    RW,
                    libc::MAP_SHARED,
                    file.as_raw_fd(),
                    0,
                )
            };
            if address == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(NonNull::new(address.cast()).expect("mmap() never returns address 0 unasked"))
        };
        // INVARIANT: Both are whole mappings of the file, and `drop()` alone ends them.
        let arena = Self {
            user: map()?,
            alias: map()?,
            file,
        };
        for page in 0..PAGES.len() {
            arena.restore(page)?;
        }
        Ok(arena)
    }

    /// The address of the byte at `offset` in the mapping that the ioctls access.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.user.addr().get() as u64 + offset as u64
    }

    /// The descriptor of the memory.
    pub(crate) fn file(&self) -> libc::c_int {
        self.file.as_raw_fd()
    }

    /// Maps a page with its protection in [`PAGES`].
    pub(crate) fn restore(&self, page: usize) -> io::Result<()> {
        self.map(page, PAGES[page])
    }

    /// Maps a page again, with `prot`; `PROT_NONE` replaces it with other memory.
    pub(crate) fn map(&self, page: usize, prot: libc::c_int) -> io::Result<()> {
        assert!(page < PAGES.len());
        let (flags, file) = match prot {
            NONE => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            _ => (libc::MAP_SHARED, self.file.as_raw_fd()),
        };
        // SAFETY: The page is within our mapping, to which by the type's invariants no reference
        // exists.
        let address = unsafe {
            libc::mmap(
                self.user.as_ptr().add(page * PAGE).cast(),
                PAGE,
                prot,
                flags | libc::MAP_FIXED,
                file,
                (page * PAGE) as libc::off_t,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// A byte, with any protection of its page.
    pub(crate) fn byte(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < MAPPED);
        // SAFETY: By the type's invariants it is within a writable mapping, and all
        // other accesses are to atomic bytes, too.
        unsafe { self.alias.add(offset).cast::<AtomicU8>().as_ref() }
    }

    /// Stores `bytes` as far as the pages reach.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let len = bytes.len().min(MAPPED.saturating_sub(offset));
        // SAFETY: `len` bytes at `offset` are within a writable mapping.
        unsafe {
            copy(
                self.alias.as_ptr().wrapping_add(offset),
                bytes.as_ptr(),
                len,
            )
        };
    }

    /// `len` bytes; fewer near the end of the pages.
    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.min(MAPPED.saturating_sub(offset))];
        self.read_into(offset, &mut bytes);
        bytes
    }

    /// Fills `bytes`, which must not reach beyond the pages.
    fn read_into(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset + bytes.len() <= MAPPED);
        let from = self.alias.as_ptr().wrapping_add(offset);
        // SAFETY: As asserted, the bytes are within a readable mapping.
        unsafe { copy(bytes.as_mut_ptr(), from, bytes.len()) };
    }

    /// The value at `offset`; `None` if it reaches beyond the pages.
    pub(crate) fn value<T: FromBytes + IntoBytes>(&self, offset: usize) -> Option<T> {
        let mut value = T::new_zeroed();
        if offset + size_of::<T>() > MAPPED {
            return None;
        }
        self.read_into(offset, value.as_mut_bytes());
        Some(value)
    }

    /// The offset of `address`, if it is one of ours.
    pub(crate) fn offset(&self, address: u64) -> Option<usize> {
        // CAST: `usize` has 64 bits.
        let offset = address.wrapping_sub(self.address(0)) as usize;
        (offset < MAPPED).then_some(offset)
    }

    /// Whether an ioctl can read `len` bytes at `address`.
    pub(crate) fn is_readable(&self, address: u64, len: usize) -> bool {
        self.allows(address, len, RO)
    }

    /// Whether an ioctl can write `len` bytes at `address`.
    pub(crate) fn is_writable(&self, address: u64, len: usize) -> bool {
        self.allows(address, len, RW)
    }

    fn allows(&self, address: u64, len: usize, prot: libc::c_int) -> bool {
        let Some(offset) = self.offset(address) else {
            return len == 0;
        };
        let pages = offset / PAGE..(offset + len).div_ceil(PAGE);
        len == 0
            || PAGES
                .get(pages)
                .is_some_and(|pages| pages.iter().all(|page| page & prot == prot))
    }

    /// An address for `len` bytes near offset `usual`, usually a writable one.
    pub(crate) fn place(&self, rng: &mut Rng, usual: usize, len: usize) -> u64 {
        let len = len.min(ROOM);
        let start = if one_in(rng, 4) {
            // The last byte is the last one accessible.
            ROOM - len
        } else {
            rng.random_range(0..=ROOM - len)
        };
        self.address(usual + start)
    }

    /// An address that is probably invalid for `len` bytes.
    pub(crate) fn wrong_place(&self, rng: &mut Rng, len: usize) -> u64 {
        /// The lowest address of the kernel's half.
        const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;
        /// The lowest non-canonical address.
        const NON_CANONICAL: u64 = 0x0000_8000_0000_0000;

        match rng.random_range(0..8) {
            0 => rng.random_range(0..PAGE as u64),
            1 => KERNEL_HALF | any64(rng),
            2 => pick(rng, &[NON_CANONICAL, KERNEL_HALF - 1]).wrapping_sub(rng.random_range(0..2)),
            3 => u64::MAX - rng.random_range(0..2 * len as u64),
            // Around a boundary.
            _ => {
                let edge = pick(rng, &EDGES);
                self.address(edge.saturating_sub(rng.random_range(0..=len)))
            }
        }
    }
}

/// Copies bytes that another thread may change at the same time: each byte is copied as it was
/// before or after that change.
///
/// # Safety
///
/// `len` bytes are writable at `to` and readable at `from`; all other accesses to them are atomic.
unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: As the caller promises. The direction flag is clear by the ABI.
    unsafe {
        asm!(
            "rep movsb",
            inout("rdi") to => _,
            inout("rsi") from => _,
            inout("rcx") len => _,
            options(nostack, preserves_flags),
        );
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for mapping in [self.user, self.alias] {
            // SAFETY: By the type's invariants these are whole mappings, and no reference is left.
            unsafe { libc::munmap(mapping.as_ptr().cast(), MAPPED) };
        }
    }
}
