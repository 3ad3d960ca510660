// SPDX-License-Identifier: GPL-2.0-only

//! A process that holds one VM: obeys commands on stdin and answers on stdout, a JSON line each.

use super::{stop_and_save, warm_up};
use crate::{
    host::open_kvm,
    measure::Reading,
    method::{Method, Saved},
    observe::{self, Run},
    vmm::{state::VmState, Vm},
};
use anyhow::{bail, Context, Result};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
};

/// Where a state comes from or goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// A regular file.
    File(PathBuf),
    /// A Unix socket, on which the receiving side listens.
    Socket(PathBuf),
}

/// What a worker is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Make a VM with a fresh guest; answered by [`Event::Ready`].
    Create {
        /// vCPUs of the guest.
        vcpus: u32,
    },
    /// Make a VM of a saved state, all but its clocks; answered by [`Event::Listening`] if from a
    /// socket, then by [`Event::Ready`].
    Load {
        /// Where the state is.
        from: Channel,
    },
    /// Restore the clocks if they were saved, let the VM run; answered by [`Event::Running`].
    Run,
    /// Stop the VM, save it if there is where to; answered by [`Event::Stopped`].
    Stop {
        /// Where the state goes.
        to: Option<Channel>,
    },
}

/// What a worker answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// It waits for a connection.
    Listening,
    /// The VM is complete but for its clocks, and stopped.
    Ready,
    /// The VM runs, and fresh readings of every vCPU were taken.
    Running,
    /// The VM is stopped, and saved if that was asked for.
    Stopped(Reading),
    /// Something went wrong, and the worker is about to exit.
    Failed(String),
}

/// The life of a VM in a worker.
enum Stage {
    Empty,
    Ready(Vm, Option<Saved>),
    Running(Vm, Run),
    Stopped(#[expect(dead_code, reason = "the VM lives until the worker is told to quit")] Vm),
}

/// Obeys until stdin ends.
///
/// # Errors
///
/// The first error, which was answered as [`Event::Failed`] too.
pub fn serve(method: Method, any_kvm: bool) -> Result<()> {
    let result = obey(method, any_kvm);
    if let Err(error) = &result {
        answer(&Event::Failed(format!("{error:#}")))?;
    }
    result
}

fn obey(method: Method, any_kvm: bool) -> Result<()> {
    let kvm = open_kvm(any_kvm)?;
    let mut stage = Stage::Empty;
    for line in std::io::stdin().lock().lines() {
        let command = serde_json::from_str(&line?).context("bad command")?;
        stage = step(&kvm, method, stage, command)?;
    }
    Ok(())
}

fn step(kvm: &Kvm, method: Method, stage: Stage, command: Command) -> Result<Stage> {
    match (command, stage) {
        (Command::Create { vcpus }, Stage::Empty) => {
            let vm = Vm::new(kvm, vcpus)?;
            warm_up(&vm)?;
            answer(&Event::Ready)?;
            Ok(Stage::Ready(vm, None))
        }
        (Command::Load { from }, Stage::Empty) => {
            let (state, clocks) = receive(&from)?;
            let nr_vcpus = u32::try_from(state.vcpus.len())?;
            let vm = Vm::empty(kvm, nr_vcpus)?;
            vm.load(&state)?;
            answer(&Event::Ready)?;
            Ok(Stage::Ready(vm, Some(clocks)))
        }
        (Command::Run, Stage::Ready(vm, clocks)) => {
            if let Some(clocks) = clocks {
                clocks.restore(&vm)?;
            }
            let run = observe::run(&vm)?;
            answer(&Event::Running)?;
            Ok(Stage::Running(vm, run))
        }
        (Command::Stop { to }, Stage::Running(vm, run)) => {
            let (clocks, reading) = stop_and_save(&vm, run, method)?;
            if let Some(to) = to {
                send(&to, &vm.save()?, &clocks)?;
            }
            answer(&Event::Stopped(reading))?;
            Ok(Stage::Stopped(vm))
        }
        (command, _) => bail!("{command:?} makes no sense now"),
    }
}

fn answer(event: &Event) -> Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&line)?;
    Ok(stdout.flush()?)
}

fn receive(from: &Channel) -> Result<(VmState, Saved)> {
    match from {
        Channel::File(path) => {
            let file = File::open(path).with_context(|| format!("cannot open {path:?}"))?;
            Ok(VmState::read(&mut BufReader::new(file))?)
        }
        Channel::Socket(path) => {
            let listener =
                UnixListener::bind(path).with_context(|| format!("cannot listen on {path:?}"))?;
            answer(&Event::Listening)?;
            let (stream, _) = listener.accept()?;
            Ok(VmState::read(&mut BufReader::new(stream))?)
        }
    }
}

fn send(to: &Channel, state: &VmState, clocks: &Saved) -> Result<()> {
    match to {
        Channel::File(path) => {
            let file = File::create(path).with_context(|| format!("cannot create {path:?}"))?;
            Ok(state.write(clocks, &mut BufWriter::new(file))?)
        }
        Channel::Socket(path) => {
            let stream =
                UnixStream::connect(path).with_context(|| format!("cannot connect to {path:?}"))?;
            Ok(state.write(clocks, &mut BufWriter::new(stream))?)
        }
    }
}
