// SPDX-License-Identifier: GPL-2.0-only

//! A module that was built for another KVM, with another layout of its structures: KVM refuses it
//! and reports the reason.
//!
//! `scripts/build-other-layout` builds it; `--other-layout=FILE` names it.

use crate::{kunit::WithoutTests, Host};
use kvm_clock_guest_selftests::{
    host_module,
    prelude::*,
    references::{is_loaded, CLOCK_GUEST},
};
use std::{
    env,
    fs::File,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![Case::new(
        "a module that was built for another KVM is refused",
        refused,
    )]
}

/// The kernel's messages from now on.
struct Messages(File);

impl Messages {
    fn from_now() -> Result<Self> {
        let mut options = File::options();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut this = Self(file.open("/dev/kmsg").context("/dev/kmsg")?);
        this.take();
        Ok(this)
    }

    /// The messages since the last call; each read returns one.
    fn take(&mut self) -> String {
        let (mut text, mut record) = (String::new(), [0; 8192]);
        while let Ok(len @ 1..) = self.0.read(&mut record) {
            text += &String::from_utf8_lossy(&record[..len]);
        }
        text
    }
}

/// The file that the option names, or else the one beside `make modules`' module under test.
fn file() -> Result<PathBuf> {
    let own = env::var_os("CLOCK_GUEST_MODULE").unwrap_or_default();
    let beside = Path::new(&own)
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("build"))
        .join("module-other-layout/kvm_clock_guest.ko");
    let path: PathBuf = option("other-layout", beside)?;
    let named = !option("other-layout", String::new())?.is_empty();
    let standard = Path::new(&own)
        .parent()
        .is_some_and(|p| p.ends_with("module"));
    if !(named || standard) {
        bail!(Skip(format!(
            "{own:?} is not the standard kernel's, which {} is for",
            path.display()
        )));
    }
    if !path.exists() {
        bail!(Skip(format!(
            "no {}: run scripts/build-other-layout",
            path.display()
        )));
    }
    Ok(path)
}

fn refused(host: &Host) -> Result<()> {
    let other = File::open(file()?)?;
    let kvm = host.kvm()?;
    let vm = pinned(&kvm, 2)?;
    let before = Clocks::of(&vm)?;
    let (unloaded, _without_tests) = (host.module.unload()?, WithoutTests::new()?);
    let mut messages = Messages::from_now()?;
    let result = host_module::load(&other, "");
    let text = messages.take();
    for line in text.lines() {
        note!("{line}");
    }
    if result.is_ok() {
        host_module::unload(CLOCK_GUEST)?;
        unloaded.load()?;
        bail!("the module was loaded");
    }
    ensure!(
        !is_loaded(CLOCK_GUEST),
        "the module is loaded, although the result was {result:?}"
    );
    let cap = require::capability(&kvm);
    ensure_eq_hex!(cap, 0, "KVM_CAP_VM_CLOCK_GUEST");
    ensure!(
        text.lines()
            .any(|line| line.contains("kvm") && line.contains("built for")),
        "{result:?}, but the kernel did not report the reason"
    );
    // KVM accepts the right module.
    unloaded.load()?;
    before.ensure_unchanged(&vm)
}
