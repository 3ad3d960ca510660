// SPDX-License-Identifier: GPL-2.0-only

//! The command line.

use clap::{
    Args,
    Parser,
    Subcommand, //
};
use clockguest::{
    duration,
    guest::layout::MAX_VCPUS,
    method::Method,
    scenario::Scenario, //
};
use std::time::Duration;

const EXIT_STATUS: &str = "\
Exit status:
  0  done
  1  failed: contradictory readings, a failed call, a dead process; or method atomic lost anything
  2  wrong usage
  4  this host cannot do it; the message says what is missing";

const MEASUREMENT: &str = "\
The error is measured by the guest's own readings. Before a cycle, each vCPU has a
relation: the TSC offset that KVM reports, and the pvclock record that the guest read
last. After it, the guest reads TSC g and kvmclock k, at the host TSC that the offset now
in force gives for g; the host brackets the reading with its own RDTSC, so that a wrong
offset is found out. Then
  TSC error       is g minus the TSC by the relation before, at the same host TSC, in ticks;
  kvmclock error  is k minus the kvmclock by the relation before, likewise, in ns;
  skew            is the kvmclock error minus the TSC error in ns.
All are what the guest would not have seen had nobody touched its clocks. The errors of
the legacy methods are results, not failures; method atomic claims to lose nothing, and
fails if it does.";

/// Measures, by a guest's own readings, what saving and restoring its clocks does to them.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_STATUS)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Use /dev/kvm even if neither kvm_amd nor kvm_intel is behind it
    #[arg(long, global = true)]
    pub(crate) any_kvm: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what this host has: module, capability, clocksource, TSC, TAI
    #[command(after_help = EXIT_STATUS)]
    Info {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },

    /// Run one scenario by one method, and show the errors of the guest's clocks
    #[command(after_help = EXIT_STATUS, after_long_help = format!("{MEASUREMENT}\n\n{EXIT_STATUS}"))]
    Cycle {
        /// What happens to the VM
        #[arg(long)]
        scenario: Scenario,

        /// How its clocks are saved and restored
        #[arg(long)]
        method: Method,

        #[command(flatten)]
        size: Size,

        /// Print one JSON object
        #[arg(long)]
        json: bool,

        /// Show every cycle too (with --json: the array per_cycle)
        #[arg(long)]
        verbose: bool,
    },

    /// Run every scenario by every method, and show one table
    #[command(after_help = EXIT_STATUS, after_long_help = format!("{MEASUREMENT}\n\n{EXIT_STATUS}"))]
    Demo {
        #[command(flatten)]
        size: Size,

        /// Print a JSON array with the object of each run
        #[arg(long)]
        json: bool,
    },

    /// Hold one VM, by commands on stdin: the other process of snapshot and migrate
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        method: Method,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Size {
    /// vCPUs of the guest
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    pub(crate) vcpus: u32,

    /// Times that the clocks are saved and restored
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cycles: u32,

    /// Least time between stop and go, e.g. 500us, 50ms, 5s
    #[arg(long, default_value = "50ms", value_parser = duration::parse)]
    pub(crate) downtime: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_refused() {
        let cycle = [
            "clockguest",
            "cycle",
            "--scenario",
            "pause",
            "--method",
            "atomic",
        ];
        assert!(Cli::try_parse_from(cycle).is_ok());
        for extra in [
            ["--cycles", "0"],
            ["--vcpus", "0"],
            ["--vcpus", "253"],
            ["--downtime", "50"],
            ["--method", "magic"],
        ] {
            let error = Cli::try_parse_from(cycle.into_iter().chain(extra)).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{extra:?}");
        }
    }
}
