// SPDX-License-Identifier: GPL-2.0-only

//! Hyper-V's reference counter, as an MSR and as a page.

use crate::{state::Pinned, Consumer};
use kvm_clock_guest_selftests::{
    hyperv::{enable, enable_valid_tsc_page, reference_count, TscPage, UNIT_NS},
    prelude::*,
};

pub(crate) const REFERENCE_COUNTER: Consumer = Consumer {
    name: "Hyper-V's reference counter",
    enable: |vm| enable(&vm.vcpus()[0].fd()),
    check: |vm, pinned| {
        counter(vm, pinned)?;
        run_a_little(vm)?;
        counter(vm, pinned)
    },
};

/// KVM computes the MSR from the page once that exists.
pub(crate) const REFERENCE_COUNTER_WITH_PAGE: Consumer = Consumer {
    name: "Hyper-V's reference counter beside the TSC page",
    enable: enable_page,
    check: |vm, pinned| {
        counter(vm, pinned)?;
        run_a_little(vm)?;
        counter(vm, pinned)
    },
};

pub(crate) const TSC_PAGE: Consumer = Consumer {
    name: "Hyper-V's TSC page",
    enable: enable_page,
    check: |vm, pinned| {
        run_a_little(vm)?;
        page(vm, pinned)
    },
};

/// In a page that `clockguest::guest::layout` leaves free.
const PAGE: u64 = 0x6000;
const CALLS: usize = 100;

/// Enables a valid page, which SET must renew.
fn enable_page(vm: &Vm) -> Result<()> {
    enable(&vm.vcpus()[0].fd())?;
    enable_valid_tsc_page(vm, PAGE)
}

/// The MSR may differ by one unit from the record if it is computed from the page, see [`page`].
fn counter(vm: &Vm, pinned: &Pinned) -> Result<()> {
    for _ in 0..CALLS {
        let before = rdtsc_ordered();
        let count = reference_count(&vm.vcpus()[0].fd())?;
        let after = rdtsc_ordered();
        let [least, most] = [before, after].map(|host_tsc| pinned.ns(host_tsc) / UNIT_NS);
        ensure!(
            (least.wrapping_sub(1)..=most + 1).contains(&count),
            "the reference counter is {count}, expected {least} to {most} from the record"
        );
    }
    Ok(())
}

/// The page is the record's function of the TSC of all vCPUs, except that it counts from TSC 0 and
/// rounds differently: one unit.
///
/// All vCPUs share it, so it is invalid, and the guest must read the MSR, if their TSCs differ.
fn page(vm: &Vm, pinned: &Pinned) -> Result<()> {
    /// Guest ticks from now on, up to some years.
    const LATER: [u64; 5] = [0, 1, 1_000_000_007, 1 << 42, 1 << 57];

    let page = TscPage::of(vm, PAGE);
    if pinned.ahead.iter().any(|&ahead| ahead != 0) {
        ensure!(
            page.sequence == 0,
            "the TSC page is valid although vCPUs' TSCs differ: {page:x?}"
        );
        return counter(vm, pinned);
    }
    ensure!(page.sequence != 0, "the TSC page is invalid: {page:x?}");
    for _ in 0..CALLS {
        let guest_tsc = pinned.transform.guest_tsc(rdtsc_ordered());
        for later in LATER {
            let guest_tsc = guest_tsc.wrapping_add(later);
            let count = page.reference_count(guest_tsc);
            let ns = pinned.record.kvmclock_ns(guest_tsc);
            ensure!(
                count.abs_diff(ns / UNIT_NS) <= 1,
                "at TSC {guest_tsc} the TSC page gives {count}, the record {ns} ns"
            );
        }
    }
    Ok(())
}
