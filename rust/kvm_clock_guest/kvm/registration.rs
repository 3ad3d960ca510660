// SPDX-License-Identifier: GPL-2.0-only

//! Serving the guest clock ioctls.
//!
//! C header: `arch/x86/include/asm/kvm_clock_guest.h`

use super::{
    bindings,
    vm::Vm, //
};
use core::{
    marker::PhantomData,
    slice, //
};
use kernel::{
    error::{
        from_result,
        to_result, //
    },
    ffi::{
        c_int,
        c_uint,
        c_void, //
    },
    prelude::*,
    types::Opaque,
    uaccess::UserPtr, //
};

/// A server of the guest clock ioctls.
pub(crate) trait ClockGuestOps {
    /// What `KVM_CHECK_EXTENSION(KVM_CAP_VM_CLOCK_GUEST)` returns.
    const CAPABILITIES: u32;

    /// Serves an ioctl on a VM file descriptor; takes the locks that it needs.
    fn vm_ioctl(vm: &Vm, ioctl: u32, arg: UserPtr) -> Result<c_int>;

    /// Serves an ioctl on the file descriptor of vCPU number `index`; takes the locks that it
    /// needs.
    fn vcpu_ioctl(vm: &Vm, index: u32, ioctl: u32, arg: UserPtr) -> Result<c_int>;

    /// Writes the clocks of a VM to the start of `to`, and returns the bytes that they take; if
    /// `to` has fewer, writes nothing.
    fn save(vm: &Vm, to: &mut [u8]) -> Result<u32>;

    /// Makes what [`save`](Self::save) wrote the clocks of a VM.
    fn restore(vm: &Vm, from: &[u8]) -> Result;
}

/// The registration of `T` with KVM; at most one exists in a kernel.
///
/// # Invariants
///
/// `ops` is registered with KVM, and its functions are those of `T`.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: ClockGuestOps> {
    #[pin]
    ops: Opaque<bindings::kvm_clock_guest_ops>,
    _served: PhantomData<fn() -> T>,
}

// SAFETY: `ops` is not written to after it was registered.
unsafe impl<T: ClockGuestOps> Send for Registration<T> {}
// SAFETY: As above.
unsafe impl<T: ClockGuestOps> Sync for Registration<T> {}

impl<T: ClockGuestOps> Registration<T> {
    /// Starts to serve the ioctls of all VMs, old and new.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the module was built for another KVM, `EBUSY` if another module serves the
    /// ioctls already.
    pub(crate) fn new(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            ops <- Opaque::try_ffi_init(move |slot: *mut bindings::kvm_clock_guest_ops| {
                let ops = bindings::kvm_clock_guest_ops {
                    owner: module.as_ptr().cast(),
                    // SAFETY: No requirements.
                    build: unsafe { bindings::rust_helper_kvm_clock_guest_build() },
                    // CAST: A few low bits.
                    capabilities: T::CAPABILITIES as c_int,
                    vm_ioctl: Some(Self::vm_ioctl),
                    vcpu_ioctl: Some(Self::vcpu_ioctl),
                    save: Some(Self::save),
                    restore: Some(Self::restore),
                };
                // SAFETY: The initializer may write to `slot`. It is pinned, and unregistered
                // before it goes, see `drop()`; the functions are the code of their owner.
                // INVARIANT: If this returns `Ok(())`, `slot` is registered.
                to_result(unsafe {
                    slot.write(ops);
                    bindings::kvm_clock_guest_register(slot)
                })
            }),
            _served: PhantomData,
        })
    }

    extern "C" fn vm_ioctl(kvm: *mut bindings::kvm, ioctl: c_uint, argp: *mut c_void) -> c_int {
        // SAFETY: KVM calls this with the VM of the file descriptor, which outlives the call.
        let vm = unsafe { Vm::from_raw(kvm) };
        from_result(|| T::vm_ioctl(vm, ioctl, UserPtr::from_ptr(argp)))
    }

    extern "C" fn vcpu_ioctl(
        kvm: *mut bindings::kvm,
        index: c_uint,
        ioctl: c_uint,
        argp: *mut c_void,
    ) -> c_int {
        // SAFETY: KVM calls this with the VM of the file descriptor's vCPU, which outlives the
        // call.
        let vm = unsafe { Vm::from_raw(kvm) };
        from_result(|| T::vcpu_ioctl(vm, index, ioctl, UserPtr::from_ptr(argp)))
    }

    extern "C" fn save(kvm: *mut bindings::kvm, to: *mut c_void, size: usize) -> c_int {
        // SAFETY: KVM calls this with the caller's VM, which outlives the call.
        let vm = unsafe { Vm::from_raw(kvm) };
        let to: &mut [u8] = if size == 0 {
            &mut []
        } else {
            // SAFETY: KVM's caller lends `size` bytes at `to`, if there are any, for this call.
            unsafe { slice::from_raw_parts_mut(to.cast::<u8>(), size) }
        };
        from_result(|| c_int::try_from(T::save(vm, to)?).map_err(|_| EOVERFLOW))
    }

    extern "C" fn restore(kvm: *mut bindings::kvm, from: *const c_void, size: usize) -> c_int {
        // SAFETY: KVM calls this with the caller's VM, which outlives the call.
        let vm = unsafe { Vm::from_raw(kvm) };
        let from: &[u8] = if size == 0 {
            &[]
        } else {
            // SAFETY: KVM's caller lends `size` bytes at `from`, if there are any, for this call.
            unsafe { slice::from_raw_parts(from.cast::<u8>(), size) }
        };
        from_result(|| T::restore(vm, from).map(|()| 0))
    }
}

#[pinned_drop]
impl<T: ClockGuestOps> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant it is registered. After this no call is in progress: the
        // module cannot go while one is, and none can begin.
        unsafe { bindings::kvm_clock_guest_unregister(self.ops.get()) };
    }
}
