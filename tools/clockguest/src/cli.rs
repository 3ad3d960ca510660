// SPDX-License-Identifier: GPL-2.0-only

//! The command line.

mod args;

pub(crate) use args::{Migrate, Restore, Save, Size, Watch};

use crate::{
    help::{self, sections, EXIT_STATUS},
    man::ManPages,
};
use clap::{Parser, Subcommand};
use clap_complete::Shell;
use clockguest::{method::Method, scenario::Scenario};
use std::path::PathBuf;

/// Measures, by a guest's own readings, what saving and restoring its clocks does to them
///
/// The guest is some dozens of instructions that read the TSC and the pvclock page at full speed on
/// every vCPU. It is stopped, its clocks are saved by a method, and restored: in the same VM, in
/// another process, on another host, or under another kernel. What its clocks then read is compared
/// with what they would have read had nothing happened.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = EXIT_STATUS,
    after_long_help = sections(&[EXIT_STATUS, help::ENVIRONMENT, help::FILES, help::EXAMPLES])
)]
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

        /// Show every cycle too; JSON always has them all
        #[arg(long)]
        verbose: bool,
    },

    /// Run every scenario by every method, and show one table
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::MEASUREMENT, EXIT_STATUS]))]
    Demo {
        #[command(flatten)]
        size: Size,

        /// Print a JSON array with the object of each run
        #[arg(long)]
        json: bool,

        /// Write that array to a file, whatever is printed
        #[arg(long, value_name = "FILE")]
        json_file: Option<PathBuf>,
    },

    /// Pause a running guest again and again, and show the present errors of its clocks in one line
    ///
    /// On a terminal that line is rewritten; elsewhere there is one for each cycle. It ends by Ctrl-C,
    /// or after --cycles, with the sum. Errors are of the last cycle, and, in brackets, of all since the
    /// guest started.
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::MEASUREMENT, EXIT_STATUS]))]
    Watch(Watch),

    /// Carry a running guest to another host, and show what that did to its clocks
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::MIGRATION, EXIT_STATUS, help::MIGRATE_EXAMPLES]))]
    Migrate(Migrate),

    /// Take guests over that another host's `clockguest migrate` sends
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::MIGRATION, EXIT_STATUS, help::MIGRATE_EXAMPLES]))]
    Serve {
        /// Address to listen on, HOST:PORT. Anybody who can connect can run a guest here
        #[arg(long)]
        listen: String,

        /// End after the first connection
        #[arg(long)]
        once: bool,

        /// Trace by a kprobe what the kernel's clock says when a guest's clocks are set (root)
        #[arg(long)]
        trace_clock: bool,
    },

    /// Save a running guest to a file, to be restored when a kexec has replaced this host's kernel
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[EXIT_STATUS, help::UPDATE_EXAMPLES]))]
    Save(Save),

    /// Restore a guest from a file on the host that saved it, and show the errors of its clocks
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[help::MEASUREMENT, EXIT_STATUS, help::UPDATE_EXAMPLES]))]
    Restore(Restore),

    /// Write a page and charts of the JSON that runs printed
    #[command(after_help = help::REPORT)]
    Report {
        /// Folder for index.html, and for a SVG and a PNG file of each chart
        #[arg(long, default_value = "clockguest-report", value_name = "DIR")]
        out: PathBuf,

        /// What cycle, demo or migrate printed by --json, or `make bench` wrote
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },

    /// Print a man page, or write all of them into a folder
    #[command(after_help = EXIT_STATUS)]
    Man(ManPages),

    /// Print what makes a shell complete this command line
    #[command(after_help = EXIT_STATUS, after_long_help = sections(&[EXIT_STATUS, help::COMPLETION_EXAMPLES]))]
    Completion {
        /// The shell
        shell: Shell,
    },

    /// Hold one VM, by commands on stdin: the other process of snapshot and migrate
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
