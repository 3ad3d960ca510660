// SPDX-License-Identifier: GPL-2.0-only

//! Hyper-V's reference counter, as an MSR and as a page.

use crate::{state::Pinned, Consumer};
use kvm_clock_guest_selftests::{
    hyperv::{enable, enable_valid_tsc_page, ensure_counter, TscPage},
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

/// Enables a valid page, which SET must renew.
fn enable_page(vm: &Vm) -> Result<()> {
    enable(&vm.vcpus()[0].fd())?;
    enable_valid_tsc_page(vm, PAGE)
}

fn counter(vm: &Vm, pinned: &Pinned) -> Result<()> {
    ensure_counter(&vm.vcpus()[0].fd(), |host_tsc| pinned.ns(host_tsc))
}

/// All vCPUs share the page, so it is invalid, and the guest must read the MSR, if their TSCs
/// differ.
fn page(vm: &Vm, pinned: &Pinned) -> Result<()> {
    let page = TscPage::of(vm, PAGE);
    if pinned.ahead.iter().all(|&ahead| ahead == 0) {
        return page.ensure_agrees(&pinned.record, pinned.transform);
    }
    ensure!(
        page.sequence == 0,
        "the TSC page is valid although vCPUs' TSCs differ: {page:x?}"
    );
    counter(vm, pinned)
}
