// SPDX-License-Identifier: GPL-2.0-only

//! Room for the vCPUs of a VM; for a few of them without an allocation.

use crate::pvclock::abi::ClockGuestVcpu;
use core::ops::{
    Deref,
    DerefMut, //
};
use kernel::prelude::*;

/// A few vCPUs, for the stack.
pub(crate) type Few = [ClockGuestVcpu; 4];

/// An array with an element for each vCPU.
pub(crate) enum Vcpus<'a> {
    /// No more than [`Few`].
    Few(&'a mut [ClockGuestVcpu]),
    /// More than that.
    Many(KVVec<ClockGuestVcpu>),
}

impl<'a> Vcpus<'a> {
    /// Room for `nr` vCPUs, zeroed: in `few`, which is, if it is large enough.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(few: &'a mut Few, nr: u32) -> Result<Self> {
        // CAST: `usize` has 64 bits.
        let len = nr as usize;
        Ok(match few.get_mut(..len) {
            Some(few) => Self::Few(few),
            None => {
                let flags = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
                Self::Many(KVVec::from_elem(ClockGuestVcpu::default(), len, flags)?)
            }
        })
    }
}

impl Deref for Vcpus<'_> {
    type Target = [ClockGuestVcpu];

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Few(vcpus) => vcpus,
            Self::Many(vcpus) => vcpus,
        }
    }
}

impl DerefMut for Vcpus<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Few(vcpus) => vcpus,
            Self::Many(vcpus) => vcpus,
        }
    }
}
