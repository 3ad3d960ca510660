// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_SET_CLOCK_GUEST` of a vCPU's own record while all vCPUs run.

use crate::SETS;
use kvm_clock_guest_selftests::{
    apart::{apart, AHEAD},
    descriptors,
    prelude::*,
    progress::Progress,
};

/// SETs between two checks that every vCPU makes progress.
const AT_A_TIME: u32 = 10;

pub(crate) fn cases() -> Vec<Case<Kvm>> {
    // CAST: A few.
    let vcpus = AHEAD.len() as u32;
    vec![
        Case::new(
            format!("{SETS} SETs of the record, {vcpus} vCPUs running"),
            move |kvm| put_back(&pinned(kvm, vcpus)?, true),
        ),
        Case::new(
            format!("{SETS} SETs of the record, {vcpus} vCPUs of different TSCs running"),
            |kvm| put_back(&apart(kvm)?, false),
        ),
    ]
}

/// With `comparable`, the vCPUs' TSCs are the same.
fn put_back(vm: &Vm, comparable: bool) -> Result<()> {
    let before = Clocks::of(vm)?;
    let fds = descriptors::of_vcpus(vm)?;
    let first = Progress::of(vm);
    vm.run()?;
    let mut progress = first.clone();
    for (number, fd) in (0..SETS).zip(fds.iter().cycle()) {
        let record = get_clock_guest(fd).context("KVM_GET_CLOCK_GUEST")?;
        set_clock_guest(fd, &record).context("KVM_SET_CLOCK_GUEST")?;
        if number % AT_A_TIME == 0 {
            progress.wait(vm, 2)?;
            progress = Progress::of(vm);
        }
    }
    progress.wait(vm, 2)?;
    vm.stop()?;
    let read = Progress::of(vm).since(&first);
    note!("readings by vCPU: {read:?}");
    first.ensure_none_went_back(vm, comparable)?;
    let after = Clocks::of(vm)?;
    before.ensure_is(&after, "after the SETs")?;
    let versions: Vec<_> = vm
        .vcpus()
        .iter()
        .map(|vcpu| vm.view(vcpu.index()).pvclock().version)
        .collect();
    note!("versions of the records: {versions:?}");
    // Between two of the checks above every vCPU entered the guest, with the record that was SET in
    // the meantime.
    ensure!(
        versions
            .iter()
            .all(|version| version / 2 >= SETS / AT_A_TIME),
        "vCPUs did not get the records: versions {versions:?}"
    );
    Ok(())
}
