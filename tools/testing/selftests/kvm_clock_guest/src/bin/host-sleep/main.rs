// SPDX-License-Identifier: GPL-2.0-only

//! A host that is suspended to memory with guests in it, whose clocks are pinned, and whose TSC
//! counts on meanwhile or restarts from 0.
//!
//! It needs a host that lives through that, and that somebody wakes: `host-sleep` by
//! `tools/vm/sleep`, or `host-sleep --host-tsc=restarts` by `tools/vm/sleep --tsc-restarts`. With
//! `--scaling` as well there are guests of other TSC rates. `--unstable=suspend` and
//! `--unstable=online` have the host find its TSC unstable meanwhile, for good; they need
//! `mark_tsc_unstable.ko` and `--allow`.
//!
//! Where the TSC restarts, KVM raises the TSC offsets of all vCPUs by one number of host ticks, so
//! that no guest's TSC goes back; of each vCPU when that is loaded for the next time.

mod counted;
mod counts_on;
mod expected;
mod restarts;
mod saved;
mod sleep;
mod unstable;

use anyhow::{ensure, Result};
use clockguest::vmm::Vm;
use kvm_clock::VmClock;
use kvm_clock_guest_selftests::{
    clocks::function,
    fixture::{at_another_rate, get, run_a_little, set, settle},
    ktap::{self, note, Case},
    require,
};
use kvm_ioctls::Kvm;
use pvclock::abi::MODE_EXACT;
use sleep::{HostTsc, NotBehind};
use std::process::ExitCode;
use unstable::Unstable;

const VCPUS: u32 = 2;

/// What the cases need.
pub(crate) struct Host {
    pub(crate) kvm: Kvm,
    /// Guests' TSC rates (kHz) to be tried: the host's, and others where the hardware scales.
    pub(crate) rates: Vec<u32>,
}

impl Host {
    fn new() -> Result<Self> {
        let kvm = require::clock_guest()?;
        sleep::prepare()?;
        let khz = Vm::empty(&kvm, 1)?.tsc_khz()?;
        let mut rates = vec![khz];
        if require::scales(&kvm) {
            // Neither number makes a round ratio.
            rates.extend([khz / 10 * 7, 3_300_000]);
        }
        note(&format!("guests of {rates:?} kHz"));
        Ok(Self { kvm, rates })
    }

    /// Stopped VMs that have run, one of each rate, their clocks derived by KVM.
    pub(crate) fn derived(&self) -> Result<Vec<Vm>> {
        let vms = self.rates.iter().map(|&khz| {
            let vm = Vm::at_rate(&self.kvm, VCPUS, khz)?;
            settle(&vm)?;
            Ok(vm)
        });
        vms.collect()
    }

    /// The same with a pinned record each, at another rate: no clock of KVM's own making.
    pub(crate) fn pinned(&self) -> Result<Vec<Vm>> {
        self.pinning(at_another_rate)
    }

    /// The same, with what `change` makes of KVM's clock.
    pub(crate) fn pinning(&self, change: impl Fn(VmClock) -> VmClock) -> Result<Vec<Vm>> {
        let vms = self.derived()?;
        for vm in &vms {
            let mut clock = change(get(vm)?);
            set(vm, &mut clock, MODE_EXACT)?;
            run_a_little(vm)?;
            let (record, now) = (clock.header.record, get(vm)?.header.record);
            ensure!(
                function(record) == function(now),
                "SET was {record:x?}, GET tells {now:x?}"
            );
        }
        Ok(vms)
    }
}

fn main() -> ExitCode {
    match (
        ktap::option("host-tsc", HostTsc::CountsOn),
        ktap::option("unstable", String::new()),
    ) {
        (Ok(HostTsc::CountsOn), Ok(at)) if at.is_empty() => {
            let mut cases = counts_on::cases();
            cases.extend(counted::cases(HostTsc::CountsOn));
            ktap::main(Host::new, cases)
        }
        (Ok(HostTsc::Restarts), Ok(at)) if at.is_empty() => {
            let counted = counted::cases(HostTsc::Restarts);
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
