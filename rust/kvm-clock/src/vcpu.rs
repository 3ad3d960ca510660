// SPDX-License-Identifier: GPL-2.0-only

//! vCPU ioctls: those of `kvm_clock_guest`, and the TSC attributes.

use super::raw::check;
use kvm_bindings::{kvm_device_attr, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET};
use kvm_ioctls::VcpuFd;
use pvclock::{
    abi::{ClockGuest, VcpuTscScale, KVM_GET_CLOCK_GUEST, KVM_SET_CLOCK_GUEST, KVM_VCPU_TSC_SCALE},
    counter::TscOffset,
};
use vmm_sys_util::{
    errno,
    ioctl::{ioctl_with_mut_ref, ioctl_with_ref},
};
use zerocopy::{FromBytes, Immutable};

/// Request numbers.
mod nr {
    use kvm_bindings::kvm_device_attr;
    use vmm_sys_util::ioctl_iow_nr;

    const KVMIO: u32 = 0xae;

    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
}

/// Reads the pvclock record of a vCPU, as proposed on the kernel list; `version` and padding are 0.
///
/// It works while the vCPU runs. Needs `KVM_CAP_VM_CLOCK_GUEST` with `CAP_VCPU`.
///
/// # Errors
///
/// - `ENOTTY`: the `kvm_clock_guest` module is not loaded.
/// - `ENODATA`: the VM clock is not pinned and there is no master clock, or the host TSC is not
///   stable, or the vCPUs' TSCs run at different rates.
/// - `EBUSY`: the host's TSC rate is temporarily unknown.
/// - `EOPNOTSUPP`: the guest's TSC is protected from the host.
///
/// # Example
///
/// ```no_run
/// # use kvm_clock::get_clock_guest;
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// let vcpu = vm.create_vcpu(0).unwrap();
/// let record = get_clock_guest(&vcpu).unwrap();
/// println!("kvmclock was {} ns at TSC {}", record.system_time, record.tsc_timestamp);
/// ```
pub fn get_clock_guest(vcpu: &VcpuFd) -> errno::Result<ClockGuest> {
    let mut record = ClockGuest::default();
    // SAFETY: The kernel writes only the mutably borrowed record.
    check(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_CLOCK_GUEST.into(), &mut record) })?;
    Ok(record)
}

/// Pins `record`, which is for this vCPU, as the clock of the whole VM.
///
/// It works while vCPUs run. Needs `KVM_CAP_VM_CLOCK_GUEST` with `CAP_VCPU`.
///
/// # Errors
///
/// Those of [`get_clock_guest`], and
///
/// - `EINVAL`: padding is not 0, `mul` is below 2^31, `shift` is outside -31..=31, or
///   `tsc_timestamp` is ahead of the vCPU's TSC.
/// - `ERANGE`: the record's rate differs by more than 1 kHz from that of the vCPU's TSC.
///
/// # Example
///
/// ```no_run
/// # use kvm_clock::{get_clock_guest, set_clock_guest};
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// let vcpu = vm.create_vcpu(0).unwrap();
/// let record = get_clock_guest(&vcpu).unwrap();
/// // The guest is paused.
/// set_clock_guest(&vcpu, &record).unwrap();
/// ```
pub fn set_clock_guest(vcpu: &VcpuFd, record: &ClockGuest) -> errno::Result<()> {
    // SAFETY: The kernel reads only the borrowed record.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_CLOCK_GUEST.into(), record) })
}

/// Reads the L1 TSC offset of a vCPU: `KVM_VCPU_TSC_OFFSET`.
///
/// It waits while the vCPU is inside `KVM_RUN`. Needs `KVM_CAP_VCPU_ATTRIBUTES`.
///
/// # Errors
///
/// `ENXIO` if KVM does not have the attribute.
///
/// # Example
///
/// ```no_run
/// # use kvm_clock::tsc_offset;
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// let vcpu = vm.create_vcpu(0).unwrap();
/// println!("the guest's TSC is the host's plus {}", tsc_offset(&vcpu).unwrap());
/// ```
pub fn tsc_offset(vcpu: &VcpuFd) -> errno::Result<TscOffset> {
    get_attr(vcpu, KVM_VCPU_TSC_OFFSET.into())
}

/// Reads the TSC scaling ratio of a vCPU: `KVM_VCPU_TSC_SCALE`.
///
/// It waits while the vCPU is inside `KVM_RUN`. Needs `KVM_CAP_VCPU_ATTRIBUTES`.
///
/// # Errors
///
/// `ENXIO` if KVM does not have the attribute, or the hardware cannot scale.
///
/// # Example
///
/// ```no_run
/// # use kvm_clock::tsc_scale;
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// let vcpu = vm.create_vcpu(0).unwrap();
/// let scale = tsc_scale(&vcpu).unwrap();
/// println!("the guest's TSC counts {} in 2^{} ticks", scale.tsc_ratio, scale.tsc_frac_bits);
/// ```
pub fn tsc_scale(vcpu: &VcpuFd) -> errno::Result<VcpuTscScale> {
    get_attr(vcpu, KVM_VCPU_TSC_SCALE)
}

/// Sets the L1 TSC offset of a vCPU: `KVM_VCPU_TSC_OFFSET`.
///
/// It waits while the vCPU is inside `KVM_RUN`. Needs `KVM_CAP_VCPU_ATTRIBUTES`.
///
/// # Errors
///
/// `ENXIO` if KVM does not have the attribute.
///
/// # Example
///
/// ```no_run
/// # use kvm_clock::{set_tsc_offset, tsc_offset};
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// let vcpu = vm.create_vcpu(0).unwrap();
/// let offset = tsc_offset(&vcpu).unwrap();
/// // The guest's TSC jumps by 1000 ticks.
/// set_tsc_offset(&vcpu, offset.wrapping_add(1000)).unwrap();
/// ```
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: TscOffset) -> errno::Result<()> {
    let attr = tsc_attr(KVM_VCPU_TSC_OFFSET.into(), (&raw const offset).addr());
    // SAFETY: The kernel reads 8 bytes at `attr.addr`, which is `offset`.
    check(unsafe { ioctl_with_ref(vcpu, nr::KVM_SET_DEVICE_ATTR(), &attr) })
}

/// Reads an attribute whose value is a `T`.
fn get_attr<T: FromBytes + Immutable>(vcpu: &VcpuFd, attr: u64) -> errno::Result<T> {
    let mut value = T::new_zeroed();
    let attr = tsc_attr(attr, (&raw mut value).addr());
    // SAFETY: The kernel writes a `T`, which allows any bytes, at `attr.addr`, which is `value`.
    check(unsafe { ioctl_with_ref(vcpu, nr::KVM_GET_DEVICE_ATTR(), &attr) })?;
    // The compiler does not see the kernel's write.
    Ok(std::hint::black_box(value))
}

fn tsc_attr(attr: u64, addr: usize) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr,
        addr: addr as u64,
        ..kvm_device_attr::default()
    }
}
