// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! VM ioctls: those of `kvm_clock_guest`, their capability, and `KVM_SET_TSC_KHZ`.

use crate::{
    abi::{ClockGuestVcpu, VmClockGuest, FLAG_FALLBACK, KVM_CAP_VM_CLOCK_GUEST},
    raw,
    request::{KVM_CHECK_EXTENSION, KVM_GET_CLOCK, KVM_SET_CLOCK, KVM_SET_TSC_KHZ},
    Result,
};
use std::os::fd::AsRawFd;

/// Flag of [`ClockData`]: `realtime` is valid.
pub const KVM_CLOCK_REALTIME: u32 = 1 << 2;
/// Flag of [`ClockData`]: `host_tsc` is valid.
pub const KVM_CLOCK_HOST_TSC: u32 = 1 << 3;

/// kvmclock at one moment: `struct kvm_clock_data`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClockData {
    /// kvmclock, ns.
    pub clock: u64,
    /// [`KVM_CLOCK_REALTIME`], [`KVM_CLOCK_HOST_TSC`] and others.
    pub flags: u32,
    /// 0.
    pub pad0: u32,
    /// `CLOCK_REALTIME` of that moment, ns.
    pub realtime: u64,
    /// The host's TSC of that moment.
    pub host_tsc: u64,
    /// 0.
    pub pad: [u32; 4],
}

/// The clocks of a whole VM: the ABI's header, and the array that it points to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VmClock {
    /// The header; the calls fill in `size`, `vcpus` and `nr_vcpus`.
    #[cfg_attr(feature = "serde", serde(with = "crate::bits"))]
    pub header: VmClockGuest,
    /// TSC offset and steal time of every vCPU; GET lists them in the VM's order.
    #[cfg_attr(feature = "serde", serde(with = "crate::bits::vec"))]
    pub vcpus: Vec<ClockGuestVcpu>,
}

impl VmClock {
    /// The header for the kernel.
    fn prepared(&mut self) -> VmClockGuest {
        VmClockGuest {
            // CAST: The structure has some hundred bytes.
            size: size_of::<VmClockGuest>() as u32,
            // CAST: KVM has far fewer than 2^32 vCPUs.
            nr_vcpus: self.vcpus.len() as u32,
            vcpus: self.vcpus.as_mut_ptr().addr() as u64,
            ..self.header
        }
    }

    /// Stores the header that the kernel has written, without the address.
    fn take(&mut self, header: VmClockGuest) {
        self.header = VmClockGuest { vcpus: 0, ..header };
    }
}

/// Reads `KVM_CAP_VM_CLOCK_GUEST` of `vm`: a set of [`CAP_*`](pvclock::abi::CAP_EXACT) bits, 0
/// without the `kvm_clock_guest` module.
///
/// # Example
///
/// ```no_run
/// # use kvm_clock::{abi::CAP_EXACT, clock_guest_cap};
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// assert!(clock_guest_cap(&vm) & CAP_EXACT != 0, "the kvm_clock_guest module is not loaded");
/// ```
pub fn clock_guest_cap(vm: &impl AsRawFd) -> u32 {
    check_extension(vm, KVM_CAP_VM_CLOCK_GUEST)
}

/// `KVM_CHECK_EXTENSION` of `vm`; 0 if the kernel does not have `cap`.
///
/// # Example
///
/// ```no_run
/// # use kvm_ioctls::Kvm;
/// const KVM_CAP_TSC_CONTROL: u32 = 60;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// let can_scale = kvm_clock::check_extension(&vm, KVM_CAP_TSC_CONTROL) != 0;
/// ```
pub fn check_extension(vm: &impl AsRawFd, cap: u32) -> u32 {
    // A kernel without the feature returns 0; an error means that it does not know the question.
    raw::ioctl_value(vm, KVM_CHECK_EXTENSION, cap).map_or(0, |value| {
        // CAST: Not negative.
        value as u32
    })
}

/// Reads the clocks of `vm`, all at one host TSC value. It changes nothing, and works while vCPUs
/// run.
///
/// Needs `KVM_CAP_VM_CLOCK_GUEST` with `CAP_EXACT`.
///
/// # Errors
///
/// - `ENOTTY`: the `kvm_clock_guest` module is not loaded.
/// - `ENODATA`: the VM clock is not pinned and there is no master clock, or the host TSC is not
///   stable; see [`get_vm_clock_guest_or_fall_back`].
/// - `EBUSY`: the host's TSC rate is temporarily unknown.
/// - `EOPNOTSUPP`: the guest's TSC is protected from the host.
///
/// # Example
///
/// ```no_run
/// # use kvm_clock::get_vm_clock_guest;
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// let vcpus = [vm.create_vcpu(0).unwrap(), vm.create_vcpu(1).unwrap()];
/// let clock = get_vm_clock_guest(&vm).unwrap();
/// assert_eq!(clock.vcpus.len(), vcpus.len());
/// assert_eq!(clock.header.record.kvmclock_ns(clock.header.guest_tsc), clock.header.kvmclock_ns);
/// ```
pub fn get_vm_clock_guest(vm: &impl AsRawFd) -> Result<VmClock> {
    get(vm, 0)
}

/// As [`get_vm_clock_guest`], but without a master clock or a stable host TSC it reads KVM's clock,
/// and `header.precision_ns` is the largest error of that.
///
/// Needs `KVM_CAP_VM_CLOCK_GUEST` with `CAP_FALLBACK`.
///
/// # Errors
///
/// Those of [`get_vm_clock_guest`], with `ENODATA` only if the vCPUs' TSCs run at different rates,
/// or if there is no vCPU.
///
/// # Example
///
/// ```no_run
/// # use kvm_clock::get_vm_clock_guest_or_fall_back;
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// let vcpu = vm.create_vcpu(0).unwrap();
/// let clock = get_vm_clock_guest_or_fall_back(&vm).unwrap();
/// println!("these clocks are precise to {} ns", clock.header.precision_ns);
/// ```
pub fn get_vm_clock_guest_or_fall_back(vm: &impl AsRawFd) -> Result<VmClock> {
    get(vm, FLAG_FALLBACK)
}

fn get(vm: &impl AsRawFd, flags: u32) -> Result<VmClock> {
    let mut clock = VmClock {
        header: VmClockGuest {
            flags,
            ..VmClockGuest::default()
        },
        vcpus: vec![ClockGuestVcpu::default(); 8],
    };
    loop {
        let mut header = clock.prepared();
        // SAFETY: `header` begins with its size, and describes the mutably borrowed `clock.vcpus`.
        let result = unsafe { raw::get(vm, (&raw mut header).cast()) };
        let needed = header.nr_vcpus as usize;
        match result {
            Ok(()) => {
                clock.vcpus.truncate(needed);
                clock.take(header);
                return Ok(clock);
            }
            // The array was too small; a vCPU may be added between two attempts.
            Err(e) if e.errno() == libc::E2BIG && needed > clock.vcpus.len() => {
                clock.vcpus.resize(needed, ClockGuestVcpu::default());
            }
            Err(e) => return Err(e),
        }
    }
}

/// Writes the clocks of `vm`, all or none. The caller sets `clock.header.mode` and `.flags`, and
/// `.paused_ns` to add the pause to the guest's steal time.
///
/// The call sets `clock.header.rate_diff_hz` (Hz), also with `ERANGE`; on success also `status` and
/// `precision_ns`. Needs `KVM_CAP_VM_CLOCK_GUEST` with the mode's bit.
///
/// # Errors
///
/// - `ENOTTY`: the `kvm_clock_guest` module is not loaded.
/// - `EINVAL`: `clock` is malformed, or does not have every vCPU exactly once. A record with a
///   `mul` below 2^31 is malformed, and so is a steal time above `i64::MAX` ns.
/// - `EBUSY`: a vCPU is inside an ioctl, such as `KVM_RUN`.
/// - `ENODATA`: the host TSC is not stable, and `FLAG_FALLBACK` is not set; or the vCPUs' TSCs run
///   at different rates.
/// - `ERANGE`: the TSC rates differ by more than KVM's parameter `tsc_tolerance_ppm`, and
///   `FLAG_ALLOW_RATE_MISMATCH` is not set; or the record's rate differs by more from that of the
///   guest's TSC here, and `FLAG_RESLOPE` is not set.
/// - `ESTALE`: mode exact, but the anchor is ahead of this host's TSC.
/// - `ETIME`: mode advance would move the guest backwards.
/// - `EOPNOTSUPP`: the guest's TSC is protected from the host.
///
/// # Example
///
/// ```no_run
/// # use kvm_clock::{abi::MODE_EXACT, get_vm_clock_guest, set_vm_clock_guest};
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// let vcpu = vm.create_vcpu(0).unwrap();
/// let mut clock = get_vm_clock_guest(&vm).unwrap();
/// // The guest is paused.
/// clock.header.mode = MODE_EXACT;
/// set_vm_clock_guest(&vm, &mut clock).unwrap();
/// ```
pub fn set_vm_clock_guest(vm: &impl AsRawFd, clock: &mut VmClock) -> Result<()> {
    let mut header = clock.prepared();
    // SAFETY: `header` begins with its size, and describes the mutably borrowed `clock.vcpus`.
    let result = unsafe { raw::set(vm, (&raw mut header).cast()) };
    clock.take(header);
    result
}

/// Sets the TSC rate (kHz) of all vCPUs that are created in `vm` later: `KVM_SET_TSC_KHZ`.
///
/// Needs `KVM_CAP_VM_TSC_CONTROL`, without which vCPUs cannot be slower than the host.
///
/// # Errors
///
/// `EINVAL` if the VM already has vCPUs, or if the CPU cannot scale to that rate.
///
/// # Example
///
/// ```no_run
/// # use kvm_clock::set_tsc_khz;
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// set_tsc_khz(&vm, 2_000_000).unwrap();
/// let vcpu = vm.create_vcpu(0).unwrap();
/// assert_eq!(vcpu.get_tsc_khz().unwrap(), 2_000_000);
/// ```
pub fn set_tsc_khz(vm: &impl AsRawFd, tsc_khz: u32) -> Result<()> {
    raw::ioctl_value(vm, KVM_SET_TSC_KHZ, tsc_khz).map(drop)
}

/// Reads kvmclock: `KVM_GET_CLOCK`.
///
/// # Errors
///
/// Those of the ioctl.
///
/// # Example
///
/// ```no_run
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// println!("kvmclock is {} ns", kvm_clock::get_clock(&vm).unwrap().clock);
/// ```
pub fn get_clock(vm: &impl AsRawFd) -> Result<ClockData> {
    let mut data = ClockData::default();
    // SAFETY: The kernel writes only the mutably borrowed structure.
    unsafe { raw::ioctl(vm, KVM_GET_CLOCK, (&raw mut data).cast()) }?;
    Ok(data)
}

/// Sets kvmclock, and ends a pinned clock: `KVM_SET_CLOCK`. With [`KVM_CLOCK_REALTIME`], KVM adds
/// the time since `realtime`.
///
/// # Errors
///
/// `EINVAL` for an unknown flag.
///
/// # Example
///
/// ```no_run
/// # use kvm_clock::{get_clock, set_clock, ClockData};
/// # use kvm_ioctls::Kvm;
/// let vm = Kvm::new().unwrap().create_vm().unwrap();
/// let clock = get_clock(&vm).unwrap().clock;
/// set_clock(&vm, &ClockData { clock, ..ClockData::default() }).unwrap();
/// ```
pub fn set_clock(vm: &impl AsRawFd, data: &ClockData) -> Result<()> {
    // SAFETY: The kernel only reads the borrowed structure.
    unsafe { raw::ioctl(vm, KVM_SET_CLOCK, (&raw const *data).cast_mut().cast()) }.map(drop)
}

const _: () = assert!(size_of::<ClockData>() == 48);

#[cfg(all(test, feature = "serde"))]
mod tests {
    use super::*;
    use pvclock::counter::{HostTsc, TscOffset};

    #[test]
    fn clock_survives_serialisation() {
        let clock = VmClock {
            header: VmClockGuest {
                mode: 1,
                host_tsc: HostTsc(u64::MAX - 1),
                tai_ns: -5,
                paused_ns: 5,
                ..VmClockGuest::default()
            },
            vcpus: (0..3)
                .map(|vcpu_id| ClockGuestVcpu {
                    vcpu_id,
                    pad: 0,
                    tsc_offset: TscOffset(u64::from(vcpu_id).wrapping_neg()),
                    steal_ns: u64::from(vcpu_id) << 40,
                })
                .collect(),
        };
        let json = serde_json::to_string(&clock).unwrap();
        assert_eq!(serde_json::from_str::<VmClock>(&json).unwrap(), clock);
        // It has all bytes.
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let length = |value: &serde_json::Value| value.as_array().unwrap().len();
        assert_eq!(length(&value["header"]), 144);
        assert_eq!(length(&value["vcpus"][2]), 24);
    }
}
