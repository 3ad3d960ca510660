// SPDX-License-Identifier: GPL-2.0-only

//! The host's clocksource, switched away from the TSC for the duration of a case; needs root.

use crate::{
    clocks::{function, pages},
    ensure_eq,
    fixture::run_a_little,
    host_module,
    ktap::{option, Skip},
    wait::wait_until,
};
use anyhow::{bail, Context, Result};
use clockguest::vmm::Vm;
use pvclock::abi::ClockGuest;
use std::{fs, time::Duration};

const FOLDER: &str = "/sys/devices/system/clocksource/clocksource0";
/// How long the kernel may take to act on a change of the clocksource or of the TSC's stability.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The clocksource in use.
pub fn current() -> Result<String> {
    read("current_clocksource")
}

/// Another clocksource of this host, which uses the TSC: `--clocksource=NAME`, or any.
///
/// Fails with [`Skip`] if the TSC is not in use, or there is no other.
pub fn other() -> Result<String> {
    let current = current()?;
    if current != "tsc" {
        bail!(Skip(format!(
            "the host's clocksource is {current}, not tsc"
        )));
    }
    let available = read("available_clocksource")?;
    let wanted = option("clocksource", String::new())?;
    let other = available
        .split(' ')
        .find(|name| *name != "tsc" && (wanted.is_empty() || *name == wanted));
    let other =
        other.ok_or_else(|| Skip(format!("the host has no clocksource but {available}")))?;
    Ok(other.to_owned())
}

/// The clocksource of `modules/derived_clocksource.c`, loaded while this exists.
#[derive(Debug)]
pub struct Derived(());

impl Derived {
    /// Its name.
    pub const NAME: &str = "derived";

    /// Loads it.
    pub fn load() -> Result<Self> {
        let module = host_module::open("derived_clocksource")?;
        host_module::load(&module, "").context("derived_clocksource")?;
        Ok(Self(()))
    }
}

impl Drop for Derived {
    fn drop(&mut self) {
        if let Err(error) = host_module::unload("derived_clocksource") {
            eprintln!("derived_clocksource stays loaded: {error}");
        }
    }
}

/// While this exists, the host does not use its TSC.
#[derive(Debug)]
pub struct WithoutTsc(());

impl WithoutTsc {
    /// Switches to `other`.
    pub fn switch(other: &str) -> Result<Self> {
        choose(other)?;
        Ok(Self(()))
    }

    /// Switches back.
    pub fn end(self) -> Result<()> {
        std::mem::forget(self);
        choose("tsc")
    }
}

impl Drop for WithoutTsc {
    fn drop(&mut self) {
        if let Err(error) = choose("tsc") {
            eprintln!("the host's clocksource stays switched: {error:#}");
        }
    }
}

/// Lets the guest run until KVM writes a record other than `pinned` for vCPU 0: a work item of the
/// kernel notifies KVM of the new clocksource, and the next KVM_RUN acts on it.
pub fn run_until_noticed(vm: &Vm, pinned: &ClockGuest) -> Result<()> {
    wait_until("KVM notices the new clocksource", PATIENCE, || {
        if function(pages(vm)[0]) != function(*pinned) {
            return Ok(true);
        }
        run_a_little(vm).map(|_| false)
    })
}

/// Waits until the host no longer uses its TSC.
pub fn wait_until_not_tsc() -> Result<()> {
    wait_until("the host's clocksource changes", PATIENCE, || {
        Ok(current()? != "tsc")
    })
}

fn read(file: &str) -> Result<String> {
    let path = format!("{FOLDER}/{file}");
    let text = fs::read_to_string(&path).context(path)?;
    Ok(text.trim().to_owned())
}

fn choose(name: &str) -> Result<()> {
    let path = format!("{FOLDER}/current_clocksource");
    fs::write(&path, name).context(path)?;
    let current = current()?;
    ensure_eq!(current, name, "the host's clocksource");
    Ok(())
}
