// SPDX-License-Identifier: GPL-2.0-only

//! Loading the module: the fault points are those of the module loader, as module_init() allocates
//! nothing. Each fails once. Then either the module is not loaded, or loading survived the fault;
//! the next load succeeds, and so does unloading.

use crate::{each, muted::Muted, Host};
use kvm_clock_guest_selftests::{fault::Kind, host_module, prelude::*, references::CLOCK_GUEST};
use std::{env, fs, io};

pub(crate) fn each_fault(host: &Host) -> Result<()> {
    let path = env::var("CLOCK_GUEST_MODULE").context("CLOCK_GUEST_MODULE must name its file")?;
    let image = fs::read(&path).with_context(|| path.clone())?;
    let vm = derived(&host.kvm, 1)?;

    let capability = require::capability(&host.kvm);
    unload()?;
    let absent = Absent(&image);
    let muted = Muted::new(is_about_a_fault)?;
    let outcomes = each(Kind::Any, |faults, nth| {
        let (result, injected) = faults()?.nth(nth, || load(&image))?;
        let now = require::capability(&host.kvm);
        let Err(error) = result else {
            ensure_eq_hex!(now, capability, "the capability of the loaded module");
            get(&vm).with_context(|| format!("loaded despite fault {nth}"))?;
            unload()?;
            return Ok((None, injected));
        };
        ensure_eq_hex!(now, 0, "the capability without the module");
        ensure_errno(libc::ENOTTY, get_vm_clock_guest(vm.fd()).map(drop))
            .with_context(|| format!("after fault {nth}"))?;
        Ok((error.raw_os_error(), injected))
    })?;
    drop(muted);
    drop(absent);
    get(&vm).context("after all faults")?;
    note!("{outcomes:?}");
    ensure!(
        outcomes.enomem > 0 && outcomes.efault > 0,
        "faults led to {outcomes:?}"
    );
    Ok(())
}

/// Whether a message is of the loader without memory, or of KUnit, which runs the module's tests
/// when it is loaded.
fn is_about_a_fault(line: &str) -> bool {
    (line.contains("Unknown symbol ") && line.ends_with("(err -12)"))
        || line.trim_start().starts_with("not ok ")
}

/// From memory, so that the file's own faults do not count.
fn load(image: &[u8]) -> io::Result<()> {
    // SAFETY: The kernel reads the image, which has that length, and the C string.
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

/// No call into the module is in progress, which would prevent this.
fn unload() -> Result<()> {
    host_module::unload(CLOCK_GUEST).context("delete_module()")
}

/// While this exists, the module is loaded only temporarily; dropping this loads it.
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
