// SPDX-License-Identifier: GPL-2.0-only

//! Loads and unloads the module under test.

use anyhow::{
    bail,
    Context,
    Result, //
};
use kvm_clock_guest_selftests::ktap::Skip;
use std::{
    env,
    ffi::CStr,
    fs::File,
    io,
    os::fd::AsRawFd,
    path::PathBuf,
    process::Command,
    thread::sleep,
    time::{
        Duration,
        Instant, //
    },
};

const NAME: &CStr = c"kvm_clock_guest";
/// How long a call into the module may keep it from going.
const PATIENCE: Duration = Duration::from_secs(20);

/// The module's file.
#[derive(Debug)]
pub(crate) struct Module(PathBuf);

impl Module {
    /// By `$CLOCK_GUEST_MODULE`, or else where modprobe would find it.
    ///
    /// # Errors
    ///
    /// [`Skip`] if there is none.
    pub(crate) fn find() -> Result<Self> {
        if let Some(path) = env::var_os("CLOCK_GUEST_MODULE").filter(|path| !path.is_empty()) {
            return Ok(Self(path.into()));
        }
        match Command::new("modinfo")
            .args(["-n", "kvm_clock_guest"])
            .output()
        {
            Ok(found) if found.status.success() => {
                let path = String::from_utf8(found.stdout).context("modinfo's output")?;
                Ok(Self(path.trim_end().into()))
            }
            _ => bail!(Skip(
                "modinfo does not find kvm_clock_guest: name its file in CLOCK_GUEST_MODULE".into()
            )),
        }
    }

    /// Unloads it; dropping what is returned loads it again.
    ///
    /// # Errors
    ///
    /// That of `delete_module()`.
    pub(crate) fn unload(&self) -> Result<Unloaded<'_>> {
        let start = Instant::now();
        loop {
            // SAFETY: The name is a C string, and the kernel only reads it.
            let ret =
                unsafe { libc::syscall(libc::SYS_delete_module, NAME.as_ptr(), libc::O_NONBLOCK) };
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                _ if ret == 0 => return Ok(Unloaded { module: Some(self) }),
                // A call into the module is in progress.
                Some(libc::EAGAIN) if start.elapsed() < PATIENCE => {
                    sleep(Duration::from_micros(100));
                }
                Some(libc::EPERM) => bail!(Skip("only root may unload modules".into())),
                _ => {
                    return Err(error)
                        .with_context(|| format!("delete_module(), after {:?}", start.elapsed()))
                }
            }
        }
    }

    fn load(&self) -> Result<()> {
        let file = File::open(&self.0).with_context(|| self.0.display().to_string())?;
        // SAFETY: The parameters are a C string, and the kernel only reads it.
        let ret =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        if ret != 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("finit_module({})", self.0.display()));
        }
        Ok(())
    }
}

/// The time during which the module is not loaded.
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
