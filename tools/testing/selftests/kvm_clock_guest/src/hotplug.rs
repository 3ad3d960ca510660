// SPDX-License-Identifier: GPL-2.0-only

//! CPUs of the host that go offline temporarily; needs root.

use crate::{ensure_eq, ktap::Skip, wait::wait_until};
use anyhow::{bail, Context, Result};
use std::{fs, path::Path, time::Duration};

const CPUS: &str = "/sys/devices/system/cpu";

/// CPUs that can go offline one by one, not all of the host's.
///
/// Fails with [`Skip`] if there is none.
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
        ensure_eq!(now.trim(), state, "{file}");
        Ok(())
    }

    /// Takes it offline.
    pub fn go_offline(self) -> Result<Offline> {
        self.write("0")?;
        Ok(Offline(self))
    }

    /// Returns when the thread of a vCPU of this process is on this CPU.
    pub fn wait_for_vcpu(self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(60);

        let what = format!("a vCPU runs on CPU {}", self.0);
        wait_until(&what, PATIENCE, || Ok(cpus_of_vcpus()?.contains(&self.0)))
    }
}

/// While this exists, a CPU is offline.
#[derive(Debug)]
pub struct Offline(HostCpu);

impl Offline {
    /// Takes it online again.
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

/// Numbers of the CPUs that the threads of this process's vCPUs use, or used last.
fn cpus_of_vcpus() -> Result<Vec<u32>> {
    /// In `/proc/PID/stat`, counted from the name.
    const PROCESSOR: usize = 36;

    let mut cpus = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        // A thread of an earlier VM may be about to end.
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
