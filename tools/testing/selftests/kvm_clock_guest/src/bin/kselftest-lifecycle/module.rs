// SPDX-License-Identifier: GPL-2.0-only

//! Loads and unloads KVM's modules and the one under test.

use anyhow::{bail, ensure, Context, Result};
use kvm_clock_guest_selftests::{
    host_module,
    ktap::Skip,
    references::{is_loaded, vendor, CLOCK_GUEST, KVM},
};
use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

/// How long a call into the module may keep it from going.
const PATIENCE: Duration = Duration::from_secs(20);

/// A module and its file.
#[derive(Debug)]
pub(crate) struct Module {
    name: &'static str,
    path: PathBuf,
}

impl Module {
    /// The one under test: by `$CLOCK_GUEST_MODULE`, or else where modprobe would find it.
    ///
    /// # Errors
    ///
    /// [`Skip`] if there is none.
    pub(crate) fn under_test() -> Result<Self> {
        Self::find(
            CLOCK_GUEST,
            env::var_os("CLOCK_GUEST_MODULE").map(Into::into),
        )
    }

    /// KVM's own: in `$CLOCK_GUEST_KDIR`, or else where modprobe would find it.
    ///
    /// # Errors
    ///
    /// [`Skip`] if there is none.
    pub(crate) fn kvm() -> Result<Self> {
        Self::of_kernel(KVM)
    }

    /// KVM's for the host's CPU, likewise.
    ///
    /// # Errors
    ///
    /// [`Skip`] if there is none.
    pub(crate) fn vendor() -> Result<Self> {
        Self::of_kernel(vendor()?)
    }

    fn of_kernel(name: &'static str) -> Result<Self> {
        let kdir = env::var_os("CLOCK_GUEST_KDIR").filter(|kdir| !kdir.is_empty());
        let file = format!("arch/x86/kvm/{}.ko", name.replace('_', "-"));
        Self::find(name, kdir.map(|kdir| Path::new(&kdir).join(file)))
    }

    fn find(name: &'static str, path: Option<PathBuf>) -> Result<Self> {
        if let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) {
            return Ok(Self { name, path });
        }
        match Command::new("modinfo").args(["-n", name]).output() {
            Ok(found) if found.status.success() => {
                let path = String::from_utf8(found.stdout).context("modinfo's output")?;
                let path = path.trim_end().into();
                Ok(Self { name, path })
            }
            _ => bail!(Skip(format!(
                "modinfo does not find {name}: name its file in CLOCK_GUEST_MODULE, or its \
                 kernel's build folder in CLOCK_GUEST_KDIR"
            ))),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Unloads it, as soon as no call into it is in progress; dropping what is returned loads it
    /// again.
    ///
    /// # Errors
    ///
    /// That of `delete_module()`.
    pub(crate) fn unload(&self) -> Result<Unloaded<'_>> {
        let start = Instant::now();
        loop {
            match host_module::unload(self.name) {
                Ok(()) => return Ok(Unloaded { module: Some(self) }),
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && start.elapsed() < PATIENCE => {
                    sleep(Duration::from_micros(100));
                }
                Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                    bail!(Skip("only root may unload modules".into()))
                }
                Err(e) => {
                    let name = self.name;
                    return Err(e).with_context(|| {
                        format!("delete_module({name}), after {:?}", start.elapsed())
                    });
                }
            }
        }
    }

    /// Fails unless it cannot be unloaded, as something uses it.
    ///
    /// # Errors
    ///
    /// Says what happened instead.
    pub(crate) fn ensure_in_use(&self) -> Result<()> {
        let name = self.name;
        match host_module::unload(self.name) {
            // The same number as EWOULDBLOCK: other modules depend on it, or there are references.
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => (),
            Err(e) => return Err(e).with_context(|| format!("delete_module({name})")),
            Ok(()) => {
                self.load()?;
                bail!("{name} could be unloaded");
            }
        }
        ensure!(is_loaded(name), "{name} is gone though it was in use");
        Ok(())
    }

    fn load(&self) -> Result<()> {
        let path = || self.path.display().to_string();
        let file = File::open(&self.path).with_context(path)?;
        host_module::load(&file, "").with_context(|| format!("finit_module({})", path()))
    }
}

/// The time during which a module is not loaded.
#[derive(Debug)]
pub(crate) struct Unloaded<'a> {
    module: Option<&'a Module>,
}

impl Unloaded<'_> {
    /// Loads the module again.
    ///
    /// # Errors
    ///
    /// That of `finit_module()`.
    pub(crate) fn load(mut self) -> Result<()> {
        self.module.take().map_or(Ok(()), Module::load)
    }
}

impl Drop for Unloaded<'_> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.module.map(Module::load) {
            eprintln!("the module stays unloaded: {error:#}");
        }
    }
}
