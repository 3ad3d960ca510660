// SPDX-License-Identifier: GPL-2.0-only

//! The errnos that the documentation specifies for a call.

use kvm_clock_guest_selftests::prelude::*;
use std::collections::BTreeSet;

/// The errnos whose cause exists, or may exist as time passes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    errnos: BTreeSet<i32>,
    /// The call must fail.
    must_fail: bool,
}

impl Expected {
    /// Notes that the call must fail if `cause`, and may fail with `errno`.
    pub(crate) fn must(&mut self, errno: i32, cause: bool) {
        self.may(errno, cause);
        self.must_fail |= cause;
    }

    /// Notes that the call may fail with `errno` if `cause`.
    pub(crate) fn may(&mut self, errno: i32, cause: bool) {
        if cause {
            self.errnos.insert(errno);
        }
    }

    /// Notes whether the cause of `errno` exists before and after the call: the call must fail if
    /// both are true, and may fail if one is.
    pub(crate) fn between(&mut self, errno: i32, causes: [bool; 2]) {
        self.must(errno, causes == [true; 2]);
        self.may(errno, causes.contains(&true));
    }

    /// Whether the call must fail.
    pub(crate) fn must_fail(&self) -> bool {
        self.must_fail
    }

    /// Fails unless `result` is an expected one.
    pub(crate) fn check<T>(&self, result: Result<T, i32>) -> Result<()> {
        let got = match result {
            Ok(_) if !self.must_fail => return Ok(()),
            Ok(_) => "success".to_owned(),
            Err(errno) if self.errnos.contains(&errno) => return Ok(()),
            Err(errno) => errno_name(errno),
        };
        let mut expected: Vec<_> = self.errnos.iter().map(|&errno| errno_name(errno)).collect();
        if !self.must_fail {
            expected.push("success".to_owned());
        }
        bail!("{got}, expected {}", expected.join(" or "))
    }
}

/// The name of an errno that KVM returns.
pub(crate) fn errno_name(errno: i32) -> String {
    let name = match errno {
        libc::E2BIG => "E2BIG",
        libc::EBADF => "EBADF",
        libc::EBUSY => "EBUSY",
        libc::EFAULT => "EFAULT",
        libc::EINVAL => "EINVAL",
        libc::ENODATA => "ENODATA",
        libc::ENOTTY => "ENOTTY",
        libc::ENXIO => "ENXIO",
        libc::ERANGE => "ERANGE",
        libc::ESTALE => "ESTALE",
        libc::ETIME => "ETIME",
        _ => return format!("errno {errno}"),
    };
    name.to_owned()
}
