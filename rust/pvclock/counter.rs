// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR BSD-3-Clause

//! TSC values and TSC offsets: a type each, so that an exchange of two does not compile.
//!
//! All count ticks mod 2^64. Sums and differences wrap, on purpose, and the order of two values is
//! the sign of their wrapped difference.
//!
//! ```
//! use pvclock::{abi::ClockGuest, counter::GuestTsc};
//!
//! let _ = ClockGuest::default().kvmclock_ns(GuestTsc(7));
//! ```
//!
//! A host TSC where a guest TSC belongs does not compile:
//!
//! ```compile_fail,E0308
//! use pvclock::{abi::ClockGuest, counter::HostTsc};
//!
//! let _ = ClockGuest::default().kvmclock_ns(HostTsc(7));
//! ```

use core::fmt;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone,
            Copy,
            Default,
            PartialEq,
            Eq,
            Hash,
            FromBytes,
            IntoBytes,
            Immutable,
            KnownLayout, //
        )]
        #[cfg_attr(
            feature = "serde",
            derive(serde::Serialize, serde::Deserialize),
            serde(transparent)
        )]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// This value, `ticks` later.
            pub const fn wrapping_add(self, ticks: u64) -> Self {
                Self(self.0.wrapping_add(ticks))
            }

            /// This value, `ticks` earlier.
            pub const fn wrapping_sub(self, ticks: u64) -> Self {
                Self(self.0.wrapping_sub(ticks))
            }

            /// Ticks from `other` to this value.
            pub const fn since(self, other: Self) -> u64 {
                self.0.wrapping_sub(other.0)
            }

            /// Whether this value lies ahead of `other`.
            pub const fn is_ahead_of(self, other: Self) -> bool {
                // CAST: The sign of the wrapped difference is the order.
                (self.since(other) as i64) > 0
            }

            /// Whether this value lies in `first` to `last`.
            pub const fn is_between(self, first: Self, last: Self) -> bool {
                !first.is_ahead_of(self) && !self.is_ahead_of(last)
            }
        }

        // As plain numbers, also in structures and arrays.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

counter! {
    /// A value of the host's TSC, ticks.
    HostTsc
}

counter! {
    /// A value of a vCPU's L1 TSC, ticks.
    GuestTsc
}

counter! {
    /// A vCPU's L1 TSC offset, ticks: what is added to the scaled host TSC.
    TscOffset
}
