// SPDX-License-Identifier: GPL-2.0-only

//! What a host does with a guest's clocks.

use kvm_clock_guest_selftests::{expect::gained_on_raw, prelude::*};
use serde::{Deserialize, Serialize};

const VCPUS: u32 = 2;
/// The time over which a clock's rate is measured.
const WATCH: Duration = Duration::from_secs(60);

/// What SET reported, and how kvmclock ran afterwards.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    host_tsc_khz: u32,
    rate_diff_hz: i64,
    pub(crate) precision_ns: u32,
    /// What kvmclock gained on the raw clock, and over which time, ns.
    gained_ns: i64,
    elapsed_ns: i64,
}

impl Outcome {
    /// How much the guest's TSC is faster here, as SET reported, ppm.
    pub(crate) fn differs_ppm(&self) -> f64 {
        // CAST: far below 2^53.
        self.rate_diff_hz as f64 * 1000.0 / f64::from(self.host_tsc_khz)
    }

    /// How much kvmclock is faster than the raw clock, ppm.
    pub(crate) fn gains_ppm(&self) -> f64 {
        // CAST: far below 2^53.
        self.gained_ns as f64 * 1e6 / self.elapsed_ns as f64
    }
}

/// The clocks of a guest of this host.
pub(crate) fn saved(kvm: &Kvm) -> Result<VmClock> {
    get(&derived(kvm, VCPUS)?)
}

/// SETs each of `clocks` in a guest of its own, and watches all of them at the same time.
pub(crate) fn watch(kvm: &Kvm, clocks: [VmClock; 2]) -> Result<[Outcome; 2]> {
    let mut guests = Vec::new();
    for mut clock in clocks {
        let vm = derived(kvm, VCPUS)?;
        let mode = clock.header.mode;
        set(&vm, &mut clock, mode)?;
        run_a_little(&vm)?;
        guests.push((get(&vm)?.header, clock.header, vm));
    }
    sleep(WATCH);
    let outcomes = guests
        .into_iter()
        .map(|(first, set, vm)| outcome(&first, &set, &vm))
        .collect::<Result<Vec<_>>>()?;
    outcomes
        .try_into()
        .map_err(|_| anyhow::anyhow!("as many guests as clocks"))
}

fn outcome(first: &VmClockGuest, set: &VmClockGuest, vm: &Vm) -> Result<Outcome> {
    run_a_little(vm)?;
    let last = get(vm)?.header;
    let (gained_ns, elapsed_ns) = gained_on_raw(vm, first, &last)?;
    Ok(Outcome {
        host_tsc_khz: last.host_tsc_khz,
        rate_diff_hz: set.rate_diff_hz,
        precision_ns: set.precision_ns,
        gained_ns,
        elapsed_ns,
    })
}
