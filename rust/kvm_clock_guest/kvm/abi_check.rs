// SPDX-License-Identifier: GPL-2.0-only

//! Refuses to build unless the Rust ABI is the C one.
//!
//! C header: `arch/x86/include/uapi/asm/kvm.h`

use super::bindings;
use crate::pvclock::{
    abi::{
        self,
        ClockGuest,
        ClockGuestVcpu,
        VcpuTscScale,
        VmClockGuest, //
    },
    handover::{
        self,
        Header, //
    },
};
use core::mem::{
    offset_of,
    size_of, //
};

macro_rules! same_layout {
    ($rust:ident, $c:ident: $($field:ident)*) => {
        const _: () = {
            assert!(size_of::<$rust>() == size_of::<bindings::$c>());
            $(assert!(offset_of!($rust, $field) == offset_of!(bindings::$c, $field));)*
        };
    };
}

same_layout!(ClockGuest, kvm_clock_guest:
    version pad0 tsc_timestamp system_time tsc_to_system_mul tsc_shift flags pad);
same_layout!(ClockGuest, pvclock_vcpu_time_info:
    version pad0 tsc_timestamp system_time tsc_to_system_mul tsc_shift flags pad);
same_layout!(ClockGuestVcpu, kvm_clock_guest_vcpu: vcpu_id pad tsc_offset steal_ns);
same_layout!(VmClockGuest, kvm_vm_clock_guest:
    size flags mode status nr_vcpus ref_vcpu_id vcpus
    host_tsc guest_tsc kvmclock_ns tai_ns monotonic_raw_ns tai_offset_s
    host_tsc_khz tsc_ratio tsc_frac_bits precision_ns record rate_diff_hz paused_ns);
same_layout!(VcpuTscScale, kvm_vcpu_tsc_scale: tsc_ratio tsc_frac_bits);
same_layout!(Header, kvm_clock_guest_ser: magic version size crc32 pad clock);

macro_rules! same_number {
    ($($rust:ident == $c:ident;)*) => {
        const _: () = {
            // CAST: KVM_VCPU_TSC_SCALE is an attribute, of 64 bits; bindgen makes it 32.
            $(assert!(abi::$rust as u64 == bindings::$c as u64);)*
        };
    };
}

same_number! {
    KVM_CAP_VM_CLOCK_GUEST == KVM_CAP_VM_CLOCK_GUEST;
    KVM_VCPU_TSC_SCALE == KVM_VCPU_TSC_SCALE;
    KVM_GET_VM_CLOCK_GUEST == RUST_CONST_HELPER_KVM_GET_VM_CLOCK_GUEST;
    KVM_SET_VM_CLOCK_GUEST == RUST_CONST_HELPER_KVM_SET_VM_CLOCK_GUEST;
    KVM_GET_CLOCK_GUEST == RUST_CONST_HELPER_KVM_GET_CLOCK_GUEST;
    KVM_SET_CLOCK_GUEST == RUST_CONST_HELPER_KVM_SET_CLOCK_GUEST;
    CAP_EXACT == RUST_CONST_HELPER_KVM_CLOCK_GUEST_CAP_EXACT;
    CAP_ADVANCE == RUST_CONST_HELPER_KVM_CLOCK_GUEST_CAP_ADVANCE;
    CAP_FREEZE == RUST_CONST_HELPER_KVM_CLOCK_GUEST_CAP_FREEZE;
    CAP_FALLBACK == RUST_CONST_HELPER_KVM_CLOCK_GUEST_CAP_FALLBACK;
    CAP_VCPU == RUST_CONST_HELPER_KVM_CLOCK_GUEST_CAP_VCPU;
    CAP_RESLOPE == RUST_CONST_HELPER_KVM_CLOCK_GUEST_CAP_RESLOPE;
    CAP_STEAL == RUST_CONST_HELPER_KVM_CLOCK_GUEST_CAP_STEAL;
    MODE_EXACT == KVM_CLOCK_GUEST_EXACT;
    MODE_ADVANCE == KVM_CLOCK_GUEST_ADVANCE;
    MODE_FREEZE == KVM_CLOCK_GUEST_FREEZE;
    FLAG_ALLOW_BACKWARDS == RUST_CONST_HELPER_KVM_CLOCK_GUEST_ALLOW_BACKWARDS;
    FLAG_ALLOW_RATE_MISMATCH == RUST_CONST_HELPER_KVM_CLOCK_GUEST_ALLOW_RATE_MISMATCH;
    FLAG_FALLBACK == RUST_CONST_HELPER_KVM_CLOCK_GUEST_FALLBACK;
    FLAG_RESLOPE == RUST_CONST_HELPER_KVM_CLOCK_GUEST_RESLOPE;
    STATUS_PINNED == RUST_CONST_HELPER_KVM_CLOCK_GUEST_PINNED;
    STATUS_HOST_TSC_STABLE == RUST_CONST_HELPER_KVM_CLOCK_GUEST_HOST_TSC_STABLE;
}

const _: () = {
    assert!(handover::MAGIC == bindings::KVM_CLOCK_GUEST_SER_MAGIC);
    assert!(handover::VERSION == bindings::KVM_CLOCK_GUEST_SER_VERSION);
};
