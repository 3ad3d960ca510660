// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The error of an ioctl.

use core::fmt;

/// The result of an ioctl.
pub type Result<T> = core::result::Result<T, Errno>;

/// The errno of an ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Its number, e.g. `libc::ENOTTY`.
    pub const fn errno(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[cfg(feature = "std")]
        return std::io::Error::from_raw_os_error(self.0).fmt(f);
        #[cfg(not(feature = "std"))]
        write!(f, "errno {}", self.0)
    }
}

impl core::error::Error for Errno {}

#[cfg(feature = "std")]
impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}
