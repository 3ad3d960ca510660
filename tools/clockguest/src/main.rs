// SPDX-License-Identifier: GPL-2.0-only

//! The command line of `clockguest`.

mod auditor;
mod cli;
mod demo;
mod help;
mod man;
mod stop;
mod watch;

use anyhow::{Context, Result};
use clap::{error::ErrorKind, CommandFactory, Parser};
use cli::{Cli, Command, Migrate, Restore, Save, Serve};
use clockguest::{
    audit::Unavailable as NothingToAudit,
    host::Unavailable,
    info::Info,
    migration::{self, Destination, GroundTruth, MigrateConfig, ServeConfig, Transport},
    origin::{Origin, WithOrigin},
    progress::Progress,
    report,
    scenario::{self, worker, Config},
    update::{self, Place, RestoreConfig, SaveConfig, Session},
};
use demo::Demo;
use man::ManPages;
use serde::Serialize;
use std::{
    fs,
    io::{stdout, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

/// A clock error of an exact method, or another failure.
const FAILED: u8 = 1;
/// Not supported on this host; clap's status for wrong usage is 2.
const UNAVAILABLE: u8 = 4;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("clockguest: {error:#}");
            ExitCode::from(if error.is::<Unavailable>() {
                UNAVAILABLE
            } else if let Some(nothing) = error.downcast_ref::<NothingToAudit>() {
                nothing.status()
            } else {
                FAILED
            })
        }
    }
}

fn run(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Info { json } => info(cli.any_kvm, json),
        Command::Cycle {
            scenario,
            method,
            size,
            json,
            verbose,
        } => {
            let config = Config {
                scenario,
                method,
                vcpus: size.vcpus,
                cycles: size.cycles,
                downtime: size.downtime,
                any_kvm: cli.any_kvm,
            };
            cycle(&config, json, verbose)
        }
        Command::Demo {
            size,
            json,
            json_file,
        } => {
            let demo = Demo::run(size.vcpus, size.cycles, size.downtime, cli.any_kvm)?;
            show_demo(demo, json, json_file.as_deref())
        }
        Command::Selftest(args) => args.run(cli.any_kvm),
        Command::Audit(args) => auditor::run(&args),
        Command::Watch(args) => watch::run(&args, cli.any_kvm),
        Command::Migrate(migrate) => move_guest(migrate, cli.any_kvm),
        Command::Serve(args) => serve(args, cli.any_kvm),
        Command::Save(args) => save(args, cli.any_kvm),
        Command::Restore(args) => restore(args, cli.any_kvm),
        Command::Report { out, files } => {
            let written = report::write(&files, &out)?;
            println!("{}", written.page.display());
            eprintln!(
                "clockguest: {} charts of {} runs, each also as SVG and PNG",
                written.charts, written.runs
            );
            Ok(0)
        }
        Command::Man(args) => man_pages(&args),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "clockguest", &mut script);
            stdout().write_all(&script)?;
            Ok(0)
        }
        // Its parent reports errors.
        Command::Worker { method } => Ok(worker::serve(method, cli.any_kvm).map_or(FAILED, |()| 0)),
    }
}

/// Prints a result as JSON or as text.
fn print(json: bool, result: &impl Serialize, text: &str) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(result)?);
    } else {
        print!("{text}");
    }
    Ok(())
}

fn info(any_kvm: bool, json: bool) -> Result<u8> {
    let info = Info::gather(any_kvm);
    print(json, &info, &info.to_text())?;
    if let Some(problem) = &info.problem {
        eprintln!("clockguest: {problem}");
        return Ok(UNAVAILABLE);
    }
    Ok(0)
}

fn cycle(config: &Config, json: bool, verbose: bool) -> Result<u8> {
    let what = format!("{} with {}", config.scenario.name(), config.method.name());
    let mut progress = Progress::new(what, config.cycles);
    let summary = scenario::run(config, &mut progress)?;
    progress.finish(summary.cycles_done);
    let origin = Origin::of_this();
    let run = WithOrigin::new("cycle", &origin, &summary);
    print(json, &run, &summary.to_text(verbose))?;
    Ok(summary.first_error.map_or(0, |_| FAILED))
}

fn move_guest(args: Migrate, any_kvm: bool) -> Result<u8> {
    let config = MigrateConfig {
        // The command line requires one of the two.
        to: match (args.to.via, args.to.to) {
            (Some(command), _) => Destination::Command(command),
            (None, address) => Destination::Address(address.unwrap_or_default()),
        },
        vcpus: args.guest.vcpus,
        tsc_khz: args.guest.tsc_khz,
        method: args.method,
        mode: args.mode,
        sync: args.sync,
        round_trips: args.round_trips,
        trace_clock: args.trace_clock,
        truth: args.truth.as_deref().map(GroundTruth::read).transpose()?,
        any_kvm,
    };
    let what = format!("migrate with {}", config.method.name());
    let mut progress = Progress::new(what, (2 * config.round_trips).max(1));
    let summary = migration::migrate(&config, &mut progress)?;
    progress.finish(summary.moves_done);
    let origin = Origin::of_this();
    let run = WithOrigin::new("migrate", &origin, &summary);
    print(args.json, &run, &summary.to_text(args.verbose))?;
    Ok(summary.first_error.map_or(0, |_| FAILED))
}

fn serve(args: Serve, any_kvm: bool) -> Result<u8> {
    let config = ServeConfig {
        // The command line requires this or --stdio.
        transport: args
            .arrivals
            .listen
            .map_or(Transport::Stdio, Transport::Listen),
        once: args.once,
        deadline: args.deadline,
        trace_clock: args.trace_clock,
        any_kvm,
    };
    migration::serve(&config, &mut |line| eprintln!("clockguest: {line}"))?;
    Ok(0)
}

fn save(args: Save, any_kvm: bool) -> Result<u8> {
    let config = SaveConfig {
        to: place(args.to, args.luo).context("--to or --luo is missing")?,
        vcpus: args.guest.vcpus,
        tsc_khz: args.guest.tsc_khz,
        method: args.method,
        any_kvm,
    };
    let (report, session) = update::save(&config)?;
    print(args.json, &report, &report.to_text())?;
    hold(session.as_ref());
    Ok(0)
}

fn restore(args: Restore, any_kvm: bool) -> Result<u8> {
    let config = RestoreConfig {
        from: place(args.from, args.luo).context("--from or --luo is missing")?,
        mode: args.mode,
        to: place(args.to, args.luo_to),
        any_kvm,
    };
    let (outcome, session) = update::restore(&config)?;
    print(args.json, &outcome, &outcome.to_text())?;
    if outcome.first_error.is_none() {
        hold(session.as_ref());
    }
    Ok(outcome.first_error.map_or(0, |_| FAILED))
}

fn place(file: Option<PathBuf>, session: Option<String>) -> Option<Place> {
    file.map(Place::File).or(session.map(Place::Session))
}

/// Keeps `session`, if any, until the kexec: the kernel drops one that nobody has open.
fn hold(session: Option<&Session>) {
    if let Some(session) = session {
        eprintln!(
            "clockguest: holding LUO session {:?} until the kexec",
            session.name()
        );
        loop {
            thread::park();
        }
    }
}

fn man_pages(args: &ManPages) -> Result<u8> {
    if let Some(to) = &args.to {
        man::write_all::<Cli>(to, &args.date)?;
        return Ok(0);
    }
    let Some(page) = man::page::<Cli>(args.subcommand.as_deref(), &args.date) else {
        let unknown = format!(
            "no subcommand '{}'",
            args.subcommand.as_deref().unwrap_or_default()
        );
        Cli::command()
            .error(ErrorKind::InvalidSubcommand, unknown)
            .exit();
    };
    stdout().write_all(page.as_bytes())?;
    Ok(0)
}

fn show_demo(mut demo: Demo, json: bool, file: Option<&Path>) -> Result<u8> {
    let runs = demo.to_json()?;
    if let Some(file) = file {
        fs::write(file, format!("{runs}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if json {
        println!("{runs}");
    } else {
        print!("{}", demo.to_text());
    }
    if !demo.passed() {
        return Ok(FAILED);
    }
    demo.missing().map_or(Ok(0), |missing| Err(missing.into()))
}
