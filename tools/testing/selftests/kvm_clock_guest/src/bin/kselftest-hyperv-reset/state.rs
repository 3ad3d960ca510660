// SPDX-License-Identifier: GPL-2.0-only

//! The reference counter, and what it should be.

use kvm_clock_guest_selftests::{
    hyperv::{self, enable, enable_valid_tsc_page, TscPage},
    prelude::*,
};
use pvclock_reference::arithmetic::extended_kvmclock_ns;

/// When the guest enables the TSC page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Never,
    Before,
    After,
}

impl Page {
    pub(crate) const ALL: [(&str, Self); 3] = [
        ("without a TSC page", Self::Never),
        ("TSC page enabled before", Self::Before),
        ("TSC page enabled after", Self::After),
    ];
}

/// In a page that `clockguest::guest::layout` leaves free.
const PAGE: u64 = 0x6000;

/// kvmclock as a function of the host's TSC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    pub(crate) record: ClockGuest,
    pub(crate) transform: TscTransform,
}

impl Function {
    /// That of `clock`.
    pub(crate) fn of(clock: &VmClock) -> Result<Self> {
        Ok(Self {
            record: clock.header.record,
            transform: reference_transform(clock)?,
        })
    }

    /// kvmclock at `host_tsc`, ns; the TSC may be below the record's timestamp.
    fn ns(&self, host_tsc: HostTsc) -> u64 {
        extended_kvmclock_ns(&self.record, self.transform.guest_tsc(host_tsc))
    }
}

/// Makes the guest one of Hyper-V's, and enables the page for [`Page::Before`].
pub(crate) fn prepare(vm: &Vm, page: Page) -> Result<()> {
    enable(&vm.vcpus()[0].fd())?;
    if page == Page::Before {
        enable_valid_tsc_page(vm, PAGE)?;
    }
    Ok(())
}

/// Fails unless the reference counter of the stopped `vm` is `function`, before and after it runs,
/// and after the page is enabled for [`Page::After`].
pub(crate) fn ensure_continues(vm: &Vm, page: Page, function: &Function) -> Result<()> {
    if page != Page::Before {
        ensure_counter(vm, function).context("before the guest runs")?;
    }
    run_a_little(vm)?;
    ensure_counter(vm, function).context("after the guest ran")?;
    if page == Page::After {
        enable_valid_tsc_page(vm, PAGE)?;
        ensure_counter(vm, function).context("after the page was enabled")?;
    }
    if page != Page::Never {
        ensure_page(vm)?;
        run_a_little(vm)?;
        ensure_page(vm)?;
    }
    Ok(())
}

/// Fails unless the MSR of the stopped `vm` is `function`.
pub(crate) fn ensure_counter(vm: &Vm, function: &Function) -> Result<()> {
    hyperv::ensure_counter(&vm.vcpus()[0].fd(), |host_tsc| function.ns(host_tsc))
}

/// Fails unless the page agrees with the record.
fn ensure_page(vm: &Vm) -> Result<()> {
    let transform = vcpu_transform(&vm.vcpus()[0].fd())?;
    TscPage::of(vm, PAGE).ensure_agrees(&get(vm)?.header.record, transform)
}
