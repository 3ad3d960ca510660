// SPDX-License-Identifier: GPL-2.0-only

//! Serving the guest clock ioctls.
//!
//! C header: `arch/x86/include/asm/kvm_clock_guest.h`

use super::{
    bindings,
    vm::{
        Vcpu,
        Vm, //
    },
};
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    ffi::{
        c_int,
        c_uint,
        c_void, //
    },
    prelude::*,
    types::Opaque,
    uaccess::UserPtr, //
};

/// Who serves the guest clock ioctls.
pub(crate) trait ClockGuest {
    /// What `KVM_CHECK_EXTENSION(KVM_CAP_VM_CLOCK_GUEST)` returns.
    const CAPABILITIES: u32;

    /// Serves an ioctl on a VM file descriptor; takes whatever locks it needs.
    fn vm_ioctl(vm: &Vm, ioctl: u32, arg: UserPtr) -> Result<c_int>;

    /// Serves an ioctl on a vCPU file descriptor; takes whatever locks it needs.
    fn vcpu_ioctl(vcpu: &Vcpu, ioctl: u32, arg: UserPtr) -> Result<c_int>;
}

/// The registration of `T` with KVM; at most one exists in a kernel.
///
/// # Invariants
///
/// `ops` is registered with KVM, and its functions are those of `T`.
pub(crate) struct Registration<T: ClockGuest> {
    ops: KBox<Opaque<bindings::kvm_clock_guest_ops>>,
    _served: PhantomData<fn() -> T>,
}

// SAFETY: `ops` is not written to after it was registered.
unsafe impl<T: ClockGuest> Send for Registration<T> {}
// SAFETY: As above.
unsafe impl<T: ClockGuest> Sync for Registration<T> {}

impl<T: ClockGuest> Registration<T> {
    /// Starts to serve the ioctls of all VMs, old and new.
    ///
    /// # Errors
    ///
    /// `EBUSY` if somebody serves them already, `ENOMEM`.
    pub(crate) fn new(module: &'static ThisModule) -> Result<Self> {
        let ops = KBox::new(
            Opaque::new(bindings::kvm_clock_guest_ops {
                owner: module.as_ptr().cast(),
                // CAST: A few low bits.
                capabilities: T::CAPABILITIES as c_int,
                vm_ioctl: Some(Self::vm_ioctl),
                vcpu_ioctl: Some(Self::vcpu_ioctl),
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: `ops` is valid until it was unregistered, see `drop()`, and its owner is the
        // module whose code the functions are.
        to_result(unsafe { bindings::kvm_clock_guest_register(ops.get()) })?;
        // INVARIANT: It was just registered.
        Ok(Self {
            ops,
            _served: PhantomData,
        })
    }

    extern "C" fn vm_ioctl(kvm: *mut bindings::kvm, ioctl: c_uint, argp: *mut c_void) -> c_int {
        // SAFETY: KVM calls this with the VM of the file descriptor, which outlives the call.
        let vm = unsafe { Vm::from_raw(kvm) };
        from_c_int(T::vm_ioctl(vm, ioctl, UserPtr::from_ptr(argp)))
    }

    extern "C" fn vcpu_ioctl(
        vcpu: *mut bindings::kvm_vcpu,
        ioctl: c_uint,
        argp: *mut c_void,
    ) -> c_int {
        // SAFETY: KVM calls this with the vCPU of the file descriptor, which outlives the call,
        // after it waited for the vCPU to be online.
        let vcpu = unsafe { Vcpu::from_raw(vcpu) };
        from_c_int(T::vcpu_ioctl(vcpu, ioctl, UserPtr::from_ptr(argp)))
    }
}

impl<T: ClockGuest> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is registered. After this no call is in progress: the
        // module cannot go while one is, and none can begin.
        unsafe { bindings::kvm_clock_guest_unregister(self.ops.get()) };
    }
}

fn from_c_int(result: Result<c_int>) -> c_int {
    match result {
        Ok(value) => value,
        Err(error) => error.to_errno(),
    }
}
