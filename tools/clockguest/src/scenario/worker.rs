// SPDX-License-Identifier: GPL-2.0-only

//! A process with one VM: it reads commands from stdin and answers on stdout, a JSON line each.

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

/// The source or destination of a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// A regular file.
    File(PathBuf),
    /// A Unix socket on which the receiver listens.
    Socket(PathBuf),
}

/// A command to a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Create a VM with a new guest; answered with [`Event::Ready`].
    Create {
        /// vCPUs of the guest.
        vcpus: u32,
    },
    /// Create a VM from a saved state, without its clocks; answered with [`Event::Listening`] for a
    /// socket, then with [`Event::Ready`].
    Load {
        /// The source of the state.
        from: Channel,
    },
    /// Restore saved clocks, and run the VM; answered with [`Event::Running`].
    Run,
    /// Stop the VM, and save it if requested; answered with [`Event::Stopped`].
    Stop {
        /// The destination of the state.
        to: Option<Channel>,
    },
}

/// A worker's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The worker waits for a connection.
    Listening,
    /// The VM is stopped, and complete except for its clocks.
    Ready,
    /// The VM runs, and every vCPU has published new samples.
    Running,
    /// The VM is stopped, and saved if requested.
    Stopped(Reading),
    /// The worker failed, and exits.
    Failed(String),
}

/// The state of a worker's VM.
enum State {
    Empty,
    Ready(Vm, Option<Saved>),
    Running(Vm, Run),
    Stopped(#[expect(dead_code, reason = "the VM lives until the worker exits")] Vm),
}

/// Handles commands until stdin ends.
///
/// # Errors
///
/// The first error, which [`Event::Failed`] also reports.
pub fn serve(method: Method, any_kvm: bool) -> Result<()> {
    let result = handle_commands(method, any_kvm);
    if let Err(error) = &result {
        answer(&Event::Failed(format!("{error:#}")))?;
    }
    result
}

fn handle_commands(method: Method, any_kvm: bool) -> Result<()> {
    let kvm = open_kvm(any_kvm)?;
    let mut state = State::Empty;
    for line in std::io::stdin().lock().lines() {
        let command = serde_json::from_str(&line?).context("bad command")?;
        state = step(&kvm, method, state, command)?;
    }
    Ok(())
}

fn step(kvm: &Kvm, method: Method, state: State, command: Command) -> Result<State> {
    match (command, state) {
        (Command::Create { vcpus }, State::Empty) => {
            let vm = Vm::new(kvm, vcpus)?;
            warm_up(&vm)?;
            answer(&Event::Ready)?;
            Ok(State::Ready(vm, None))
        }
        (Command::Load { from }, State::Empty) => {
            let (state, clocks) = receive(&from)?;
            let nr_vcpus = u32::try_from(state.vcpus.len())?;
            let vm = Vm::empty(kvm, nr_vcpus)?;
            vm.load(&state)?;
            answer(&Event::Ready)?;
            Ok(State::Ready(vm, Some(clocks)))
        }
        (Command::Run, State::Ready(vm, clocks)) => {
            if let Some(clocks) = clocks {
                clocks.restore(&vm)?;
            }
            let run = observe::run(&vm)?;
            answer(&Event::Running)?;
            Ok(State::Running(vm, run))
        }
        (Command::Stop { to }, State::Running(vm, run)) => {
            let (clocks, reading) = stop_and_save(&vm, run, method)?;
            if let Some(to) = to {
                send(&to, &vm.save()?, &clocks)?;
            }
            answer(&Event::Stopped(reading))?;
            Ok(State::Stopped(vm))
        }
        (command, _) => bail!("{command:?} is invalid in this state"),
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
