// SPDX-License-Identifier: GPL-2.0-only

//! The attribute KVM_VCPU_TSC_SCALE, with hardware scaling and without.

use crate::{
    edge::Edge,
    list::{tsc_attr, Access, TscScale, KVM_VCPU_TSC_SCALE},
    Host,
};
use clockguest::host::Vendor;
use kvm_clock_guest_selftests::prelude::*;
use kvm_ioctls::Cap;
use std::io;

/// An attribute that does not exist.
const UNKNOWN: u64 = 2;

pub(crate) fn cases() -> Vec<Case<Host>> {
    vec![Case::new(
        "KVM_VCPU_TSC_SCALE: HAS, GET and SET with the host's hardware",
        scale,
    )]
}

fn scale(host: &Host) -> Result<()> {
    let vm = &host.vms[0];
    let before = Clocks::of(vm)?;
    let scales = host.kvm.check_extension(Cap::TscControl);
    note!("the hardware can scale TSCs: {scales}");
    let edge = Edge::new()?;
    let call = |access, attr, address| {
        // SAFETY: The addresses below are inaccessible or in the edge's page, to which no reference
        // exists.
        unsafe { tsc_attr(&*vm.vcpus()[0].fd(), access, attr, address) }
    };
    let errno = |result: io::Result<()>| result.err().and_then(|e| e.raw_os_error()).unwrap_or(0);

    let (whole, cut) = (edge.put(&[0; 16], 16), edge.put(&[], 15));
    let expected = |with_scaling| if scales { with_scaling } else { libc::ENXIO };
    for (name, access, attr, address, expected) in [
        ("HAS", Access::Has, KVM_VCPU_TSC_SCALE, whole, expected(0)),
        ("GET", Access::Get, KVM_VCPU_TSC_SCALE, whole, expected(0)),
        (
            "SET",
            Access::Set,
            KVM_VCPU_TSC_SCALE,
            whole,
            expected(libc::EINVAL),
        ),
        (
            "GET to address 0",
            Access::Get,
            KVM_VCPU_TSC_SCALE,
            0,
            expected(libc::EFAULT),
        ),
        (
            "GET of 15 bytes",
            Access::Get,
            KVM_VCPU_TSC_SCALE,
            cut,
            expected(libc::EFAULT),
        ),
        ("HAS of another", Access::Has, UNKNOWN, whole, libc::ENXIO),
        ("GET of another", Access::Get, UNKNOWN, whole, libc::ENXIO),
        ("SET of another", Access::Set, UNKNOWN, whole, libc::ENXIO),
    ] {
        let observed = errno(call(access, attr, address));
        ensure_eq!(observed, expected, "{name}");
    }
    if scales {
        let mut scale = TscScale::default();
        let address = (&raw mut scale).expose_provenance();
        // SAFETY: KVM writes the 16 bytes of `scale`, of which any are a value.
        unsafe {
            tsc_attr(
                &*vm.vcpus()[0].fd(),
                Access::Get,
                KVM_VCPU_TSC_SCALE,
                address,
            )
        }
        .context("KVM_VCPU_TSC_SCALE")?;
        let frac_bits = Vendor::loaded()
            .context("no vendor module")?
            .tsc_frac_bits();
        // A vCPU at the host's rate.
        let expected = TscScale {
            tsc_ratio: 1 << frac_bits,
            tsc_frac_bits: frac_bits.into(),
        };
        ensure_eq_hex!(scale, expected, "the ratio");
    }
    before.ensure_unchanged(vm)
}
