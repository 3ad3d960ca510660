// SPDX-License-Identifier: GPL-2.0-only

//! `EOPNOTSUPP` for a guest whose TSC the host cannot control.
//!
//! Test hosts have neither SEV-SNP nor TDX: `modules/protect_guest_tsc.c` marks the TSC of the
//! guest as protected.

use crate::{Host, VCPUS};
use kvm_clock_guest_selftests::{host_module::protect_guest_tsc, prelude::*};

pub(crate) fn cases() -> Vec<Case<Host>> {
    // Any protected vCPU is enough.
    (0..VCPUS as usize)
        .map(|index| {
            Case::new(
                format!(
                    "EOPNOTSUPP GET, SET, vCPU GET, vCPU SET: TSC of vCPU {index} is protected"
                ),
                move |host| refuses(host, index),
            )
        })
        .collect()
}

fn refuses(host: &Host, index: usize) -> Result<()> {
    for vm in &host.vms {
        let mut clock = request(vm, MODE_EXACT)?;
        let record = clock.header.record;
        let before = Clocks::of(vm)?;

        protect_guest_tsc(vm, index, true)?;
        let vcpu = vm.vcpus()[0].fd();
        let refused = [
            ("GET", get_vm_clock_guest(vm.fd()).map(drop)),
            ("SET", set_vm_clock_guest(vm.fd(), &mut clock)),
            ("vCPU GET", get_clock_guest(&vcpu).map(drop)),
            ("vCPU SET", set_clock_guest(&vcpu, &record)),
        ];
        drop(vcpu);
        protect_guest_tsc(vm, index, false)?;

        for (call, result) in refused {
            ensure_errno(libc::EOPNOTSUPP, result).context(call)?;
        }
        before.ensure_unchanged(vm)?;
    }
    Ok(())
}
