// SPDX-License-Identifier: GPL-2.0-only

//! Each moment at which a call can fail: its first, second, ... access to user memory, or its
//! first, second, ... allocation fails.

use crate::{both, ensure_done, request, Host, MANY_VCPUS, MODES, VCPUS};
use kvm_clock_guest_selftests::{
    fault::{Faults, Kind},
    fixture,
    payload::Payload,
    prelude::*,
};

/// A size with a tail, which the kernel reads in parts.
const LARGER: u32 = size_of::<VmClockGuest>() as u32 + 200;
/// More fault points than any call has.
const ENDLESS: u32 = 1000;

const KINDS: [(&str, Kind); 2] = [
    ("each user access", Kind::UserAccess),
    ("each allocation", Kind::Memory),
];

/// How often a call failed, by errno, and succeeded despite a fault.
#[derive(Debug, Default)]
struct Outcomes {
    efault: u32,
    enomem: u32,
    survived: u32,
}

impl Outcomes {
    /// Counts the result of a call into which a fault was injected.
    fn count(&mut self, result: kvm_clock::Result<()>) -> Result<()> {
        match result.map_err(|error| error.errno()) {
            Ok(()) => self.survived += 1,
            Err(libc::EFAULT) => self.efault += 1,
            Err(libc::ENOMEM) => self.enomem += 1,
            Err(errno) => bail!(
                "a fault led to {}",
                std::io::Error::from_raw_os_error(errno)
            ),
        }
        Ok(())
    }

    /// Prints the counts; fails unless the call failed, and only with the errno of `kind`.
    fn ensure_seen(&self, kind: Kind) -> Result<()> {
        note!("{self:?}");
        let (expected, other) = match kind {
            Kind::UserAccess => (self.efault, self.enomem),
            _ => (self.enomem, self.efault),
        };
        ensure!(
            expected > 0 && other == 0,
            "faults of {kind:?} led to {self:?}"
        );
        Ok(())
    }
}

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = Vec::new();
    for (what, kind) in KINDS {
        for (name, mode) in MODES {
            cases.push(Case::new(
                format!("SET {name}: {what} fails"),
                move |host| set(host, kind, mode, None),
            ));
        }
        cases.push(Case::new(format!("GET: {what} fails"), move |host| {
            get_fails(host, kind)
        }));
    }
    cases.extend([
        Case::new("SET with a tail of zeros: each user access fails", |host| {
            set(host, Kind::UserAccess, MODE_EXACT, Some(LARGER))
        }),
        Case::new("GET with a small array: each user access fails", too_small),
        Case::new(
            "SET through a vCPU: each user access fails",
            set_through_vcpu,
        ),
        Case::new(
            "GET through a vCPU: each user access fails",
            get_through_vcpu,
        ),
    ]);
    cases
}

/// How many vCPUs have fault points of `kind`.
fn vcpus(kind: Kind) -> u32 {
    match kind {
        Kind::UserAccess => VCPUS,
        _ => MANY_VCPUS,
    }
}

/// Each user access comes before the commit: if it fails, SET fails and changes nothing.
fn set(host: &Host, kind: Kind, mode: u32, size: Option<u32>) -> Result<()> {
    for vm in &both(&host.kvm, vcpus(kind))? {
        let mut outcomes = Outcomes::default();
        for nth in 1.. {
            ensure!(nth < ENDLESS, "still a fault after {outcomes:?}");
            let mut original = get(vm)?;
            let clock = request(vm, mode)?;
            let payload = Payload::new(&clock)?;
            size.inspect(|&size| payload.set_size(size));

            let (before, version) = (Clocks::of(vm)?, versions(vm));
            let faults = Faults::new(kind)?;
            let (result, injected) = faults.nth(nth, || payload.set(vm.fd()))?;
            drop(faults);
            match result {
                Err(_) => before.ensure_unchanged(vm).and_then(|()| {
                    let now = versions(vm);
                    ensure_eq!(now, version, "record versions");
                    Ok(())
                }),
                Ok(()) => ensure_done(vm, &before, &clock),
            }
            .with_context(|| format!("{result:?} with fault {nth}"))?;
            if !injected {
                result.with_context(|| format!("without a fault, {nth} being too many"))?;
                break;
            }
            // The allocator itself allocates occasionally, and survives a fault in that.
            ensure!(
                kind == Kind::Memory || result.is_err(),
                "SET survived fault {nth}"
            );
            outcomes.count(result)?;
            if result.is_ok() {
                fixture::set(vm, &mut original, MODE_EXACT)?;
                settle(vm)?;
            }
        }
        outcomes.ensure_seen(kind)?;
    }
    Ok(())
}

fn get_fails(host: &Host, kind: Kind) -> Result<()> {
    for vm in &both(&host.kvm, vcpus(kind))? {
        let payload = Payload::new(&get(vm)?)?;
        let outcomes = changes_nothing(vm, kind, || payload.get(vm.fd()))?;
        outcomes.ensure_seen(kind)?;
    }
    Ok(())
}

fn too_small(host: &Host) -> Result<()> {
    for vm in &host.vms {
        let payload = Payload::new(&get(vm)?)?;
        let outcomes = changes_nothing(vm, Kind::UserAccess, || {
            payload.set_nr_vcpus(0);
            match payload.get(vm.fd()) {
                // The expected result.
                Err(error) if error.errno() == libc::E2BIG => Ok(()),
                Ok(()) => Err(kvm_clock::Errno(libc::E2BIG)),
                result => result,
            }
        })?;
        outcomes.ensure_seen(Kind::UserAccess)?;
    }
    Ok(())
}

fn get_through_vcpu(host: &Host) -> Result<()> {
    for vm in &host.vms {
        for vcpu in vm.vcpus() {
            let outcomes = changes_nothing(vm, Kind::UserAccess, || {
                get_clock_guest(&vcpu.fd()).map(drop)
            })?;
            outcomes.ensure_seen(Kind::UserAccess)?;
        }
    }
    Ok(())
}

/// Makes `call` with each fault in turn; neither failure nor success may change a clock.
fn changes_nothing(
    vm: &Vm,
    kind: Kind,
    call: impl Fn() -> kvm_clock::Result<()>,
) -> Result<Outcomes> {
    let mut outcomes = Outcomes::default();
    for nth in 1..ENDLESS {
        let mut was_injected = false;
        ensure_changes_nothing(vm, |_| {
            let faults = Faults::new(kind)?;
            let (result, injected) = faults.nth(nth, &call)?;
            if injected {
                was_injected = true;
                return outcomes.count(result);
            }
            result.with_context(|| format!("without a fault, {nth} being too many"))
        })
        .with_context(|| format!("with fault {nth}"))?;
        if !was_injected {
            return Ok(outcomes);
        }
    }
    bail!("still a fault after {outcomes:?}")
}

/// The record with a second added, as it must have the vCPU's rate.
fn set_through_vcpu(host: &Host) -> Result<()> {
    for vm in &both(&host.kvm, VCPUS)? {
        for vcpu in vm.vcpus() {
            let mut record = get_clock_guest(&vcpu.fd()).context("KVM_GET_CLOCK_GUEST")?;
            record.system_time += SECOND_NS.unsigned_abs();
            let before = Clocks::of(vm)?;
            let faults = Faults::new(Kind::UserAccess)?;
            let mut outcomes = Outcomes::default();
            for nth in 1.. {
                let set = || set_clock_guest(&vcpu.fd(), &record);
                let (result, injected) = faults.nth(nth, set)?;
                if !injected {
                    result.context("KVM_SET_CLOCK_GUEST")?;
                    break;
                }
                outcomes.count(result)?;
                ensure!(outcomes.survived == 0, "fault {nth} was ignored");
                before.ensure_unchanged(vm)?;
            }
            outcomes.ensure_seen(Kind::UserAccess)?;
            run_a_little(vm)?;
            let after = Clocks::of(vm)?;
            ensure_eq_hex!(after.offsets, before.offsets, "TSC offsets");
            after.ensure_pinned_to(record)?;
        }
    }
    Ok(())
}
