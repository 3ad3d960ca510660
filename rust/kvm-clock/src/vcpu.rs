// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vCPU ioctls: those of `kvm_clock_guest`, and the TSC attributes.

use crate::{
    abi::{ClockGuest, VcpuTscScale, KVM_VCPU_TSC_SCALE},
    counter::{GuestTsc, TscOffset},
    errno::{Errno, Result},
    raw::{ioctl, ioctl_value},
    request::{
        KVM_GET_CLOCK_GUEST, KVM_GET_DEVICE_ATTR, KVM_GET_MSRS, KVM_GET_TSC_KHZ,
        KVM_SET_CLOCK_GUEST, KVM_SET_DEVICE_ATTR,
    },
};
use std::os::fd::AsRawFd;
use zerocopy::{FromBytes, Immutable};

/// Attribute group of the TSC.
const KVM_VCPU_TSC_CTRL: u32 = 0;
/// Attribute of that group: the L1 TSC offset.
const KVM_VCPU_TSC_OFFSET: u64 = 0;

const MSR_IA32_TSC: u32 = 0x10;

/// `struct kvm_device_attr`.
#[repr(C)]
struct DeviceAttr {
    flags: u32,
    group: u32,
    attr: u64,
    addr: u64,
}

/// `struct kvm_msrs` with one entry.
#[repr(C)]
struct OneMsr {
    nmsrs: u32,
    pad: u32,
    index: u32,
    reserved: u32,
    data: u64,
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
pub fn get_clock_guest(vcpu: &impl AsRawFd) -> Result<ClockGuest> {
    let mut record = ClockGuest::default();
    // SAFETY: The kernel writes only the mutably borrowed record.
    unsafe { ioctl(vcpu, KVM_GET_CLOCK_GUEST, (&raw mut record).cast()) }?;
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
pub fn set_clock_guest(vcpu: &impl AsRawFd, record: &ClockGuest) -> Result<()> {
    // SAFETY: The kernel reads only the borrowed record.
    unsafe {
        ioctl(
            vcpu,
            KVM_SET_CLOCK_GUEST,
            (&raw const *record).cast_mut().cast(),
        )
    }
    .map(drop)
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
pub fn tsc_offset(vcpu: &impl AsRawFd) -> Result<TscOffset> {
    get_attr(vcpu, KVM_VCPU_TSC_OFFSET)
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
pub fn tsc_scale(vcpu: &impl AsRawFd) -> Result<VcpuTscScale> {
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
pub fn set_tsc_offset(vcpu: &impl AsRawFd, offset: TscOffset) -> Result<()> {
    let mut attr = tsc_attr(KVM_VCPU_TSC_OFFSET, (&raw const offset).addr());
    // SAFETY: The kernel reads the attribute, and 8 bytes at `attr.addr`, which is `offset`.
    unsafe { ioctl(vcpu, KVM_SET_DEVICE_ATTR, (&raw mut attr).cast()) }.map(drop)
}

/// Reads the TSC rate of a vCPU, kHz: `KVM_GET_TSC_KHZ`.
///
/// It is the rate that the VMM has asked for: where that is within KVM's tolerance of the host's,
/// the vCPU runs at the host's.
///
/// # Errors
///
/// `EIO` if the rate is not constant.
///
/// # Example
///
/// ```no_run
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// let vcpu = vm.create_vcpu(0).unwrap();
/// assert_eq!(kvm_clock::tsc_khz(&vcpu).unwrap(), vcpu.get_tsc_khz().unwrap());
/// ```
pub fn tsc_khz(vcpu: &impl AsRawFd) -> Result<u32> {
    // CAST: Not negative.
    ioctl_value(vcpu, KVM_GET_TSC_KHZ, 0).map(|khz| khz as u32)
}

/// Reads the L1 TSC of a vCPU: `MSR_IA32_TSC`.
///
/// It waits while the vCPU is inside `KVM_RUN`.
///
/// # Errors
///
/// Those of `KVM_GET_MSRS`.
///
/// # Example
///
/// ```no_run
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// let vcpu = vm.create_vcpu(0).unwrap();
/// println!("the guest's TSC is {}", kvm_clock::guest_tsc(&vcpu).unwrap());
/// ```
pub fn guest_tsc(vcpu: &impl AsRawFd) -> Result<GuestTsc> {
    let mut msr = OneMsr {
        nmsrs: 1,
        pad: 0,
        index: MSR_IA32_TSC,
        reserved: 0,
        data: 0,
    };
    // SAFETY: The kernel reads the header and writes one entry, which follows it.
    match unsafe { ioctl(vcpu, KVM_GET_MSRS, (&raw mut msr).cast()) }? {
        // The number of MSRs that were read.
        0 => Err(Errno(libc::EINVAL)),
        _ => Ok(GuestTsc(msr.data)),
    }
}

/// Reads an attribute whose value is a `T`.
fn get_attr<T: FromBytes + Immutable>(vcpu: &impl AsRawFd, attr: u64) -> Result<T> {
    let mut value = T::new_zeroed();
    let mut attr = tsc_attr(attr, (&raw mut value).addr());
    // SAFETY: The kernel reads the attribute, and writes a `T`, which allows any bytes, at
    // `attr.addr`, which is `value`.
    unsafe { ioctl(vcpu, KVM_GET_DEVICE_ATTR, (&raw mut attr).cast()) }?;
    // The compiler does not see the kernel's write.
    Ok(std::hint::black_box(value))
}

fn tsc_attr(attr: u64, addr: usize) -> DeviceAttr {
    DeviceAttr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr,
        addr: addr as u64,
    }
}
