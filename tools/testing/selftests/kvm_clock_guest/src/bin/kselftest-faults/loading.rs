// SPDX-License-Identifier: GPL-2.0-only

//! Loading the module: most fault points are the module loader's, one allocation is ours. Each
//! fails once, the module is not there then, and is when it is loaded next. `--to-the-end=true`
//! goes on when ours has had its fault, through what is done then for a module that is there.

use crate::{
    each,
    hushed::Hushed,
    Host, //
};
use anyhow::{
    ensure,
    Context,
    Result, //
};
use clockguest::host::tracefs_with;
use kvm_clock_guest_selftests::{
    fault::{
        Faults,
        Kind, //
    },
    fixture::{
        derived,
        get, //
    },
    host_module,
    ktap::{
        self,
        note, //
    },
    references::CLOCK_GUEST,
    refusal::ensure_errno,
    require, //
};
use kvm_clock_ioctls::get_vm_clock_guest;
use std::{
    env,
    fs,
    io,
    path::PathBuf,
    process, //
};

/// How many fault points there are before ours differs from load to load, with the allocator's need
/// of pages and a debugging kernel's own: two faults in a row can meet the same one, or miss one
/// between them. Ours is then looked for so near where it was missed...
const NEAR: u32 = 8;
/// ... so many times.
const ROUNDS: u32 = 50;

pub(crate) fn each_fault(host: &Host) -> Result<()> {
    let path = env::var("CLOCK_GUEST_MODULE").context("CLOCK_GUEST_MODULE is to name its file")?;
    let image = fs::read(&path).with_context(|| path.clone())?;
    let vm = derived(&host.kvm, 1)?;
    let trace = Inits::new()?;

    let capability = require::capability(&host.kvm);
    unload()?;
    let absent = Absent(&image);
    let hushed = Hushed::new(is_about_a_fault)?;
    let to_the_end = ktap::option("to-the-end", false)?;
    let load_with = |faults: &Faults, nth| -> Result<Load> {
        trace.clear()?;
        let (result, injected) = faults.nth(nth, || load(&image))?;
        let now = require::capability(&host.kvm);
        let Err(error) = result else {
            ensure!(now == capability, "loaded, but the capability is {now:#x}");
            get(&vm).with_context(|| format!("loaded in spite of fault {nth}"))?;
            unload()?;
            return Ok(Load {
                errno: None,
                injected,
                in_module_init: false,
            });
        };
        ensure!(now == 0, "not loaded, but the capability is {now:#x}");
        ensure_errno(libc::ENOTTY, get_vm_clock_guest(vm.fd()).map(|_| ()))
            .with_context(|| format!("after fault {nth}"))?;
        Ok(Load {
            errno: error.raw_os_error(),
            injected,
            in_module_init: trace.has_failed()?,
        })
    };

    let mut ours = 0;
    let mut last_failed = 1;
    let mut outcomes = each(Kind::Any, |faults, nth| {
        let load = load_with(&faults()?, nth)?;
        ours += u32::from(load.in_module_init);
        if load.errno.is_some() {
            last_failed = nth;
        } else if ours > 0 && !to_the_end {
            // What follows is the loader's again, and KUnit's.
            return Ok((None, false));
        }
        Ok((load.errno, load.injected))
    })?;
    // If ours was missed, the last one that failed is the loader's last.
    let near = last_failed.saturating_sub(NEAR).max(1)..=last_failed + NEAR;
    let mut again = 0;
    for nth in (0..ROUNDS).flat_map(|_| near.clone()) {
        if ours > 0 {
            break;
        }
        again += 1;
        let load = load_with(&Faults::new(Kind::Any)?, nth)?;
        outcomes.count(nth, load.errno, load.injected)?;
        ours += u32::from(load.in_module_init);
    }
    drop(hushed);
    drop(absent);
    get(&vm).context("after all that")?;
    note(&format!(
        "{outcomes:?}, {ours} of these in module_init(); {again} with faults {near:?} again"
    ));
    ensure!(ours > 0, "no fault made module_init() fail");
    Ok(())
}

/// How loading the module with a fault ended.
struct Load {
    errno: Option<i32>,
    /// Whether there was a fault at all.
    injected: bool,
    /// Whether it was module_init() that failed.
    in_module_init: bool,
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

/// A trace of what initialised the kernel or a module, and how that ended.
struct Inits(PathBuf);

impl Inits {
    fn new() -> Result<Self> {
        let tracefs = tracefs_with("events/initcall/initcall_finish")
            .context("no tracepoint initcall:initcall_finish in tracefs")?;
        let instance = tracefs.join(format!("instances/inits-{}", process::id()));
        fs::create_dir(&instance).with_context(|| instance.display().to_string())?;
        let trace = Self(instance);
        fs::write(trace.0.join("events/initcall/initcall_finish/enable"), "1")?;
        Ok(trace)
    }

    fn clear(&self) -> Result<()> {
        Ok(fs::write(self.0.join("trace"), "")?)
    }

    /// Whether a module's own has had no memory; nobody else loads one here.
    fn has_failed(&self) -> Result<bool> {
        let text = fs::read_to_string(self.0.join("trace"))?;
        Ok(text.contains(&format!("ret={}", -libc::ENOMEM)))
    }
}

impl Drop for Inits {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}
