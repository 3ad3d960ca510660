// SPDX-License-Identifier: GPL-2.0-only

//! Room for the vCPUs of a VM; for a few of them without an allocation.

use crate::pvclock::abi::ClockGuestVcpu;
use core::ops::{
    Deref,
    DerefMut, //
};
use kernel::prelude::*;

/// vCPUs that fit the stack.
const FEW: usize = 8;

/// An array with an element for each vCPU.
pub(crate) enum Vcpus {
    /// This many, on the stack.
    Few(usize, [ClockGuestVcpu; FEW]),
    /// More than that.
    Many(KVVec<ClockGuestVcpu>),
}

impl Vcpus {
    /// Room for `nr` vCPUs, zeroed.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(nr: u32) -> Result<Self> {
        // CAST: `usize` has 64 bits.
        let len = nr as usize;
        Ok(if len <= FEW {
            Self::Few(len, [ClockGuestVcpu::default(); FEW])
        } else {
            let flags = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
            Self::Many(KVVec::from_elem(ClockGuestVcpu::default(), len, flags)?)
        })
    }
}

impl Deref for Vcpus {
    type Target = [ClockGuestVcpu];

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Few(len, vcpus) => &vcpus[..*len],
            Self::Many(vcpus) => vcpus,
        }
    }
}

impl DerefMut for Vcpus {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Few(len, vcpus) => &mut vcpus[..*len],
            Self::Many(vcpus) => vcpus,
        }
    }
}
