// SPDX-License-Identifier: GPL-2.0-only

//! VM ioctls: those of `kvm_clock_guest`, their capability, and `KVM_SET_TSC_KHZ`.

use super::raw;
use kvm_ioctls::VmFd;
use pvclock::abi::{ClockGuestVcpu, VmClockGuest, FLAG_FALLBACK, KVM_CAP_VM_CLOCK_GUEST};
use serde::{Deserialize, Serialize};
use vmm_sys_util::{errno, ioctl::ioctl_with_val};

/// Request numbers.
mod nr {
    use vmm_sys_util::ioctl_io_nr;

    const KVMIO: u32 = 0xae;

    ioctl_io_nr!(KVM_SET_TSC_KHZ, KVMIO, 0xa2);
}

/// The clocks of a whole VM: the ABI's header, and the array that it points to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmClock {
    /// The header; the calls fill in `size`, `vcpus` and `nr_vcpus`.
    #[serde(with = "crate::bits")]
    pub header: VmClockGuest,
    /// TSC offset and steal time of every vCPU; GET lists them in the VM's order.
    #[serde(with = "crate::bits::vec")]
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
pub fn clock_guest_cap(vm: &VmFd) -> u32 {
    let bits = vm.check_extension_raw(KVM_CAP_VM_CLOCK_GUEST.into());
    // A kernel without the hook returns 0; a negative result is an errno.
    u32::try_from(bits).unwrap_or(0)
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
pub fn get_vm_clock_guest(vm: &VmFd) -> errno::Result<VmClock> {
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
pub fn get_vm_clock_guest_or_fall_back(vm: &VmFd) -> errno::Result<VmClock> {
    get(vm, FLAG_FALLBACK)
}

fn get(vm: &VmFd, flags: u32) -> errno::Result<VmClock> {
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
pub fn set_vm_clock_guest(vm: &VmFd, clock: &mut VmClock) -> errno::Result<()> {
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
pub fn set_tsc_khz(vm: &VmFd, tsc_khz: u32) -> errno::Result<()> {
    // SAFETY: The argument is a number.
    raw::check(unsafe { ioctl_with_val(vm, nr::KVM_SET_TSC_KHZ(), tsc_khz.into()) })
}

#[cfg(test)]
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
