// SPDX-License-Identifier: GPL-2.0-only

//! Faults that kselftest-atomicity does not inject, which fails each user access and each
//! allocation of small VMs: in arrays that have pages of their own, in the attribute, and in the
//! loading of the module. Needs root.
//!
//! Each failure gives `ENOMEM` or `EFAULT`, changes nothing, and can be retried. KMEMLEAK checks
//! that nothing leaks.

mod attribute;
mod large;
mod loading;
mod muted;

use kvm_clock_guest_selftests::{
    fault::{Faults, Kind},
    prelude::*,
};
use large::Large;
use std::{cell::OnceCell, io};

/// More fault points than any call has.
const ENDLESS: u32 = 5000;

/// What the cases share.
struct Host {
    kvm: Kvm,
    /// Made by the first case that needs it.
    large: OnceCell<Large>,
}

/// How often a call failed, by errno, and succeeded despite a fault.
#[derive(Debug, Default)]
struct Outcomes {
    efault: u32,
    enomem: u32,
    survived: u32,
}

impl Outcomes {
    /// Counts a call with fault `nth` that ended with `errno`; it may fail only if a fault was
    /// `injected`.
    fn count(&mut self, nth: u32, errno: Option<i32>, injected: bool) -> Result<()> {
        match errno {
            None => self.survived += u32::from(injected),
            Some(libc::EFAULT) if injected => self.efault += 1,
            Some(libc::ENOMEM) if injected => self.enomem += 1,
            Some(errno) => bail!(
                "fault {nth}, injected: {injected}, led to {}",
                io::Error::from_raw_os_error(errno)
            ),
        }
        Ok(())
    }
}

/// Makes `call` with each fault of `kind` in turn, until there is none; `call` injects it, and
/// returns the errno, whether there was a fault, and an error if anything else was wrong.
fn each(
    kind: Kind,
    mut call: impl FnMut(&dyn Fn() -> Result<Faults>, u32) -> Result<(Option<i32>, bool)>,
) -> Result<Outcomes> {
    let mut outcomes = Outcomes::default();
    for nth in 1..ENDLESS {
        let (errno, injected) = call(&|| Faults::new(kind), nth)?;
        if errno.is_none() && !injected {
            return Ok(outcomes);
        }
        outcomes.count(nth, errno, injected)?;
    }
    bail!("still a fault after {outcomes:?}")
}

fn main() -> ExitCode {
    let mut cases = large::cases();
    // kselftest-vcpu-ioctl checks that the attribute does not exist on other hosts.
    if require::host_scales() {
        cases.push(Case::new(
            "KVM_VCPU_TSC_SCALE: each user access fails",
            attribute::each_user_access,
        ));
    }
    cases.push(Case::new(
        "loading the module: each fault point fails",
        loading::each_fault,
    ));
    ktap::main(
        || {
            Ok(Host {
                kvm: require::clock_guest()?,
                large: OnceCell::new(),
            })
        },
        cases,
    )
}
