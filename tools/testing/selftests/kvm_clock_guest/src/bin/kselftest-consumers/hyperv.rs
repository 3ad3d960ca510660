// SPDX-License-Identifier: GPL-2.0-only

//! Hyper-V's reference counter, as an MSR and as a page.

use crate::{state::Pinned, Consumer};
use anyhow::{ensure, Result};
use clockguest::{host::rdtsc_ordered, vmm::Vm};
use kvm_clock_guest_selftests::{
    fixture::run_a_little,
    hyperv::{enable, enable_tsc_page, reference_count, TscPage, UNIT_NS},
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

/// KVM computes the MSR from the page once that is written.
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

/// Ends with a valid page, so that one which SET ought to renew is there to be mistaken for it.
fn enable_page(vm: &Vm) -> Result<()> {
    enable(&vm.vcpus()[0].fd())?;
    enable_tsc_page(&vm.vcpus()[0].fd(), PAGE)?;
    run_a_little(vm)?;
    let page = TscPage::of(vm, PAGE);
    ensure!(page.sequence != 0, "KVM wrote no TSC page: {page:x?}");
    Ok(())
}

/// Computed from the page it may be one unit off the record's, see [`page`].
fn counter(vm: &Vm, pinned: &Pinned) -> Result<()> {
    for _ in 0..CALLS {
        let before = rdtsc_ordered();
        let count = reference_count(&vm.vcpus()[0].fd())?;
        let after = rdtsc_ordered();
        let [least, most] = [before, after].map(|host_tsc| pinned.ns(host_tsc) / UNIT_NS);
        ensure!(
            (least.wrapping_sub(1)..=most + 1).contains(&count),
            "the reference counter is {count}, by the record it was {least} to {most} meanwhile"
        );
    }
    Ok(())
}

/// The page's function is the record's, at the TSC of all vCPUs, but that it counts from TSC 0 and
/// rounds differently: one unit.
///
/// It serves all vCPUs, so it is invalid, and the guest told to read the MSR, where their TSCs
/// differ.
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
                "at TSC {guest_tsc} the TSC page says {count}, the record {ns} ns"
            );
        }
    }
    Ok(())
}
