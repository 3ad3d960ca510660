// SPDX-License-Identifier: GPL-2.0-only

//! The reference counter, and what it should be.

use kvm_clock_guest_selftests::{
    hyperv::{enable, enable_valid_tsc_page, reference_count, TscPage, UNIT_NS},
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
const CALLS: usize = 100;
/// The page counts from TSC 0 with its own factor, and rounds three times, each time by less than a
/// unit.
const TOLERANCE: u64 = 2;

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

/// Fails unless the MSR of the stopped `vm` is between the values of `function` before and after it
/// is read.
pub(crate) fn ensure_counter(vm: &Vm, function: &Function) -> Result<()> {
    for _ in 0..CALLS {
        let before = rdtsc_ordered();
        let count = reference_count(&vm.vcpus()[0].fd())?;
        let after = rdtsc_ordered();
        let [least, most] = [before, after].map(|host_tsc| function.ns(host_tsc) / UNIT_NS);
        ensure!(
            (least.saturating_sub(TOLERANCE)..=most + TOLERANCE).contains(&count),
            "the reference counter is {count}, expected {least} to {most} from the record"
        );
    }
    Ok(())
}

/// Fails unless the page agrees with the record, at the present TSC and later ones.
fn ensure_page(vm: &Vm) -> Result<()> {
    /// Guest ticks from now on, up to some years.
    const LATER: [u64; 5] = [0, 1, 1_000_000_007, 1 << 42, 1 << 57];

    let record = get(vm)?.header.record;
    let page = TscPage::of(vm, PAGE);
    ensure!(page.sequence != 0, "the TSC page is invalid: {page:x?}");
    let transform = vcpu_transform(&vm.vcpus()[0].fd())?;
    for _ in 0..CALLS {
        let now = transform.guest_tsc(rdtsc_ordered());
        for guest_tsc in LATER.map(|later| now.wrapping_add(later)) {
            let count = page.reference_count(guest_tsc);
            let ns = record.kvmclock_ns(guest_tsc);
            ensure!(
                count.abs_diff(ns / UNIT_NS) <= TOLERANCE,
                "at TSC {guest_tsc} the TSC page gives {count}, the record {ns} ns"
            );
        }
    }
    Ok(())
}
