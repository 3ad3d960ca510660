// SPDX-License-Identifier: GPL-2.0-only

//! Saved clocks that are not this VM's, or none at all: an error of its own for each, and nothing
//! changed.

use crate::{
    state::{restore, save, save_changed},
    Host, VCPUS,
};
use kvm_clock::{Error, Policy, SavedClocks};
use kvm_clock_guest_selftests::prelude::*;
use serde_json::{json, Value};

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = Vec::new();
    let mut by_json = |name: &str, change: fn(&mut Value), is: fn(&Error) -> bool| {
        cases.push(Case::new(name, move |host: &Host| {
            ensure_is_refused(host, |vm| changed(vm, change), is)
        }));
    };
    by_json("foreign data", foreign, |error| {
        matches!(error, Error::Foreign)
    });
    by_json(
        "another version",
        |saved| saved["version"] = json!(SavedClocks::VERSION + 1),
        |error| matches!(error, Error::Version(version) if *version == SavedClocks::VERSION + 1),
    );
    by_json(
        "a truncated header",
        |saved| drop(bytes(&mut saved["header"]).pop()),
        |error| {
            matches!(
                error,
                Error::Truncated {
                    len: 143,
                    least: 144,
                    ..
                }
            )
        },
    );
    by_json(
        "a truncated vCPU",
        |saved| drop(bytes(&mut saved["vcpus"][1]).pop()),
        |error| {
            matches!(
                error,
                Error::Truncated {
                    len: 23,
                    least: 24,
                    ..
                }
            )
        },
    );
    by_json(
        "no vCPU",
        |saved| saved["vcpus"] = json!([]),
        |error| matches!(error, Error::NoVcpus),
    );
    by_json(
        "a vCPU that the saved clocks lack",
        |saved| drop(bytes(&mut saved["vcpus"]).pop()),
        |error| matches!(error, Error::VcpuAdded(2)),
    );
    let mut by_clock = |name: &str, change: fn(&mut VmClock), is: fn(&Error) -> bool| {
        cases.push(Case::new(name, move |host: &Host| {
            ensure_is_refused(host, |vm| save_changed(vm, change), is)
        }));
    };
    by_clock(
        "a vCPU that the VM lacks",
        |clock| {
            let last = clock.vcpus[2];
            clock.vcpus.push(ClockGuestVcpu { vcpu_id: 7, ..last });
        },
        |error| matches!(error, Error::VcpuMissing(7)),
    );
    by_clock(
        "a vCPU with another ID",
        |clock| clock.vcpus[2].vcpu_id = 9,
        |error| matches!(error, Error::VcpuAdded(2) | Error::VcpuMissing(9)),
    );
    by_clock(
        "a vCPU that occurs twice",
        |clock| clock.vcpus[2].vcpu_id = 1,
        |error| matches!(error, Error::VcpuTwice(1)),
    );
    by_clock(
        "offsets of another VM",
        |clock| {
            for vcpu in &mut clock.vcpus {
                vcpu.tsc_offset = vcpu.tsc_offset.wrapping_add(1);
            }
        },
        |error| matches!(error, Error::OtherVm),
    );
    by_clock(
        "a record that KVM never makes",
        |clock| clock.header.record.tsc_to_system_mul >>= 1,
        |error| matches!(error, Error::Invalid(_)),
    );
    cases.push(Case::new("a vCPU that runs: EBUSY", running));
    cases.push(Case::new(
        "a rate for a VM that has vCPUs: EINVAL",
        late_rate,
    ));
    cases
}

fn foreign(saved: &mut Value) {
    *saved = json!({"boot_source": {"kernel": "vmlinux"}, "vcpus": []});
}

fn bytes(value: &mut Value) -> &mut Vec<Value> {
    value.as_array_mut().expect("it is saved as an array")
}

fn changed(vm: &Vm, change: impl FnOnce(&mut Value)) -> Result<SavedClocks> {
    let mut saved = serde_json::to_value(save(vm)?)?;
    change(&mut saved);
    Ok(serde_json::from_value(saved)?)
}

/// Fails unless the saved clocks are refused, in a VM that could take them otherwise.
fn ensure_is_refused(
    host: &Host,
    saved: impl FnOnce(&Vm) -> Result<SavedClocks>,
    is: fn(&Error) -> bool,
) -> Result<()> {
    let vm = pinned(&host.kvm()?, VCPUS)?;
    let saved = saved(&vm)?;
    // So that a restore would change something.
    vm.set_tsc_offset(0, TscOffset(1))?;
    run_a_little(&vm)?;
    ensure_changes_nothing(&vm, |_| {
        let error = restore(&vm, &saved, &Policy::default()).err();
        let error = error.context("the restore succeeded")?;
        ensure!(is(&error), "{error:?}");
        Ok(())
    })
}

fn running(host: &Host) -> Result<()> {
    let vm = pinned(&host.kvm()?, VCPUS)?;
    let saved = save(&vm)?;
    vm.set_tsc_offset(0, TscOffset(1))?;
    run_a_little(&vm)?;
    vm.run()?;
    wait_in_guest(&vm, 1)?;
    // With the module, a restore uses no vCPU's descriptor, and those of `vm` are locked now.
    let fds = [-1; VCPUS as usize];
    let result = saved.restore(
        vm.fd(),
        &kvm_clock::Vcpu::numbered(&fds),
        &Policy::default(),
    );
    vm.stop()?;
    match result {
        Err(Error::Ioctl { errno, .. }) => ensure_errno(libc::EBUSY, Err(errno)),
        other => bail!("{other:?}"),
    }
}

fn late_rate(host: &Host) -> Result<()> {
    let vm = pinned(&host.kvm()?, VCPUS)?;
    let saved = save(&vm)?;
    ensure_changes_nothing(&vm, |fd| match saved.prepare(fd) {
        Err(Error::Ioctl { errno, .. }) => ensure_errno(libc::EINVAL, Err(errno)),
        other => bail!("{other:?}"),
    })
}
