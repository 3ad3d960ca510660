// SPDX-License-Identifier: GPL-2.0-only

//! The command line of `clock-bench`.

mod count;
mod idle;
mod locked;
mod procedure;
mod slope;
mod vm;
mod whole;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use clockguest::{
    host::open_kvm,
    origin::{Origin, WithOrigin},
};
use std::{fs, path::PathBuf, process::ExitCode};

const EXIT_STATUS: &str = "\
Exit status:
  0  done
  1  failed
  2  wrong usage";

/// Counts the instructions for saving and restoring a guest's clocks, and the cost for a guest that
/// does not use the interface
///
/// This needs a host whose TSC counts its instructions, as QEMU's does with `-icount shift=0`;
/// `make bench` provides one.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Number of rounds; the minimum counts, as interrupts only add to it
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,

    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,

    /// Also write the JSON object to this file
    #[arg(long, global = true)]
    save: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count a save and a restore of the clocks of a whole VM with each procedure
    #[command(after_help = EXIT_STATUS)]
    Whole {
        /// Numbers of vCPUs
        #[arg(long, value_delimiter = ',', default_value = "1,2,8,64,256,1024", value_parser = clap::value_parser!(u32).range(1..=4096))]
        vcpus: Vec<u32>,
    },

    /// Do one save or restore between two marks, for QEMU's plugin profile.c to count by function
    #[command(after_help = EXIT_STATUS)]
    Mark {
        /// Procedure
        #[arg(long)]
        procedure: procedure::Procedure,

        /// Operation
        #[arg(long)]
        operation: whole::Operation,

        /// State of the clocks before the operation
        #[arg(long, default_value = "unchanged")]
        case: whole::Case,

        /// Number of vCPUs
        #[arg(long)]
        vcpus: u32,
    },

    /// Count KVM_RUN until the guest halts, without and with an update of the guest's clock
    #[command(after_help = EXIT_STATUS)]
    Idle,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("clock-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    count::ensure_tsc_counts()?;
    let kvm = open_kvm(false)?;
    let origin = Origin::of_this();
    let (json, text) = match &cli.command {
        Command::Whole { vcpus } => {
            let whole = whole::Whole::measure(&kvm, vcpus, cli.repeat)?;
            let json = serde_json::to_string(&WithOrigin::new("bench", &origin, &whole))?;
            (json, whole.to_text())
        }
        Command::Mark {
            procedure,
            operation,
            case,
            vcpus,
        } => return whole::mark(&kvm, *vcpus, *procedure, *operation, *case),
        Command::Idle => {
            let idle = idle::Idle::measure(&kvm, cli.repeat)?;
            let json = serde_json::to_string(&WithOrigin::new("idle", &origin, &idle))?;
            (json, idle.to_text())
        }
    };
    if let Some(file) = &cli.save {
        fs::write(file, &json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    match cli.json {
        true => println!("{json}"),
        false => print!("{text}"),
    }
    Ok(())
}
