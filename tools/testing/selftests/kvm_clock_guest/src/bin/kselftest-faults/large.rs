// SPDX-License-Identifier: GPL-2.0-only

//! A VM with so many vCPUs that its arrays are no slab objects: they consist of contiguous pages,
//! or of single pages if there are none. Either allocation, and that of the mapping of single
//! pages, can fail.

use crate::{each, Host};
use clockguest::vmm::{Guest, VmBuilder, VmFds};
use kvm_clock_guest_selftests::{fault::Kind, fixture::unlike, prelude::*};

/// The slab allocator has objects of up to 8 KiB, which 512 entries of the ABI's array fill.
const VCPUS: u32 = 513;

const KINDS: &[(&str, Kind)] = &[
    ("no page left after n", Kind::Pages),
    (
        "no contiguous pages, no memory left after n",
        Kind::Scattered,
    ),
];

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = Vec::new();
    for &(name, kind) in KINDS {
        cases.push(Case::new(
            format!("{VCPUS} vCPUs: GET, {name}"),
            move |host| Large::of(host)?.fails(kind, Large::get_once),
        ));
        cases.push(Case::new(
            format!("{VCPUS} vCPUs: SET, {name}"),
            move |host| Large::of(host)?.fails(kind, Large::set_once),
        ));
    }
    cases
}

/// A VM that never ran, and whose clock is pinned.
#[derive(Debug)]
pub(crate) struct Large(VmFds);

/// All that SET changes.
#[derive(Debug, PartialEq)]
struct Written {
    vcpus: Vec<ClockGuestVcpu>,
    record: ClockGuest,
    pinned: bool,
}

impl Written {
    fn of(clock: &VmClock) -> Self {
        Self {
            vcpus: clock.vcpus.clone(),
            record: function(clock.header.record),
            pinned: clock.header.status & STATUS_PINNED != 0,
        }
    }
}

/// The result of a call with a fault, whether there was a fault, and the expected clocks.
type Made = (kvm_clock::Result<()>, bool, Written);
/// Injects a fault.
type Inject<'a> =
    &'a dyn Fn(&mut dyn FnMut() -> kvm_clock::Result<()>) -> Result<(kvm_clock::Result<()>, bool)>;

impl Large {
    fn of(host: &Host) -> Result<&Self> {
        if host.large.get().is_none() {
            let _ = host.large.set(Self::new(&host.kvm)?);
        }
        host.large.get().context("it was just made")
    }

    fn new(kvm: &Kvm) -> Result<Self> {
        let vm = VmBuilder::new(kvm, VCPUS).guest(Guest::Bare).build_fds()?;
        let large = Self(vm);
        let mut request = large.request()?;
        set_vm_clock_guest(&large.0.fd, &mut request).context("KVM_SET_VM_CLOCK_GUEST")?;
        Ok(large)
    }

    fn get(&self) -> Result<VmClock> {
        get_vm_clock_guest(&self.0.fd).context("KVM_GET_VM_CLOCK_GUEST")
    }

    /// A SET that changes every offset and the record, whose rate alternates between two.
    fn request(&self) -> Result<VmClock> {
        let mut clock = unlike(self.get()?);
        clock.header.mode = MODE_EXACT;
        make_consistent(&mut clock);
        Ok(clock)
    }

    /// Fails unless `make` has no effect when it fails, and its full effect when it succeeds.
    fn fails(&self, kind: Kind, make: fn(&Self, Inject<'_>) -> Result<Made>) -> Result<()> {
        let mut refused = 0;
        let outcomes = each(kind, |faults, nth| {
            let before = Written::of(&self.get()?);
            let faults = faults()?;
            let (result, injected, done) = make(self, &|call| faults.nth(nth, call))?;
            if kind == Kind::Scattered {
                refused = faults.refused_pages()?;
            }
            drop(faults);
            let now = Written::of(&self.get()?);
            let expected = if result.is_ok() { done } else { before };
            ensure_eq_hex!(now, expected, "after fault {nth}, {result:?}");
            Ok((result.err().map(|error| error.errno()), injected))
        })?;
        note!("{outcomes:?}");
        ensure!(
            outcomes.enomem > 0 && outcomes.efault == 0,
            "faults of {kind:?} led to {outcomes:?}"
        );
        if kind == Kind::Scattered {
            note!("{refused} allocations of contiguous pages failed");
            ensure!(refused > 0, "the arrays are contiguous");
        }
        Ok(())
    }

    fn get_once(&self, inject: Inject<'_>) -> Result<Made> {
        let before = Written::of(&self.get()?);
        let mut read = None;
        let (result, injected) =
            inject(&mut || get_vm_clock_guest(&self.0.fd).map(|clock| read = Some(clock)))?;
        if let Some(clock) = read {
            let read = Written::of(&clock);
            ensure_eq_hex!(read, before, "GET");
        }
        Ok((result, injected, before))
    }

    fn set_once(&self, inject: Inject<'_>) -> Result<Made> {
        let mut clock = self.request()?;
        let expected = Written {
            pinned: true,
            ..Written::of(&clock)
        };
        let (result, injected) = inject(&mut || set_vm_clock_guest(&self.0.fd, &mut clock))?;
        Ok((result, injected, expected))
    }
}
