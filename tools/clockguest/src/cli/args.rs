// SPDX-License-Identifier: GPL-2.0-only

//! Arguments of the commands that have many.

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
pub(crate) struct Migrate {
    /// Address of the other host's `clockguest serve`, HOST:PORT
    #[arg(long)]
    pub(crate) to: String,

    #[command(flatten)]
    pub(crate) guest: Guest,

    /// How its clocks are saved and restored
    #[arg(long, default_value = "atomic")]
    pub(crate) method: Method,

    /// How method atomic carries them over
    #[arg(long, default_value = "auto")]
    pub(crate) mode: ModeChoice,

    /// What the hosts' time of day is compared by
    #[arg(long, default_value = "exchange")]
    pub(crate) sync: ClockSource,

    /// Times that the guest goes there and comes back; 0: it goes there, and stays
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) round_trips: u32,

    /// Trace by a kprobe what the kernel's clock says when the guest's clocks are set (root)
    #[arg(long)]
    pub(crate) trace_clock: bool,

    /// What the two emulated hosts' TSCs are; tools/vm/pair writes that
    #[arg(long, value_name = "FILE")]
    pub(crate) truth: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    /// Show every move too; JSON always has them all
    #[arg(long)]
    pub(crate) verbose: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Watch {
    /// How its clocks are saved and restored
    #[arg(long, default_value = "atomic")]
    pub(crate) method: Method,

    /// vCPUs of the guest
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    pub(crate) vcpus: u32,

    /// Time that the guest runs between two pauses, e.g. 200ms
    #[arg(long, default_value = "1s", value_parser = duration::parse)]
    pub(crate) interval: Duration,

    /// Least time of a pause, e.g. 500us, 50ms, 5s
    #[arg(long, default_value = "50ms", value_parser = duration::parse)]
    pub(crate) downtime: Duration,

    /// End after as many pauses [default: go on until Ctrl-C]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cycles: Option<u32>,

    /// Print a JSON object for each cycle, each in a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Save {
    /// The file
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,

    #[command(flatten)]
    pub(crate) guest: Guest,

    /// How its clocks are saved, and later restored
    #[arg(long, default_value = "atomic")]
    pub(crate) method: Method,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Restore {
    /// The file
    #[arg(long, value_name = "FILE")]
    pub(crate) from: PathBuf,

    /// How method atomic carries the clocks over [default: exact, which fails if it loses anything]
    #[arg(long)]
    pub(crate) mode: Option<Mode>,

    /// Save the guest again after it has run
    #[arg(long, value_name = "FILE")]
    pub(crate) to: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
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
