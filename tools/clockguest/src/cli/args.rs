// SPDX-License-Identifier: GPL-2.0-only

//! The arguments of commands that have many.

use clap::Args;
use clockguest::{
    duration,
    guest::layout::MAX_VCPUS,
    method::{Method, Mode},
    migration::{ClockSource, ModeChoice},
};
use std::{path::PathBuf, time::Duration};

#[derive(Args, Debug)]
pub(crate) struct Guest {
    /// vCPUs of the guest
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    pub(crate) vcpus: u32,

    /// TSC rate of the guest, kHz [default: the host's]
    #[arg(long)]
    pub(crate) tsc_khz: Option<u32>,
}

#[derive(Args, Debug)]
pub(crate) struct Audit {
    /// Only the VMs of this process
    #[arg(long)]
    pub(crate) pid: Option<u32>,

    /// How long to observe KVM, e.g. 500ms, 10s [default: 2s; with --watch: until Ctrl-C, or until
    /// no VM is left]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    pub(crate) time: Option<Duration>,

    /// Show each event that moves a clock
    #[arg(long)]
    pub(crate) watch: bool,

    /// Print one JSON object; with --watch, one per event and one at the end, one per line
    #[arg(long)]
    pub(crate) json: bool,
}

/// The other host.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct To {
    /// Command that connects to the other host, e.g. 'ssh HOST clockguest serve --stdio'; sh -c
    /// runs it
    #[arg(long, value_name = "COMMAND")]
    pub(crate) via: Option<String>,

    /// Address of the other host's `clockguest serve --listen`, HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) to: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Migrate {
    #[command(flatten)]
    pub(crate) to: To,

    #[command(flatten)]
    pub(crate) guest: Guest,

    /// How its clocks are saved and restored
    #[arg(long, default_value = "atomic")]
    pub(crate) method: Method,

    /// Mode of method atomic
    #[arg(long, default_value = "auto")]
    pub(crate) mode: ModeChoice,

    /// How to compare the hosts' clocks
    #[arg(long, default_value = "exchange")]
    pub(crate) sync: ClockSource,

    /// Number of round trips; 0: the guest moves once, and stays there
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) round_trips: u32,

    /// Trace the kernel's clock snapshot at a restore with a kprobe (root)
    #[arg(long)]
    pub(crate) trace_clock: bool,

    /// Relation between the TSCs of two emulated hosts, written by tools/vm/host pair
    #[arg(long, value_name = "FILE")]
    pub(crate) truth: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    /// Show every move; JSON always includes them
    #[arg(long)]
    pub(crate) verbose: bool,
}

/// Where guests come from.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Arrivals {
    /// Receive guests through stdin and stdout, for `clockguest migrate --via`; they end with the
    /// connection
    #[arg(long)]
    pub(crate) stdio: bool,

    /// For test networks: listen on a port, by default of this host alone. Anybody who can connect
    /// can run a guest here
    #[arg(long, value_name = "[ADDRESS:]PORT")]
    pub(crate) listen: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) arrivals: Arrivals,

    /// How long a connection may take, with all of its guests
    #[arg(long, default_value = "600s", value_parser = duration::parse)]
    pub(crate) deadline: Duration,

    /// Exit after the first connection
    #[arg(long, conflicts_with = "stdio")]
    pub(crate) once: bool,

    /// Trace the kernel's clock snapshot at a restore with a kprobe (root)
    #[arg(long)]
    pub(crate) trace_clock: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Watch {
    /// How its clocks are saved and restored
    #[arg(long, default_value = "atomic")]
    pub(crate) method: Method,

    /// vCPUs of the guest
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    pub(crate) vcpus: u32,

    /// Time between two pauses, e.g. 200ms
    #[arg(long, default_value = "1s", value_parser = duration::parse)]
    pub(crate) interval: Duration,

    /// Minimum length of a pause, e.g. 500us, 50ms, 5s
    #[arg(long, default_value = "50ms", value_parser = duration::parse)]
    pub(crate) downtime: Duration,

    /// Number of pauses [default: until Ctrl-C]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cycles: Option<u32>,

    /// Print a JSON object per cycle, one per line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Save {
    /// Save to a file
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "luo",
        conflicts_with = "luo"
    )]
    pub(crate) to: Option<PathBuf>,

    /// Preserve the guest in a new LUO session, and wait for the kexec
    #[arg(long, value_name = "NAME")]
    pub(crate) luo: Option<String>,

    #[command(flatten)]
    pub(crate) guest: Guest,

    /// How its clocks are saved and later restored
    #[arg(long, default_value = "atomic")]
    pub(crate) method: Method,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Restore {
    /// Restore from a file
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "luo",
        conflicts_with = "luo"
    )]
    pub(crate) from: Option<PathBuf>,

    /// Restore from a LUO session that the previous kernel handed over
    #[arg(long, value_name = "NAME")]
    pub(crate) luo: Option<String>,

    /// Mode of method atomic [default: exact, which fails on any error]
    #[arg(long)]
    pub(crate) mode: Option<Mode>,

    /// Run the guest, then save it again
    #[arg(long, value_name = "FILE")]
    pub(crate) to: Option<PathBuf>,

    /// Run the guest, then preserve it in a new LUO session, and wait for the kexec
    #[arg(long, value_name = "NAME", conflicts_with = "to")]
    pub(crate) luo_to: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Size {
    /// vCPUs of the guest
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    pub(crate) vcpus: u32,

    /// Number of times to save and restore the clocks
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cycles: u32,

    /// Minimum time from stop to run, e.g. 500us, 50ms, 5s
    #[arg(long, default_value = "50ms", value_parser = duration::parse)]
    pub(crate) downtime: Duration,
}
