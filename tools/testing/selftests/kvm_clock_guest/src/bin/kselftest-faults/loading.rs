// SPDX-License-Identifier: GPL-2.0-only

//! Loading the module: the fault points are the module loader's, as module_init() allocates nothing.
//! Each fails once. Either the module is not there then, or loading survived the fault; it loads the
//! next time, and unloads.

use crate::{each, hushed::Hushed, Host};
use anyhow::{ensure, Context, Result};
use kvm_clock::get_vm_clock_guest;
use kvm_clock_guest_selftests::{
    fault::Kind,
    fixture::{derived, get},
    host_module,
    ktap::note,
    references::CLOCK_GUEST,
    refusal::ensure_errno,
    require,
};
use std::{env, fs, io};

pub(crate) fn each_fault(host: &Host) -> Result<()> {
    let path = env::var("CLOCK_GUEST_MODULE").context("CLOCK_GUEST_MODULE is to name its file")?;
    let image = fs::read(&path).with_context(|| path.clone())?;
    let vm = derived(&host.kvm, 1)?;

    let capability = require::capability(&host.kvm);
    unload()?;
    let absent = Absent(&image);
    let hushed = Hushed::new(is_about_a_fault)?;
    let outcomes = each(Kind::Any, |faults, nth| {
        let (result, injected) = faults()?.nth(nth, || load(&image))?;
        let now = require::capability(&host.kvm);
        let Err(error) = result else {
            ensure!(now == capability, "loaded, but the capability is {now:#x}");
            get(&vm).with_context(|| format!("loaded in spite of fault {nth}"))?;
            unload()?;
            return Ok((None, injected));
        };
        ensure!(now == 0, "not loaded, but the capability is {now:#x}");
        ensure_errno(libc::ENOTTY, get_vm_clock_guest(vm.fd()).map(|_| ()))
            .with_context(|| format!("after fault {nth}"))?;
        Ok((error.raw_os_error(), injected))
    })?;
    drop(hushed);
    drop(absent);
    get(&vm).context("after all that")?;
    note(&format!("{outcomes:?}"));
    ensure!(
        outcomes.enomem > 0 && outcomes.efault > 0,
        "faults led to {outcomes:?}"
    );
    Ok(())
}

/// What the loader says if it has no memory, and KUnit, which runs the module's tests when it is
/// loaded.
fn is_about_a_fault(line: &str) -> bool {
    (line.contains("Unknown symbol ") && line.ends_with("(err -12)"))
        || line.trim_start().starts_with("not ok ")
}

/// From memory, so that the file's own faults do not count.
fn load(image: &[u8]) -> io::Result<()> {
    // SAFETY: The kernel reads the image, which is as long as it is told, and the C string.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_init_module,
            image.as_ptr(),
            image.len(),
            c"".as_ptr(),
        )
    };
    match ret {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// No call into it is in progress here, which would keep it from going.
fn unload() -> Result<()> {
    host_module::unload(CLOCK_GUEST).context("delete_module()")
}

/// The time during which the module is loaded for a moment only; it stays when this is dropped.
struct Absent<'a>(&'a [u8]);

impl Drop for Absent<'_> {
    fn drop(&mut self) {
        match load(self.0) {
            Ok(()) => (),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => (),
            Err(error) => eprintln!("the module stays unloaded: {error}"),
        }
    }
}
