// SPDX-License-Identifier: GPL-2.0-only

//! Guest memory: a mapping of 64-bit words that the guest may change at any time.

use super::error::{Context, Result};
use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};
use vmm_sys_util::errno;

/// Guest-physical memory from address 0.
///
/// # Invariants
///
/// `words` is the start of a readable and writable mapping of `len` words that lives as long as
/// `self`. All accesses, including the guest's, are atomic.
#[derive(Debug)]
pub struct GuestMemory {
    words: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: By the type's invariants it is a slice of atomics, which is Send.
unsafe impl Send for GuestMemory {}
// SAFETY: By the type's invariants it is a slice of atomics, which is Sync.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// `size` bytes of zeros; `size` is a multiple of the page size.
    ///
    /// # Errors
    ///
    /// That of `mmap()`.
    pub fn new(size: u64) -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Self::map(size, flags, -1)
    }

    /// The first `size` bytes of `file`, a memfd of at least that size that nobody makes smaller;
    /// `size` is a multiple of the page size.
    ///
    /// # Errors
    ///
    /// That of `mmap()`.
    pub fn of_memfd(file: &File, size: u64) -> Result<Self> {
        Self::map(size, libc::MAP_SHARED, file.as_raw_fd())
    }

    fn map(size: u64, flags: libc::c_int, fd: libc::c_int) -> Result<Self> {
        // CAST: usize has 64 bits on x86-64.
        let size = size as usize;
        // SAFETY: A new mapping at an address of the kernel's choice affects no other memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(errno::Error::last()).context("mmap of guest memory");
        }
        let words =
            NonNull::new(address.cast()).expect("mmap() returns no null pointer without MAP_FIXED");
        // INVARIANT: The mapping is readable and writable, and `drop()` alone ends it.
        Ok(Self {
            words,
            len: size / size_of::<AtomicU64>(),
        })
    }

    /// All words, in order of address.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: The type's invariants; a page is aligned for words.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }

    /// The word at guest physical address `gpa`.
    ///
    /// # Panics
    ///
    /// If `gpa` is not a multiple of 8 inside the memory.
    pub fn word(&self, gpa: u64) -> &AtomicU64 {
        assert!(
            gpa % 8 == 0,
            "guest address {gpa:#x} is not aligned to a word"
        );
        // CAST: usize has 64 bits on x86-64.
        &self.words()[(gpa / 8) as usize]
    }

    /// Writes `bytes` at `gpa`; pads the last word with zeros.
    ///
    /// # Panics
    ///
    /// As [`word`](Self::word).
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(gpa + 8 * index as u64)
                .store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    /// A copy of the memory.
    pub fn to_vec(&self) -> Vec<u8> {
        self.words()
            .iter()
            .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
            .collect()
    }

    /// The number of the physical page behind each page; `None` if the kernel does not show them:
    /// it does to root, with `CONFIG_PROC_PAGE_MONITOR`.
    ///
    /// # Errors
    ///
    /// Those of `/proc/self/pagemap`.
    pub fn physical_pages(&self) -> io::Result<Option<Vec<u64>>> {
        const PAGE: u64 = 4096;
        // Documentation/admin-guide/mm/pagemap.rst
        const PAGE_NUMBER: u64 = (1 << 55) - 1;
        let mut entries = vec![0; (self.size() / PAGE * 8) as usize];
        // An entry is there once a page was accessed.
        for page in self.words().chunks(PAGE as usize / size_of::<AtomicU64>()) {
            page[0].load(Ordering::Relaxed);
        }
        let pagemap = match File::open("/proc/self/pagemap") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        pagemap.read_exact_at(&mut entries, self.host_address() / PAGE * 8)?;
        let numbers: Vec<u64> = entries
            .chunks_exact(8)
            .map(|entry| u64::from_le_bytes(entry.try_into().expect("8 bytes")) & PAGE_NUMBER)
            .collect();
        Ok((!numbers.contains(&0)).then_some(numbers))
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        (self.len * size_of::<AtomicU64>()) as u64
    }

    /// Address in this process.
    pub fn host_address(&self) -> u64 {
        self.words.addr().get() as u64
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants this is the whole mapping, and no reference remains.
        unsafe {
            libc::munmap(
                self.words.as_ptr().cast(),
                self.len * size_of::<AtomicU64>(),
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written() {
        let memory = GuestMemory::new(8192).unwrap();
        memory.write(4096, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(
            memory.word(4096).load(Ordering::Relaxed),
            0x0807_0605_0403_0201
        );
        let copy = memory.to_vec();
        assert_eq!(copy.len(), 8192);
        assert_eq!(copy[4096..4107], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0]);
    }
}
