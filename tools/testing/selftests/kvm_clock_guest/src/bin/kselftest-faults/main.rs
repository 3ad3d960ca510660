// SPDX-License-Identifier: GPL-2.0-only

//! Where kselftest-atomicity, which fails each user access and each allocation of small VMs, does
//! not get: arrays that have pages of their own, the attribute, and the loading of the module.
//! Needs root.
//!
//! Whatever fails, it is said by `ENOMEM` or `EFAULT`, nothing has changed, and it can be done
//! again. That nothing is left behind is for KMEMLEAK to see.

mod attribute;
mod hushed;
mod large;
mod loading;

use anyhow::{bail, Result};
use clockguest::host::open_kvm;
use kvm_clock_guest_selftests::{
    fault::{Faults, Kind},
    ktap::{self, Case},
    require,
};
use kvm_ioctls::Kvm;
use large::Large;
use std::{cell::OnceCell, io, process::ExitCode};

/// No call has as many fault points.
const ENDLESS: u32 = 5000;

/// What the cases share.
struct Host {
    kvm: Kvm,
    /// Made by the first case that needs it.
    large: OnceCell<Large>,
}

/// How often a call failed with which errno, and succeeded in spite of a fault.
#[derive(Debug, Default)]
struct Outcomes {
    efault: u32,
    enomem: u32,
    survived: u32,
}

impl Outcomes {
    /// Counts a call with fault `nth`, which ended with this errno, and in which there was a fault
    /// or was not: only then may it have failed, and only so.
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

/// Makes `call` with one fault of `kind` after the other, until it comes to none; `call` injects
/// it, and returns the errno, whether there was a fault, and an error if anything but the fault was
/// wrong.
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
    // Where there is no attribute kselftest-vcpu-ioctl has it refused.
    if open_kvm(false).is_ok_and(|kvm| require::scales(&kvm)) {
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
