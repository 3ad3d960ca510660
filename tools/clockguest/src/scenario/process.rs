// SPDX-License-Identifier: GPL-2.0-only

//! The parent's end of a [`worker`](super::worker).

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

/// How long a worker may take for one answer; more than the patience of what it does itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a worker may take to exit.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// A worker process; killed if dropped before it was told to quit.
pub(super) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    events: Receiver<Event>,
}

impl Process {
    /// Starts one: this program, with its hidden subcommand.
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
        // Ends with the worker's stdout, or when nobody listens any more.
        spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line)
                    .unwrap_or_else(|e| Event::Failed(format!("unreadable answer: {e}: {line}")));
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

    /// The caller waits for what it is answered.
    pub(super) fn load(&mut self, from: Channel) -> Result<()> {
        self.send(&Command::Load { from })
    }

    pub(super) fn wait_listening(&mut self) -> Result<()> {
        match self.answer()? {
            Event::Listening => Ok(()),
            event => Err(unexpected(&event)),
        }
    }

    pub(super) fn wait_ready(&mut self) -> Result<()> {
        match self.answer()? {
            Event::Ready => Ok(()),
            event => Err(unexpected(&event)),
        }
    }

    pub(super) fn run(&mut self) -> Result<()> {
        self.send(&Command::Run)?;
        match self.answer()? {
            Event::Running => Ok(()),
            event => Err(unexpected(&event)),
        }
    }

    pub(super) fn stop(&mut self, to: Option<Channel>) -> Result<Reading> {
        self.send(&Command::Stop { to })?;
        match self.answer()? {
            Event::Stopped(reading) => Ok(reading),
            event => Err(unexpected(&event)),
        }
    }

    /// Returns when the process, and with it its VM, is gone.
    pub(super) fn quit(mut self) -> Result<()> {
        self.stdin = None;
        let start = Instant::now();
        while start.elapsed() < EXIT_PATIENCE {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("worker {}: {status}", self.child.id()),
                None => sleep(Duration::from_millis(1)),
            }
        }
        bail!(
            "worker {} did not exit within {EXIT_PATIENCE:?}",
            self.child.id()
        )
    }

    fn send(&mut self, command: &Command) -> Result<()> {
        let stdin = self.stdin.as_mut().context("worker was told to quit")?;
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        let sent = stdin.write_all(&line);
        // A worker that died has said why, and that is the better message.
        sent.map_err(|e| self.answer().err().unwrap_or(e.into()))
    }

    fn answer(&mut self) -> Result<Event> {
        let id = self.child.id();
        match self.events.recv_timeout(PATIENCE) {
            Ok(Event::Failed(message)) => bail!("worker {id}: {message}"),
            Ok(event) => Ok(event),
            Err(RecvTimeoutError::Timeout) => {
                bail!("worker {id} did not answer within {PATIENCE:?}")
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
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unexpected(event: &Event) -> anyhow::Error {
    anyhow!("worker answered out of turn: {event:?}")
}
