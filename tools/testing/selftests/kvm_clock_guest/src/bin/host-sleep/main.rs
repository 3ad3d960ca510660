// SPDX-License-Identifier: GPL-2.0-only

//! A host that is suspended to memory while guests with pinned clocks exist, and whose TSC keeps
//! counting or restarts from 0.
//!
//! It needs a host that survives that and is woken up: `host-sleep` in `tools/vm/host sleep`, or
//! `host-sleep --host-tsc=restarts` in `tools/vm/host sleep --tsc-restarts`. With `--scaling` there
//! are also guests with other TSC rates. With `--unstable=suspend` and `--unstable=online` the host
//! permanently marks its TSC unstable meanwhile; they need `mark_tsc_unstable.ko` and `--allow`.
//!
//! If the TSC restarts, KVM raises the TSC offsets of all vCPUs by one number of host ticks, so
//! that no guest's TSC steps back; it does so when a vCPU is loaded next.

mod counted;
mod counts_on;
mod expected;
mod restarts;
mod saved;
mod sleep;
mod unstable;

use kvm_clock_guest_selftests::{fixture::at_another_rate, prelude::*};
use sleep::{NotBehind, TscInSleep};
use unstable::Unstable;

const VCPUS: u32 = 2;

/// What the cases need.
pub(crate) struct Host {
    pub(crate) kvm: Kvm,
    /// Guests' TSC rates (kHz): the host's, and others if the hardware scales.
    pub(crate) rates: Vec<u32>,
}

impl Host {
    fn new() -> Result<Self> {
        let kvm = require::clock_guest()?;
        sleep::prepare()?;
        let khz = Vm::empty(&kvm, 1)?.tsc_khz()?;
        let mut rates = vec![khz];
        if require::scales(&kvm) {
            // Neither gives a round ratio.
            rates.extend([khz / 10 * 7, 3_300_000]);
        }
        note!("guests of {rates:?} kHz");
        Ok(Self { kvm, rates })
    }

    /// Stopped VMs that have run, one of each rate, their clocks derived by KVM.
    pub(crate) fn derived(&self) -> Result<Vec<Vm>> {
        let vms = self.rates.iter();
        vms.map(|&khz| derived_at_rate(&self.kvm, VCPUS, khz))
            .collect()
    }

    /// The same with pinned records at another rate, which KVM never derives.
    pub(crate) fn pinned(&self) -> Result<Vec<Vm>> {
        self.pinning(at_another_rate)
    }

    /// The same with KVM's clocks as changed by `change`.
    pub(crate) fn pinning(&self, change: impl Fn(VmClock) -> VmClock) -> Result<Vec<Vm>> {
        let vms = self.derived()?;
        for vm in &vms {
            let clock = pin(vm, &change)?;
            let (record, now) = (clock.header.record, get(vm)?.header.record);
            ensure_eq_hex!(function(now), function(record), "GET's record after SET");
        }
        Ok(vms)
    }
}

fn main() -> ExitCode {
    match (
        ktap::option("host-tsc", TscInSleep::CountsOn),
        ktap::option("unstable", String::new()),
    ) {
        (Ok(TscInSleep::CountsOn), Ok(at)) if at.is_empty() => {
            let mut cases = counts_on::cases();
            cases.extend(counted::cases(TscInSleep::CountsOn));
            ktap::main(Host::new, cases)
        }
        (Ok(TscInSleep::Restarts), Ok(at)) if at.is_empty() => {
            let counted = counted::cases(TscInSleep::Restarts);
            let cases = [restarts::cases(), saved::cases(), counted]
                .into_iter()
                .flatten();
            ktap::main(
                Host::new,
                cases.map(Case::again_after::<NotBehind>).collect(),
            )
        }
        (Ok(tsc), Ok(at)) => ktap::main(|| Unstable::new(tsc, &at), unstable::cases()),
        (Err(error), _) | (_, Err(error)) => ktap::main(|| Err(error), counts_on::cases()),
    }
}
