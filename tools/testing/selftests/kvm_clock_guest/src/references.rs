// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel says is in use of KVM: its modules' reference counts, and its VMs.

use crate::ktap::Skip;
use anyhow::{ensure, Context, Result};
use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

/// KVM's own module.
pub const KVM: &str = "kvm";
/// The module under test.
pub const CLOCK_GUEST: &str = "kvm_clock_guest";
/// KVM's module for the host's CPU is one of these.
const VENDORS: [&str; 2] = ["kvm_amd", "kvm_intel"];
/// A folder for each VM.
const VMS: &str = "/sys/kernel/debug/kvm";
/// What a process held is let go before it can be waited for, but for what the kernel puts off.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether module `name` is loaded.
pub fn is_loaded(name: &str) -> bool {
    Path::new("/sys/module").join(name).join("refcnt").exists()
}

/// The name of KVM's module for the host's CPU.
///
/// # Errors
///
/// [`Skip`] if none is loaded.
pub fn vendor() -> Result<&'static str> {
    let loaded = VENDORS.into_iter().find(|name| is_loaded(name));
    Ok(loaded.ok_or_else(|| Skip("no module of KVM for this CPU is loaded".into()))?)
}

/// The reference count of module `name`.
///
/// # Errors
///
/// If it is not loaded.
pub fn count(name: &str) -> Result<u32> {
    let path = format!("/sys/module/{name}/refcnt");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    text.trim()
        .parse()
        .with_context(|| format!("{path}: {text}"))
}

/// All of them at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct References {
    /// Of KVM's own module, that for the CPU, and the one under test.
    counts: [(&'static str, u32); 3],
    /// VMs that exist.
    vms: usize,
}

impl References {
    /// As of now.
    ///
    /// # Errors
    ///
    /// [`Skip`] if one of the modules, or debugfs, is not there.
    pub fn now() -> Result<Self> {
        let mut counts = [KVM, vendor()?, CLOCK_GUEST].map(|name| (name, 0));
        for (name, number) in &mut counts {
            *number = count(name).map_err(|error| Skip(format!("{error:#}")))?;
        }
        let vms = fs::read_dir(VMS).map_err(|error| Skip(format!("{VMS}: {error}")))?;
        // One that goes meanwhile may have no type any more.
        let vms = vms
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|is| is.is_dir()));
        Ok(Self {
            counts,
            vms: vms.count(),
        })
    }

    /// Returns when these are all that are left.
    ///
    /// # Errors
    ///
    /// Says what there is if more, or less, remains for 20 s.
    pub fn wait_until_back(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let now = Self::now()?;
            if now == *self {
                return Ok(());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "after {PATIENCE:?} there are {now:?}, before {self:?}"
            );
            sleep(Duration::from_millis(1));
        }
    }
}
