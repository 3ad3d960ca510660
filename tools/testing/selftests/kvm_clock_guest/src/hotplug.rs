// SPDX-License-Identifier: GPL-2.0-only

//! CPUs of the host that go offline for a while; needs root.

use crate::ktap::Skip;
use anyhow::{bail, ensure, Context, Result};
use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

const CPUS: &str = "/sys/devices/system/cpu";

/// CPUs that can go offline, one after the other; one at least stays.
///
/// # Errors
///
/// [`Skip`] if there is none.
pub fn host_cpus() -> Result<Vec<HostCpu>> {
    let all = (0..libc::CPU_SETSIZE as u32)
        .map(HostCpu)
        .filter(|cpu| Path::new(&cpu.folder()).is_dir());
    let (can_go, stay): (Vec<_>, Vec<_>) = all.partition(|cpu| Path::new(&cpu.file()).exists());
    let can_go: Vec<_> = can_go.into_iter().skip(stay.is_empty().into()).collect();
    if can_go.is_empty() {
        bail!(Skip("this host has no CPU that can go offline".into()));
    }
    Ok(can_go)
}

/// A CPU of the host, by its number.
#[derive(Clone, Copy, Debug)]
pub struct HostCpu(u32);

impl HostCpu {
    fn folder(self) -> String {
        format!("{CPUS}/cpu{}", self.0)
    }

    fn file(self) -> String {
        format!("{}/online", self.folder())
    }

    fn write(self, state: &str) -> Result<()> {
        let file = self.file();
        fs::write(&file, state).with_context(|| format!("cannot write {state} to {file}"))?;
        let now = fs::read_to_string(&file)?;
        ensure!(
            now.trim() == state,
            "{file} is {now:?}, {state} was written"
        );
        Ok(())
    }

    /// Takes it offline.
    ///
    /// # Errors
    ///
    /// If the kernel does not.
    pub fn go_offline(self) -> Result<Offline> {
        self.write("0")?;
        Ok(Offline(self))
    }

    /// Returns when the thread of a vCPU of this process is on this CPU.
    ///
    /// # Errors
    ///
    /// If that does not happen.
    pub fn wait_for_vcpu(self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(60);

        let start = Instant::now();
        while !cpus_of_vcpus()?.contains(&self.0) {
            ensure!(
                start.elapsed() < PATIENCE,
                "no vCPU ran on CPU {} for {PATIENCE:?}",
                self.0
            );
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// The time during which a CPU is offline; dropping this ends it.
#[derive(Debug)]
pub struct Offline(HostCpu);

impl Offline {
    /// Takes it online again.
    ///
    /// # Errors
    ///
    /// If the kernel does not.
    pub fn come_back(self) -> Result<()> {
        let cpu = self.0;
        std::mem::forget(self);
        cpu.write("1")
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        if let Err(error) = self.0.write("1") {
            eprintln!("{:?} stays offline: {error:#}", self.0);
        }
    }
}

/// Numbers of the CPUs that the threads of this process' vCPUs are on, or were last.
fn cpus_of_vcpus() -> Result<Vec<u32>> {
    /// In `/proc/PID/stat`, counted from what follows the name.
    const PROCESSOR: usize = 36;

    let mut cpus = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        // A thread of a VM of before may be about to vanish.
        let stat = fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        if name.contains("(vcpu") {
            let cpu = rest.split(' ').nth(PROCESSOR);
            cpus.push(cpu.context("no processor in stat")?.parse()?);
        }
    }
    Ok(cpus)
}
