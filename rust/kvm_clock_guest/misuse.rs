// SPDX-License-Identifier: GPL-2.0-only

//! What must not compile: `scripts/check-misuse` builds the module with one of these at a time, and
//! compares the compiler's error code. `nothing` is the control: the same calls in the right order.

#![allow(dead_code, unused_variables, unreachable_pub)]

use crate::{
    kvm::{
        Vm,
        VmGuard, //
    },
    pvclock::{
        abi::ClockGuest,
        counter::HostTsc,
        tsc::TscTransform, //
    },
};
use kernel::prelude::*;

/// Compiles.
#[cfg(misuse = "nothing")]
fn nothing(vm: &Vm, record: &ClockGuest, transform: TscTransform, host_tsc: HostTsc) -> Result {
    record.kvmclock_ns(transform.guest_tsc(host_tsc));
    let guard = vm.lock()?;
    let state = guard.read(0, None, false)?;
    let locked = guard.trylock_all_vcpus()?;
    locked.commit(record, transform, &[], 0)?;
    drop(locked);
    guard.pin(record, transform);
    drop(guard);
    Ok(())
}

/// E0505: the VM's lock released before its vCPUs'.
#[cfg(misuse = "E0505")]
fn unlocked_in_the_wrong_order(vm: &Vm) -> Result {
    let guard = vm.lock()?;
    let locked = guard.trylock_all_vcpus()?;
    drop(guard);
    drop(locked);
    Ok(())
}

/// E0515: locked vCPUs that outlive the VM's lock.
#[cfg(misuse = "E0515")]
fn locked_vcpus_outlive_the_lock(vm: &Vm) -> Result<impl Sized + '_> {
    let guard = vm.lock()?;
    guard.trylock_all_vcpus()
}

/// E0277: a lock released by another task than the one that holds it.
#[cfg(misuse = "E0277")]
fn guard_sent_to_another_task(guard: VmGuard<'static>) {
    fn send<T: Send>(_: T) {}
    send(guard);
}

/// E0624: TSCs written without locked vCPUs.
#[cfg(misuse = "E0624")]
fn tscs_written_without_locked_vcpus(
    guard: &VmGuard<'_>,
    record: &ClockGuest,
    transform: TscTransform,
) {
    guard.commit(record, transform, &[], 0);
}

/// E0616: KVM's pointer.
#[cfg(misuse = "E0616")]
fn pointer_of_a_vm(vm: &Vm) {
    let _ = vm.0.get();
}

/// E0308: a host TSC where a guest TSC belongs.
#[cfg(misuse = "E0308")]
fn host_tsc_for_a_guest_tsc(record: &ClockGuest, host_tsc: HostTsc) -> u64 {
    record.kvmclock_ns(host_tsc)
}

/// E0451: a guard without a lock.
#[cfg(misuse = "E0451")]
fn guard_from_nothing(vm: &Vm) -> VmGuard<'_> {
    VmGuard {
        vm,
        _not_send: kernel::types::NotThreadSafe,
    }
}
