// SPDX-License-Identifier: GPL-2.0-only

//! The ioctls for the clocks and timers of a Xen guest, which kvm-ioctls lacks.

use anyhow::{Context, Result};
use kvm_bindings::{
    kvm_xen_hvm_attr, kvm_xen_hvm_attr__bindgen_ty_1, kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_1,
    kvm_xen_hvm_config, kvm_xen_vcpu_attr, kvm_xen_vcpu_attr__bindgen_ty_1,
    kvm_xen_vcpu_attr__bindgen_ty_1__bindgen_ty_2, KVM_XEN_ATTR_TYPE_SHARED_INFO,
    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, KVM_XEN_MSR_MIN_INDEX, KVM_XEN_VCPU_ATTR_TYPE_TIMER,
    KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO,
    KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::{errno, ioctl::ioctl_with_ref};

/// Offset of the pvclock record in `struct vcpu_info`, bytes.
pub const VCPU_INFO_TIME: u64 = 32;
/// Offset of the wall clock in the `struct shared_info` of a guest outside long mode, bytes.
pub const SHARED_INFO_WALL_CLOCK: u64 = 0x900;

const PAGE_SHIFT: u32 = 12;
/// The only priority of events that KVM supports.
const KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL: u32 = u32::MAX;

/// Request numbers.
mod nr {
    use kvm_bindings::{kvm_xen_hvm_attr, kvm_xen_hvm_config, kvm_xen_vcpu_attr};
    use vmm_sys_util::ioctl_iow_nr;

    const KVMIO: u32 = 0xae;

    ioctl_iow_nr!(KVM_XEN_HVM_CONFIG, KVMIO, 0x7a, kvm_xen_hvm_config);
    ioctl_iow_nr!(KVM_XEN_HVM_SET_ATTR, KVMIO, 0xc9, kvm_xen_hvm_attr);
    ioctl_iow_nr!(KVM_XEN_VCPU_SET_ATTR, KVMIO, 0xcb, kvm_xen_vcpu_attr);
}

/// Makes the guest of `vm` one of Xen's: `KVM_XEN_HVM_CONFIG`.
pub fn enable(vm: &VmFd) -> Result<()> {
    let config = kvm_xen_hvm_config {
        flags: KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
        msr: KVM_XEN_MSR_MIN_INDEX,
        ..kvm_xen_hvm_config::default()
    };
    // SAFETY: The kernel reads one such structure, which is borrowed here.
    check(unsafe { ioctl_with_ref(vm, nr::KVM_XEN_HVM_CONFIG(), &config) })
        .context("KVM_XEN_HVM_CONFIG")
}

/// Puts `struct shared_info` of `vm` at the page at `gpa`; KVM writes the wall clock there.
pub fn set_shared_info(vm: &VmFd, gpa: u64) -> Result<()> {
    let attr = kvm_xen_hvm_attr {
        // CAST: 1.
        type_: KVM_XEN_ATTR_TYPE_SHARED_INFO as u16,
        pad: [0; 3],
        u: kvm_xen_hvm_attr__bindgen_ty_1 {
            shared_info: kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_1 {
                gfn: gpa >> PAGE_SHIFT,
            },
        },
    };
    // SAFETY: The kernel copies one such structure, and reads the union's field that `type_`
    // selects.
    check(unsafe { ioctl_with_ref(vm, nr::KVM_XEN_HVM_SET_ATTR(), &attr) })
        .context("KVM_XEN_HVM_SET_ATTR, shared info")
}

/// Puts the 64 bytes of `struct vcpu_info` of a vCPU at `gpa`.
pub fn set_vcpu_info(vcpu: &VcpuFd, gpa: u64) -> Result<()> {
    set_vcpu_gpa(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa)
        .context("KVM_XEN_VCPU_SET_ATTR, vcpu_info")
}

/// Puts the vCPU's second pvclock record, `struct vcpu_time_info`, at `gpa`.
pub fn set_vcpu_time_info(vcpu: &VcpuFd, gpa: u64) -> Result<()> {
    set_vcpu_gpa(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, gpa)
        .context("KVM_XEN_VCPU_SET_ATTR, vcpu_time_info")
}

/// Makes KVM raise interrupt `vector` of the vCPU's local APIC with every event.
pub fn set_upcall_vector(vcpu: &VcpuFd, vector: u8) -> Result<()> {
    set_vcpu_attr(
        vcpu,
        KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR,
        kvm_xen_vcpu_attr__bindgen_ty_1 { vector },
    )
    .context("KVM_XEN_VCPU_SET_ATTR, upcall vector")
}

/// Arms the vCPU's timer, which raises event `port`, for kvmclock `expires_ns` (ns).
pub fn set_timer(vcpu: &VcpuFd, port: u32, expires_ns: u64) -> Result<()> {
    let timer = kvm_xen_vcpu_attr__bindgen_ty_1__bindgen_ty_2 {
        port,
        priority: KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
        expires_ns,
    };
    set_vcpu_attr(
        vcpu,
        KVM_XEN_VCPU_ATTR_TYPE_TIMER,
        kvm_xen_vcpu_attr__bindgen_ty_1 { timer },
    )
    .context("KVM_XEN_VCPU_SET_ATTR, timer")
}

fn set_vcpu_gpa(vcpu: &VcpuFd, type_: u32, gpa: u64) -> errno::Result<()> {
    set_vcpu_attr(vcpu, type_, kvm_xen_vcpu_attr__bindgen_ty_1 { gpa })
}

fn set_vcpu_attr(
    vcpu: &VcpuFd,
    type_: u32,
    value: kvm_xen_vcpu_attr__bindgen_ty_1,
) -> errno::Result<()> {
    let attr = kvm_xen_vcpu_attr {
        // CAST: a small number.
        type_: type_ as u16,
        pad: [0; 3],
        u: value,
    };
    // SAFETY: As in `set_shared_info()`.
    check(unsafe { ioctl_with_ref(vcpu, nr::KVM_XEN_VCPU_SET_ATTR(), &attr) })
}

fn check(ret: i32) -> errno::Result<()> {
    if ret < 0 {
        return errno::errno_result();
    }
    Ok(())
}
