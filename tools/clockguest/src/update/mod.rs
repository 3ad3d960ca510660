// SPDX-License-Identifier: GPL-2.0-only

//! Live update: saves a VM to a file, and restores it after a kexec has replaced the host's kernel.
//!
//! [`save`] and [`restore`] are two runs of the program; the kexec between them is the user's. The
//! host's TSC continues to count over a kexec, so mode exact loses nothing. The new kernel
//! calibrates the TSC's rate anew, and has its own time of day.

mod file;
mod outcome;

pub use file::read_and_write;
pub use outcome::Outcome;

use crate::{
    host::{open_kvm, rdtsc_ordered},
    measure::Reading,
    method::{Method, Mode, Saved},
    observe,
    scenario::{stop_and_save, warm_up},
    vmm::Vm,
};
use anyhow::{bail, Context, Result};
use kvm_clock::HostId;
use kvm_ioctls::Kvm;
use pvclock::counter::HostTsc;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A boot of a host at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Linux's ID of the boot.
    pub boot_id: String,
    /// Host TSC rate as calibrated in this boot, kHz.
    pub tsc_khz: u32,
    /// Host TSC.
    pub tsc: HostTsc,
    /// Time since this boot, ms.
    pub uptime_ms: u64,
}

impl Boot {
    fn current(kvm: &Kvm) -> Result<Self> {
        let uptime = fs::read_to_string("/proc/uptime").context("cannot read /proc/uptime")?;
        Ok(Self {
            boot_id: HostId::read()?.boot_id().to_owned(),
            // By default, a vCPU has the host's rate.
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

/// The saved data apart from memory and registers.
#[derive(Debug, Serialize, Deserialize)]
struct Update {
    clocks: Saved,
    /// The last reading before the update.
    before: Reading,
    /// The boot that saved it.
    boot: Boot,
}

/// The result of [`save`].
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The method.
    pub method: Method,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Guest TSC rate, kHz.
    pub tsc_khz: u32,
    /// The boot that saved it.
    pub boot: Boot,
}

impl Report {
    /// A text for the user.
    pub fn to_text(&self) -> String {
        format!(
            "saved {} vCPUs with {} in boot {}, host TSC {} of {} kHz\n",
            self.vcpus,
            self.method.name(),
            self.boot.boot_id,
            self.boot.tsc,
            self.boot.tsc_khz,
        )
    }
}

/// Parameters of [`save`].
#[derive(Clone, Debug)]
pub struct SaveConfig {
    /// The file.
    pub to: PathBuf,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// TSC rate of the guest, kHz; `None` for the host's.
    pub tsc_khz: Option<u32>,
    /// The method.
    pub method: Method,
    /// Use `/dev/kvm` even if no CPU vendor's module is loaded.
    pub any_kvm: bool,
}

/// Creates a VM with a new guest, runs it until it has read its clocks, and saves it.
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

/// Restores a VM from the file `from`, runs it, and compares its clocks with those before; then
/// saves it to the file `to`, if any. Only method atomic has a `mode`.
///
/// # Errors
///
/// If [`save`] did not write the file completely; [`Unavailable`](crate::host::Unavailable); those
/// of KVM.
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
            "{from:?} was saved with {}, which has no modes",
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
