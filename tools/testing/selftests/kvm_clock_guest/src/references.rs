// SPDX-License-Identifier: GPL-2.0-only

//! What is in use of KVM: its modules' reference counts, and its VMs.

use crate::{ktap::Skip, wait::wait_until};
use anyhow::{Context, Result};
use std::{fs, path::Path, time::Duration};

/// KVM's own module.
pub const KVM: &str = "kvm";
/// The module under test.
pub const CLOCK_GUEST: &str = "kvm_clock_guest";
/// KVM's module for the host's CPU is one of these.
const VENDORS: [&str; 2] = ["kvm_amd", "kvm_intel"];
/// A folder for each VM.
const VMS: &str = "/sys/kernel/debug/kvm";
/// The kernel releases some resources of a process later than the process ends.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether module `name` is loaded.
pub fn is_loaded(name: &str) -> bool {
    Path::new("/sys/module").join(name).join("refcnt").exists()
}

/// The name of KVM's module for the host's CPU.
///
/// Fails with [`Skip`] if none is loaded.
pub fn vendor() -> Result<&'static str> {
    let loaded = VENDORS.into_iter().find(|name| is_loaded(name));
    Ok(loaded.ok_or_else(|| Skip("no module of KVM for this CPU is loaded".into()))?)
}

/// The reference count of module `name`.
pub fn count(name: &str) -> Result<u32> {
    let path = format!("/sys/module/{name}/refcnt");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    text.trim()
        .parse()
        .with_context(|| format!("{path}: {text}"))
}

/// All of them at one moment.
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
    /// Fails with [`Skip`] if one of the modules, or debugfs, is not there.
    pub fn now() -> Result<Self> {
        let mut counts = [KVM, vendor()?, CLOCK_GUEST].map(|name| (name, 0));
        for (name, number) in &mut counts {
            *number = count(name).map_err(|error| Skip(format!("{error:#}")))?;
        }
        let vms = fs::read_dir(VMS).map_err(|error| Skip(format!("{VMS}: {error}")))?;
        // An object that is being destroyed may no longer have a type.
        let vms = vms
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|is| is.is_dir()));
        Ok(Self {
            counts,
            vms: vms.count(),
        })
    }

    /// Returns when the present ones equal these.
    pub fn wait_until_back(&self) -> Result<()> {
        let back = || Ok(Self::now()? == *self);
        wait_until("references are released", PATIENCE, back)
            .with_context(|| format!("there are {:?}, before {self:?}", Self::now()))
    }
}
