// SPDX-License-Identifier: GPL-2.0-only

//! Live update: save a VM to a file, replace the host's kernel, restore the VM.
//!
//! What happens in between is not this program's doing: [`save`] and [`restore`] are two runs of it.
//! The host's TSC counts on over a kexec, so mode exact loses nothing; what the new kernel has of its
//! own is a calibration of the TSC's rate, and a time of day.

mod file;
mod outcome;

pub use file::read_and_write;
pub use outcome::Outcome;

use crate::{
    host::{boot_id, open_kvm, rdtsc_ordered},
    measure::Reading,
    method::{Method, Mode, Saved},
    observe,
    scenario::{stop_and_save, warm_up},
    vmm::Vm,
};
use anyhow::{bail, Context, Result};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A boot of a host, seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// What Linux calls this boot.
    pub boot_id: String,
    /// Host TSC rate as this boot calibrated it, kHz.
    pub tsc_khz: u32,
    /// Host TSC, ticks.
    pub tsc: u64,
    /// Time since this boot, ms.
    pub uptime_ms: u64,
}

impl Boot {
    fn current(kvm: &Kvm) -> Result<Self> {
        let uptime = fs::read_to_string("/proc/uptime").context("cannot read /proc/uptime")?;
        Ok(Self {
            boot_id: boot_id().context("cannot read this boot's id")?,
            // A vCPU for which nobody asked for another rate has the host's.
            tsc_khz: Vm::empty(kvm, 1)?.tsc_khz()?,
            tsc: rdtsc_ordered(),
            uptime_ms: parse_uptime(&uptime).context("/proc/uptime does not begin with seconds")?,
        })
    }
}

/// `/proc/uptime`'s first number, ms.
fn parse_uptime(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_whitespace().next()?.split_once('.')?;
    let hundredths: u64 = fraction.get(..2)?.parse().ok()?;
    Some(seconds.parse::<u64>().ok()? * 1000 + hundredths * 10)
}

/// What is saved beside memory and registers.
#[derive(Debug, Serialize, Deserialize)]
struct Update {
    clocks: Saved,
    /// The last reading before the update.
    before: Reading,
    /// Where it was saved.
    boot: Boot,
}

/// What was saved, for a reader.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How the clocks were saved.
    pub method: Method,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Guest TSC rate, kHz.
    pub tsc_khz: u32,
    /// Where it was saved.
    pub boot: Boot,
}

impl Report {
    /// A line for a reader.
    pub fn to_text(&self) -> String {
        format!(
            "saved {} vCPUs by {} in boot {}, host TSC {} of {} kHz\n",
            self.vcpus,
            self.method.name(),
            self.boot.boot_id,
            self.boot.tsc,
            self.boot.tsc_khz,
        )
    }
}

/// What to save.
#[derive(Clone, Debug)]
pub struct SaveConfig {
    /// The file.
    pub to: PathBuf,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// TSC rate of the guest, kHz; `None` for the host's.
    pub tsc_khz: Option<u32>,
    /// How the clocks are saved.
    pub method: Method,
    /// Use `/dev/kvm` whichever module is behind it.
    pub any_kvm: bool,
}

/// Makes a VM with a fresh guest, lets it run and read its clocks, and saves it.
///
/// # Errors
///
/// [`Unavailable`](crate::host::Unavailable); those of KVM and of the file.
pub fn save(config: &SaveConfig) -> Result<Report> {
    let kvm = open_kvm(config.any_kvm)?;
    let vm = match config.tsc_khz {
        None => Vm::new(&kvm, config.vcpus),
        Some(tsc_khz) => Vm::at_rate(&kvm, config.vcpus, tsc_khz),
    }?;
    config.method.check(&vm)?;
    warm_up(&vm)?;
    let run = observe::run(&vm)?;
    let (clocks, before) = stop_and_save(&vm, run, config.method)?;
    store(&config.to, &kvm, &vm, clocks, before)
}

/// Makes a new VM of the file `from`, lets it run, and compares its clocks with those before; then
/// saves it again to the file `to`, if there is one. `mode` is of method atomic alone.
///
/// # Errors
///
/// If the file is not one that [`save`] wrote, all of it; [`Unavailable`](crate::host::Unavailable);
/// those of KVM.
pub fn restore(
    from: &Path,
    mode: Option<Mode>,
    to: Option<&Path>,
    any_kvm: bool,
) -> Result<Outcome> {
    let (state, update) = file::read(from)?;
    let method = update.clocks.method();
    let mode = match method {
        Method::Atomic => Some(mode.unwrap_or(Mode::Exact)),
        _ if mode.is_some() => bail!(
            "{from:?} was saved by {}, which has no modes",
            method.name()
        ),
        _ => None,
    };
    let kvm = open_kvm(any_kvm)?;
    let boot = Boot::current(&kvm)?;
    let nr_vcpus = u32::try_from(state.vcpus.len())?;
    let vm = Vm::empty_at_rate(&kvm, nr_vcpus, update.before.tsc_khz)?;
    method.check(&vm)?;
    vm.load(&state)?;
    match (&update.clocks, mode) {
        (Saved::Atomic(saved), Some(mode)) => drop(saved.set(&vm, mode)?),
        (clocks, _) => clocks.restore(&vm)?,
    }
    let run = observe::run(&vm)?;
    let (clocks, after) = stop_and_save(&vm, run, method)?;
    let outcome = Outcome::new(method, mode, &update.before, &after, update.boot, boot)?;
    if let Some(to) = to {
        store(to, &kvm, &vm, clocks, after)?;
    }
    Ok(outcome)
}

fn store(to: &Path, kvm: &Kvm, vm: &Vm, clocks: Saved, before: Reading) -> Result<Report> {
    let report = Report {
        method: clocks.method(),
        vcpus: u32::try_from(vm.vcpus().len())?,
        tsc_khz: before.tsc_khz,
        boot: Boot::current(kvm)?,
    };
    let update = Update {
        clocks,
        before,
        boot: report.boot.clone(),
    };
    file::write(to, &vm.save()?, &update)?;
    Ok(report)
}

impl Saved {
    /// The method that saved them.
    fn method(&self) -> Method {
        match self {
            Self::Atomic(_) => Method::Atomic,
            Self::LegacyMsr(_) => Method::LegacyMsr,
            Self::LegacyOffset(_) => Method::LegacyOffset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_is_read() {
        assert_eq!(parse_uptime("5.07 3.99\n"), Some(5070));
        assert_eq!(parse_uptime("86400.50 1.00\n"), Some(86_400_500));
        assert_eq!(parse_uptime(""), None);
        assert_eq!(parse_uptime("soon"), None);
    }
}
