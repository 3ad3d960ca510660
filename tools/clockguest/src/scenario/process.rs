// SPDX-License-Identifier: GPL-2.0-only

//! The parent's side of a [`worker`](super::worker).

use super::{
    program::Program,
    worker::{Channel, Command, Event},
    Config,
};
use crate::measure::Reading;
use anyhow::{anyhow, bail, Context, Result};
use std::{
    io::{BufRead, BufReader, Write},
    process::{self, Child, ChildStdin, Stdio},
    sync::mpsc::{channel, Receiver, RecvTimeoutError},
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

/// The time limit for an answer; longer than the time limits of the worker's own steps.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The time limit for a worker to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// A worker process; drop kills it unless it has exited.
pub(super) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    events: Receiver<Event>,
}

impl Process {
    /// Starts this program with its hidden subcommand.
    pub(super) fn spawn(program: &Program, config: &Config) -> Result<Self> {
        let mut command = process::Command::new(program.path());
        command.args(["worker", "--method", config.method.name()]);
        if config.any_kvm {
            command.arg("--any-kvm");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a worker")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("no stdout")?;
        let (sender, events) = channel();
        // The thread ends with the worker's stdout, or when the receiver is dropped.
        spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line)
                    .unwrap_or_else(|e| Event::Failed(format!("invalid answer: {e}: {line}")));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            stdin,
            events,
        })
    }

    pub(super) fn create(&mut self, vcpus: u32) -> Result<()> {
        self.send(&Command::Create { vcpus })?;
        self.wait_ready()
    }

    /// Starts to load a state; the caller waits for the answers.
    pub(super) fn load(&mut self, from: Channel) -> Result<()> {
        self.send(&Command::Load { from })
    }

    pub(super) fn wait_listening(&mut self) -> Result<()> {
        self.expect(&Event::Listening)
    }

    pub(super) fn wait_ready(&mut self) -> Result<()> {
        self.expect(&Event::Ready)
    }

    pub(super) fn run(&mut self) -> Result<()> {
        self.send(&Command::Run)?;
        self.expect(&Event::Running)
    }

    pub(super) fn stop(&mut self, to: Option<Channel>) -> Result<Reading> {
        self.send(&Command::Stop { to })?;
        match self.answer()? {
            Event::Stopped(reading) => Ok(reading),
            event => Err(unexpected(&event)),
        }
    }

    /// Waits until the process, and with it the VM, is gone.
    pub(super) fn quit(mut self) -> Result<()> {
        self.stdin = None;
        let start = Instant::now();
        while start.elapsed() < EXIT_TIMEOUT {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("worker {}: {status}", self.child.id()),
                None => sleep(Duration::from_millis(1)),
            }
        }
        bail!(
            "worker {} did not exit within {EXIT_TIMEOUT:?}",
            self.child.id()
        )
    }

    fn send(&mut self, command: &Command) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the worker has exited")?;
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        let sent = stdin.write_all(&line);
        // If the worker has died, its own error is the better message.
        sent.map_err(|e| self.answer().err().unwrap_or(e.into()))
    }

    fn expect(&mut self, expected: &Event) -> Result<()> {
        match self.answer()? {
            event if event == *expected => Ok(()),
            event => Err(unexpected(&event)),
        }
    }

    fn answer(&mut self) -> Result<Event> {
        let id = self.child.id();
        match self.events.recv_timeout(TIMEOUT) {
            Ok(Event::Failed(message)) => bail!("worker {id}: {message}"),
            Ok(event) => Ok(event),
            Err(RecvTimeoutError::Timeout) => {
                bail!("worker {id} did not answer within {TIMEOUT:?}")
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                bail!("worker {id} died: {status}")
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process is already gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unexpected(event: &Event) -> anyhow::Error {
    anyhow!("unexpected answer of a worker: {event:?}")
}
