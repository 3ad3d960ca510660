// SPDX-License-Identifier: GPL-2.0-only

//! A VM of so many vCPUs that its arrays are no slab objects: they have pages in one piece, or, if
//! there are none, single ones. Both, and what it takes to put single ones together, can be had or
//! not.

use crate::{each, Host};
use anyhow::{ensure, Context, Result};
use kvm_clock::{get_vm_clock_guest, set_vm_clock_guest, VmClock};
use kvm_clock_guest_selftests::{
    fault::Kind,
    fixture::{make_consistent, unlike},
    ktap::{note, Case},
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use pvclock::abi::{ClockGuest, ClockGuestVcpu, MODE_EXACT, STATUS_PINNED};
use vmm_sys_util::errno;

/// The slab allocator has objects of up to 8 KiB, which 512 entries of the ABI's array fill.
const VCPUS: u64 = 513;

const KINDS: &[(&str, Kind)] = &[
    ("no page is left after n", Kind::Pages),
    (
        "no two pages in one piece, no memory for the rest after n",
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
pub(crate) struct Large {
    vm: VmFd,
    _vcpus: Vec<VcpuFd>,
}

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
            record: ClockGuest {
                version: 0,
                flags: 0,
                ..clock.header.record
            },
            pinned: clock.header.status & STATUS_PINNED != 0,
        }
    }
}

/// What a call with a fault returned, whether there was a fault, and what is to be there
/// afterwards.
type Made = (errno::Result<()>, bool, Written);
/// Injects a fault.
type Inject<'a> =
    &'a dyn Fn(&mut dyn FnMut() -> errno::Result<()>) -> Result<(errno::Result<()>, bool)>;

impl Large {
    fn of(host: &Host) -> Result<&Self> {
        if host.large.get().is_none() {
            let _ = host.large.set(Self::new(&host.kvm)?);
        }
        host.large.get().context("it was just made")
    }

    fn new(kvm: &Kvm) -> Result<Self> {
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        let vcpus: std::result::Result<_, _> = (0..VCPUS).map(|id| vm.create_vcpu(id)).collect();
        let large = Self {
            _vcpus: vcpus.context("KVM_CREATE_VCPU")?,
            vm,
        };
        let mut request = large.request()?;
        set_vm_clock_guest(&large.vm, &mut request).context("KVM_SET_VM_CLOCK_GUEST")?;
        Ok(large)
    }

    fn get(&self) -> Result<VmClock> {
        get_vm_clock_guest(&self.vm).context("KVM_GET_VM_CLOCK_GUEST")
    }

    /// What would change every offset and the record, whose rate differs from KVM's own by one of two
    /// amounts in turn.
    fn request(&self) -> Result<VmClock> {
        let mut clock = unlike(self.get()?);
        clock.header.mode = MODE_EXACT;
        make_consistent(&mut clock);
        Ok(clock)
    }

    /// Fails unless `make` has no effect whenever it fails, and all of it when it does not.
    fn fails(&self, kind: Kind, make: fn(&Self, Inject<'_>) -> Result<Made>) -> Result<()> {
        let mut refused = 0;
        let outcomes = each(kind, |faults, nth| {
            let before = Written::of(&self.get()?);
            let faults = faults()?;
            let (result, injected, due) = make(self, &|call| faults.nth(nth, call))?;
            if kind == Kind::Scattered {
                refused = faults.refused_pages()?;
            }
            drop(faults);
            let now = Written::of(&self.get()?);
            let due = if result.is_ok() { due } else { before };
            ensure!(
                now == due,
                "fault {nth}, {result:?}: is {now:x?}, expected {due:x?}"
            );
            Ok((result.err().map(|error| error.errno()), injected))
        })?;
        note(&format!("{outcomes:?}"));
        ensure!(
            outcomes.enomem > 0 && outcomes.efault == 0,
            "faults of {kind:?} led to {outcomes:?}"
        );
        if kind == Kind::Scattered {
            note(&format!(
                "done with pages in one piece refused {refused} times"
            ));
            ensure!(refused > 0, "the arrays were had in one piece");
        }
        Ok(())
    }

    fn get_once(&self, inject: Inject<'_>) -> Result<Made> {
        let before = Written::of(&self.get()?);
        let mut read = None;
        let (result, injected) =
            inject(&mut || get_vm_clock_guest(&self.vm).map(|clock| read = Some(clock)))?;
        if let Some(clock) = read {
            let read = Written::of(&clock);
            ensure!(
                read == before,
                "GET says {read:x?}, said {before:x?} before"
            );
        }
        Ok((result, injected, before))
    }

    fn set_once(&self, inject: Inject<'_>) -> Result<Made> {
        let mut clock = self.request()?;
        let due = Written {
            pinned: true,
            ..Written::of(&clock)
        };
        let (result, injected) = inject(&mut || set_vm_clock_guest(&self.vm, &mut clock))?;
        Ok((result, injected, due))
    }
}
