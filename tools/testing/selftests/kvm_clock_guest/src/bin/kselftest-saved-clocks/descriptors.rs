// SPDX-License-Identifier: GPL-2.0-only

//! The descriptors of three versions of kvm-ioctls: oldest supported, one between, newest.

use crate::Host;
use kvm_clock::{HostId, Mode, Policy, Prepared, SavedClocks, Vcpu};
use kvm_clock_guest_selftests::prelude::*;

macro_rules! case {
    ($version:literal, $kvm_ioctls:ident) => {
        Case::new(
            concat!("descriptors of kvm-ioctls ", $version),
            |_: &Host| {
                let kvm = $kvm_ioctls::Kvm::new()?;
                let saved = {
                    let vm = kvm.create_vm()?;
                    let vcpus = [vm.create_vcpu(0)?, vm.create_vcpu(1)?];
                    let vcpus = Vcpu::numbered(&vcpus);
                    let saved = SavedClocks::save(&vm, &vcpus, &HostId::read()?)?;
                    let khz = kvm_clock::tsc_khz(vcpus[0].fd)?;
                    ensure_eq!(saved.tsc_khz(), khz, "TSC rate, kHz");
                    saved
                };
                let vm = kvm.create_vm()?;
                let prepared = saved.prepare(&vm)?;
                ensure_eq!(prepared, Prepared::Rate, "the rate");
                let vcpus = [vm.create_vcpu(0)?, vm.create_vcpu(1)?];
                let outcome = saved.restore(&vm, &Vcpu::numbered(&vcpus), &Policy::default())?;
                ensure_eq!(outcome.mode, Mode::Exact, "mode");
                let (now, clock) = (get_vm_clock_guest(&vm)?, saved.clock()?);
                let (actual, expected) = (offsets(&now), offsets(&clock));
                ensure_eq_hex!(actual, expected, "TSC offsets");
                ensure_eq_hex!(now.header.record, clock.header.record, "record");
                Ok(())
            },
        )
    };
}

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![
        case!("0.19", kvm_ioctls_0_19),
        case!("0.22", kvm_ioctls_0_22),
        case!("0.25", kvm_ioctls),
    ]
}
