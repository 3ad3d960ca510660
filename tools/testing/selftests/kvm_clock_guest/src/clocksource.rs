// SPDX-License-Identifier: GPL-2.0-only

//! The host's clocksource, switched away from the TSC for the duration of a case; needs root.

use crate::{
    clocks::{function, pages},
    fixture::run_a_little,
    host_module,
    ktap::{option, Skip},
};
use anyhow::{bail, ensure, Context, Result};
use clockguest::vmm::Vm;
use pvclock::abi::ClockGuest;
use std::{
    fs,
    time::{Duration, Instant},
};

const FOLDER: &str = "/sys/devices/system/clocksource/clocksource0";
/// How long the kernel may take to act on a change.
const PATIENCE: Duration = Duration::from_secs(20);

/// The clocksource in use.
///
/// # Errors
///
/// If sysfs cannot be read.
pub fn current() -> Result<String> {
    read("current_clocksource")
}

/// A clocksource of this host beside the TSC, which is in use: `--clocksource=NAME`, or any.
///
/// # Errors
///
/// [`Skip`] if the TSC is not in use, or there is no other.
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

/// The clocksource of `modules/derived_clocksource.c`; dropping this unloads it.
#[derive(Debug)]
pub struct Derived(());

impl Derived {
    /// Its name.
    pub const NAME: &str = "derived";

    /// Loads it.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
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

/// The time during which the host does not use its TSC; dropping this ends it.
#[derive(Debug)]
pub struct WithoutTsc(());

impl WithoutTsc {
    /// Switches to `other`.
    ///
    /// # Errors
    ///
    /// If the kernel does not.
    pub fn switch(other: &str) -> Result<Self> {
        choose(other)?;
        Ok(Self(()))
    }

    /// Switches back.
    ///
    /// # Errors
    ///
    /// If the kernel does not.
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

/// Lets the guest run until KVM hands vCPU 0 another record than `pinned`: a work item of the
/// kernel's tells KVM of the new clocksource, and the next KVM_RUN after that acts on it.
///
/// # Errors
///
/// If that does not happen.
pub fn run_until_noticed(vm: &Vm, pinned: &ClockGuest) -> Result<()> {
    let start = Instant::now();
    while function(pages(vm)[0]) == function(*pinned) {
        ensure!(
            start.elapsed() < PATIENCE,
            "KVM did not notice the new clocksource within {PATIENCE:?}"
        );
        run_a_little(vm)?;
    }
    Ok(())
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
    ensure!(
        current == name,
        "the host's clocksource is {current}, was set to {name}"
    );
    Ok(())
}
