// SPDX-License-Identifier: GPL-2.0-only

//! ABI structures as what user memory holds.

use kernel::transmute::FromBytes;

/// A structure that is read from user memory as a whole.
#[repr(transparent)]
pub(crate) struct Payload<T>(pub(crate) T);

// SAFETY: zerocopy's derive has checked that every bit pattern is a `T`, and `Self` is transparent.
unsafe impl<T: zerocopy::FromBytes> FromBytes for Payload<T> {}
