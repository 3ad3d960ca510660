// SPDX-License-Identifier: GPL-2.0-only

//! KVM_VCPU_TSC_SCALE: the hook's own copy to user memory.

use crate::{each, Host};
use kvm_clock::tsc_scale;
use kvm_clock_guest_selftests::{fault::Kind, prelude::*};

/// KVM reads which attribute it is, and then writes it: two accesses.
const ACCESSES: u32 = 2;

pub(crate) fn each_user_access(host: &Host) -> Result<()> {
    let vm = pinned(&host.kvm, 1)?;
    // The vCPU's thread needs the descriptor between the calls.
    let read = || tsc_scale(&vm.vcpus()[0].fd());
    let expected = read()?;
    let mut outcomes = None;
    ensure_changes_nothing(&vm, |_| {
        outcomes = Some(each(Kind::UserAccess, |faults, nth| {
            let (result, injected) = faults()?.nth(nth, read)?;
            if let Ok(scale) = result {
                ensure_eq_hex!(scale, expected, "the ratio");
            }
            let errno = result.err().map(|error: kvm_clock::Errno| error.errno());
            Ok((errno, injected))
        })?);
        Ok(())
    })?;
    note!("{outcomes:?}");
    ensure!(
        outcomes
            .as_ref()
            .is_some_and(|o| (o.efault, o.survived) == (ACCESSES, 0)),
        "faults led to {outcomes:?}, expected {ACCESSES} times EFAULT"
    );
    Ok(())
}
