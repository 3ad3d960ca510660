// SPDX-License-Identifier: GPL-2.0-only

//! Loads and unloads KVM's modules and the one under test.

use crate::{
    host_module,
    prelude::*,
    references::{is_loaded, vendor, CLOCK_GUEST, KVM},
};
use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

/// How long a call into the module may delay the unload.
const PATIENCE: Duration = Duration::from_secs(20);

/// A host whose cases unload and load the module under test.
#[derive(Debug)]
pub struct Host {
    /// The module under test.
    pub module: Module,
}

impl Host {
    /// Fails with [`Skip`] if the module is not loaded, or has no file to load it from.
    pub fn new() -> Result<Self> {
        require::clock_guest()?;
        let module = Module::under_test()?;
        Ok(Self { module })
    }

    /// A new descriptor for each case: an open `/dev/kvm` keeps KVM's modules loaded, and may be
    /// one of a module that is no longer loaded.
    pub fn kvm(&self) -> Result<Kvm> {
        require::clock_guest()
    }
}

/// A module and its file.
#[derive(Debug)]
pub struct Module {
    name: &'static str,
    path: PathBuf,
}

impl Module {
    /// The module under test: `$CLOCK_GUEST_MODULE`, or else the one that modprobe would load.
    ///
    /// Fails with [`Skip`] if there is none.
    pub fn under_test() -> Result<Self> {
        Self::find(
            CLOCK_GUEST,
            env::var_os("CLOCK_GUEST_MODULE").map(Into::into),
        )
    }

    /// `kvm`: in `$CLOCK_GUEST_KDIR`, or else the one that modprobe would load.
    ///
    /// Fails with [`Skip`] if there is none.
    pub fn kvm() -> Result<Self> {
        Self::of_kernel(KVM)
    }

    /// KVM's module for the host's CPU vendor, found in the same way.
    ///
    /// Fails with [`Skip`] if there is none.
    pub fn vendor() -> Result<Self> {
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

    /// The module's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Unloads the module as soon as no call into it is in progress. Dropping the result loads it
    /// again.
    pub fn unload(&self) -> Result<Unloaded<'_>> {
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

    /// Fails unless the module cannot be unloaded because it is in use.
    pub fn ensure_in_use(&self) -> Result<()> {
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
        ensure!(
            is_loaded(name),
            "{name} was unloaded although it was in use"
        );
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
pub struct Unloaded<'a> {
    module: Option<&'a Module>,
}

impl Unloaded<'_> {
    /// Loads the module again.
    pub fn load(mut self) -> Result<()> {
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
