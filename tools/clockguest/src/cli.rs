// SPDX-License-Identifier: GPL-2.0-only

//! The command line.

mod args;

pub(crate) use args::{
    Migrate,
    Restore,
    Save,
    Size,
    Watch, //
};

use clap::{
    Parser,
    Subcommand, //
};
use clockguest::{
    method::Method,
    scenario::Scenario, //
};
use std::path::PathBuf;

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
  skew            is k minus the kvmclock by the record before at g: how far the one clock
                  was set against the other, in ns.
All are what the guest would not have seen had nobody touched its clocks. The errors of
the legacy methods are results, not failures; method atomic claims to lose nothing, and
fails if it does.";

const MIGRATION: &str = "\
The guest's TSC goes on by the time that passed, as the two hosts' clocks have it. How these
differ is measured by pings over the connection: no message arrives before it was sent, so
each ping bounds the difference from both sides, and the truth is no further from the middle
than the uncertainty that is reported. (--sync hosts trusts the hosts instead.)

Errors are measured by the guest's own readings as of `clockguest cycle`. Between hosts:
  skew            is what the guest's kvmclock reads minus what its record before says at
                  the same guest TSC; needs no knowledge of the hosts' clocks;
  TSC error       is what the guest's TSC reads minus what it would have read at home, at the
                  same moment. Only who emulates both hosts knows that (--truth);
  the operation's part of it is what SET wrote minus saved TSC + elapsed time x rate, for the
                  very instant that the kernel's clock gave to SET (--trace-clock);
  the clocks' part is the rest.
Method atomic fails if the record or the skew changed, if the operation's part exceeds one
tick, or the clocks' part what the pings allow for. The stream is versioned and checksummed;
until the destination has the guest complete and its clocks set, the guest is the source's,
and goes on there, exactly, whatever goes wrong.";

const REPORT: &str = "\
Each FILE holds the JSON object of a run, or an array of them. The page shows the worst errors
in a table, the error of each cycle in charts, what of a move's error the operation and the
hosts' clocks made, what a benchmark counted against vCPUs, and the command, kernel, module and
QEMU that each run came from. It needs no network and no scripts; all runs stand in it as JSON
too, in the element with the id 'runs'.

Exit status:
  0  written; its path is printed
  1  a file cannot be read, is not JSON, has no runs, or has one of an unknown kind or without
     what its kind is to have; nothing was written. Or DIR cannot be written to
  2  wrong usage";

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

        /// Show every cycle too; JSON always has them all
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

        /// Write that array to a file, whatever is printed
        #[arg(long, value_name = "FILE")]
        json_file: Option<PathBuf>,
    },

    /// Pause a running guest again and again, and show the present errors of its clocks in one line
    ///
    /// On a terminal that line is rewritten; elsewhere there is one for each cycle. It ends by Ctrl-C,
    /// or after --cycles, with the sum. Errors are of the last cycle, and, in brackets, of all since the
    /// guest started.
    #[command(after_help = EXIT_STATUS, after_long_help = format!("{MEASUREMENT}\n\n{EXIT_STATUS}"))]
    Watch(Watch),

    /// Carry a running guest to another host, and show what that did to its clocks
    #[command(after_help = EXIT_STATUS, after_long_help = format!("{MIGRATION}\n\n{EXIT_STATUS}"))]
    Migrate(Migrate),

    /// Take guests over that another host's `clockguest migrate` sends
    #[command(after_help = EXIT_STATUS, after_long_help = format!("{MIGRATION}\n\n{EXIT_STATUS}"))]
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
    #[command(after_help = EXIT_STATUS)]
    Save(Save),

    /// Restore a guest from a file on the host that saved it, and show the errors of its clocks
    #[command(after_help = EXIT_STATUS, after_long_help = format!("{MEASUREMENT}\n\n{EXIT_STATUS}"))]
    Restore(Restore),

    /// Write a page and charts of the JSON that runs printed
    #[command(after_help = REPORT, after_long_help = REPORT)]
    Report {
        /// Folder for index.html, and for a SVG and a PNG file of each chart
        #[arg(long, default_value = "clockguest-report", value_name = "DIR")]
        out: PathBuf,

        /// What cycle, demo or migrate printed by --json, or `make bench` wrote
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
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
