// SPDX-License-Identifier: GPL-2.0-only

//! Bytes at the end of accessible memory.

use kvm_clock_guest_selftests::mapping::{Mapping, PAGE};
use std::io;

/// A page of zeros, followed by an inaccessible one.
#[derive(Debug)]
pub(crate) struct Edge(Mapping);

impl Edge {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Mapping::new(1)?))
    }

    /// Writes `bytes` so that only the first `accessible` of them can be accessed; returns their
    /// address.
    pub(crate) fn put(&self, bytes: &[u8], accessible: usize) -> usize {
        let start = PAGE - accessible;
        self.0.write(start, bytes);
        // KVM gets the address, hence exposed.
        self.0.at(start).expose_provenance()
    }

    /// Write-protects the accessible page.
    pub(crate) fn write_protect(&self) -> io::Result<()> {
        self.0.protect(0, libc::PROT_READ)
    }
}
