// SPDX-License-Identifier: GPL-2.0-only

//! The command line.

mod args;
mod selftest;

pub(crate) use args::{Audit, Migrate, Restore, Save, Serve, Size, Watch};
pub(crate) use selftest::Selftest;

use crate::{
    help::{self, sections, EXIT_STATUS},
    man::ManPages,
};
use clap::{Parser, Subcommand};
use clap_complete::Shell;
use clockguest::{method::Method, scenario::Scenario};
use std::path::PathBuf;

/// Measures the clock errors of saving and restoring a KVM guest, from the guest's own readings
///
/// The guest is a few dozen instructions that read the TSC and the pvclock page in a tight loop on
/// every vCPU. The program stops it, saves its clocks with a method, and restores them: in the same
/// VM, in another process, on another host, or under another kernel. It then compares the guest's
/// clocks with the values that they would have had without the interruption.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = EXIT_STATUS,
    after_long_help = sections(&[EXIT_STATUS, help::ENVIRONMENT, help::FILES, help::EXAMPLES])
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Use /dev/kvm even if neither kvm_amd nor kvm_intel is loaded
    #[arg(long, global = true)]
    pub(crate) any_kvm: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show this host's support: module, capability, clocksource, TSC, TAI
    #[command(after_help = EXIT_STATUS)]
    Info {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },

    /// Run one scenario with one method, and show the errors of the guest's clocks
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::MEASUREMENT, EXIT_STATUS, help::CYCLE_EXAMPLES]))]
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

        /// Show every cycle; JSON always includes them
        #[arg(long)]
        verbose: bool,
    },

    /// Run every scenario with every method, and show one table
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::MEASUREMENT, EXIT_STATUS]))]
    Demo {
        #[command(flatten)]
        size: Size,

        /// Print a JSON array with an object per run
        #[arg(long)]
        json: bool,

        /// Also write that array to a file
        #[arg(long, value_name = "FILE")]
        json_file: Option<PathBuf>,
    },

    /// Test this host: module, TSC, and every mode on every CPU, in two minutes
    ///
    /// Needs no more than this program, /dev/kvm and the loaded modules. The report names kernel,
    /// CPU and module, but neither the host nor the user; it says what was skipped, and why.
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::SELFTEST, EXIT_STATUS, help::SELFTEST_EXAMPLES]))]
    Selftest(Selftest),

    /// Pause a running guest repeatedly, and show the current errors of its clocks in one line
    ///
    /// On a terminal, the line is rewritten; otherwise, each cycle has its own line. Ctrl-C or
    /// --cycles ends the program, which then prints a summary. The errors are of the last cycle,
    /// and, in parentheses, in total since the guest started.
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::MEASUREMENT, EXIT_STATUS]))]
    Watch(Watch),

    /// Look at the clocks of the VMs that run on this host, without stopping or changing anything
    ///
    /// It works on any kernel with debugfs and tracefs, with any VMM, e.g. QEMU, Firecracker or
    /// Cloud Hypervisor, and without the kvm_clock_guest module. It needs root. --watch shows each
    /// event that moves a clock, and by how much, until Ctrl-C.
    #[command(after_help = help::AUDIT_STATUS, after_long_help = sections(&[help::AUDIT, help::AUDIT_STATUS, help::AUDIT_EXAMPLES]))]
    Audit(Audit),

    /// Move a running guest to another host, and show the errors of its clocks
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::MIGRATION, EXIT_STATUS, help::MIGRATE_EXAMPLES]))]
    Migrate(Migrate),

    /// Receive guests that `clockguest migrate` sends from another host
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::MIGRATION, EXIT_STATUS, help::MIGRATE_EXAMPLES]))]
    Serve(Serve),

    /// Save a running guest, to restore it after a kexec into another kernel
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::LUO, EXIT_STATUS, help::UPDATE_EXAMPLES]))]
    Save(Save),

    /// Restore a saved guest on the same host, and show the errors of its clocks
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::LUO, help::MEASUREMENT, EXIT_STATUS, help::UPDATE_EXAMPLES]))]
    Restore(Restore),

    /// Write a page with charts from the JSON output of runs
    #[command(after_help = help::REPORT)]
    Report {
        /// Folder for index.html, and an SVG and a PNG file of each chart
        #[arg(long, default_value = "clockguest-report", value_name = "DIR")]
        out: PathBuf,

        /// JSON output of cycle, demo, migrate, or `make bench`
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },

    /// Print a man page, or write all of them into a folder
    #[command(after_help = EXIT_STATUS)]
    Man(ManPages),

    /// Print a shell completion script
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[EXIT_STATUS, help::COMPLETION_EXAMPLES]))]
    Completion {
        /// The shell
        shell: Shell,
    },

    /// Run one VM, controlled through stdin: the other process of snapshot and migrate
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        method: Method,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_guest_is_saved_in_one_place() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        for right in [
            "clockguest save --to file",
            "clockguest save --luo name",
            "clockguest restore --from file --to file",
            "clockguest restore --luo name --luo-to name",
        ] {
            assert!(parse(right).is_ok(), "{right}");
        }
        for wrong in [
            "clockguest save",
            "clockguest save --to file --luo name",
            "clockguest restore --luo-to name",
            "clockguest restore --from file --luo name",
            "clockguest restore --from file --to file --luo-to name",
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
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
