// SPDX-License-Identifier: GPL-2.0-only

//! Random calls of all ioctls, most of them valid or nearly so, with extreme values. Each call
//!
//! - fails with an errno that `clock-guest.rst` documents for its argument (see `model`), or
//!   succeeds if no cause to fail exists,
//! - changes nothing if it fails: TSC offsets, record, `KVM_GET_CLOCK`, the guest's pages, and all
//!   bytes of the argument except those documented,
//! - has the effect that GET reports, if it succeeds (see `outcome`).
//!
//! From time to time the guest runs and must read the same clocks.
//!
//! `--calls=N` is the number of calls, `--seed=S` selects them; the same seed makes the same
//! choices. With
//! `--look=N` the program compares the VM's clocks after one in N of the calls that must change
//! nothing: on a kernel with much debugging the comparisons take most of the time. Arguments that
//! once failed are in the table of `fixed`, which runs first.

mod arena;
mod changing;
mod expected;
mod extremes;
mod fixed;
mod fixture;
mod foreign;
mod fuzz;
mod generate;
mod guest;
mod interfere;
mod model;
mod mutate;
mod outcome;
mod plan;
mod records;
mod running;
mod state;
mod stopped;
mod vcpu_calls;
mod vm_calls;

use extremes::Rng;
use fuzz::Fuzz;
use kvm_clock_guest_selftests::prelude::*;
use rand_chacha::rand_core::SeedableRng;

/// Default number of calls of all cases together.
const CALLS: u64 = 20_000;
const SEED: u64 = 1;

struct Host {
    kvm: Kvm,
    calls: u64,
    seed: u64,
    look: u32,
}

impl Host {
    fn new() -> Result<Self> {
        let host = Self {
            kvm: require::clock_guest()?,
            calls: option("calls", CALLS)?,
            seed: option("seed", SEED)?,
            look: option("look", 1)?,
        };
        ensure!(host.look > 0, "--look=0 would never compare");
        note!("{}", host.options());
        Ok(host)
    }

    /// The random sequence of a case.
    fn rng(&self, case: u64) -> Rng {
        let mut rng = Rng::seed_from_u64(self.seed);
        rng.set_stream(case);
        rng
    }

    fn options(&self) -> String {
        format!(
            "--calls={} --seed={} --look={}",
            self.calls, self.seed, self.look
        )
    }

    /// How to reproduce a failure.
    fn replay(&self, fuzz: &Fuzz<'_>) -> String {
        format!("call {} with {}", fuzz.counts.calls(), self.options())
    }
}

fn main() -> ExitCode {
    let mut cases = fixed::cases();
    // The second field is the percentage of the calls.
    for (name, percent, run) in [
        (
            "two VMs with vCPUs stopped",
            55,
            stopped::calls as fn(&Host, u64) -> Result<()>,
        ),
        ("vCPUs running", 35, running::calls),
        ("memory being changed", 10, changing::calls),
    ] {
        cases.push(Case::new(
            format!("random calls, {name}"),
            move |host: &Host| run(host, host.calls * percent / 100),
        ));
    }
    ktap::main(Host::new, cases)
}
