// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The saved clocks of a VM, and their format.

use crate::{
    abi::{ClockGuestVcpu, VmClockGuest, CAP_EXACT, MODE_EXACT},
    check_extension, clock_guest_cap,
    error::Error,
    get_vm_clock_guest_or_fall_back,
    host::{asleep_since_boot_ns, HostId},
    legacy,
    outcome::Outcome,
    policy::Policy,
    restore, set_tsc_khz, tsc_khz, VmClock,
};
use pvclock::request::{Invalid, SetRequest};
use std::os::fd::AsRawFd;
use zerocopy::{FromBytes, IntoBytes};

/// A vCPU of a VM.
#[derive(Debug)]
pub struct Vcpu<'a, F> {
    /// The ID that it was created with.
    pub id: u32,
    /// Its descriptor.
    pub fd: &'a F,
}

impl<'a, F> Vcpu<'a, F> {
    /// vCPUs with the IDs 0, 1 and so on.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use kvm_clock::Vcpu;
    /// # use kvm_ioctls::Kvm;
    /// let vm = Kvm::new().unwrap().create_vm().unwrap();
    /// let fds = [0, 1].map(|id| vm.create_vcpu(id).unwrap());
    /// assert_eq!(Vcpu::numbered(&fds)[1].id, 1);
    /// ```
    pub fn numbered(fds: impl IntoIterator<Item = &'a F>) -> Vec<Self> {
        let numbered = (0..).zip(fds);
        numbered.map(|(id, fd)| Self { id, fd }).collect()
    }
}

/// The clocks of a VM: TSC, scaling and kvmclock of all vCPUs as of one host TSC value, and the
/// host that they were saved on.
///
/// With serde, it is a structure with a version. A later version of this crate may add fields to
/// it, and bytes to the kernel's structures: these are ignored, so in a format that describes
/// itself, such as JSON, old programs read new data. Programs that read untrusted data need no
/// checks of their own: [`restore`](Self::restore) makes them before it changes anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct SavedClocks {
    /// [`SavedClocks::VERSION`]; 0 if there is none, so that other data is detected.
    version: u32,
    host: HostId,
    /// How long that host had slept since its boot, ns.
    asleep_ns: i64,
    /// TSC rate of the guest, kHz.
    tsc_khz: u32,
    /// If the module was absent: the error of the rebuilt record, ns.
    rebuilt_ns: Option<u32>,
    /// [`VmClockGuest`], perhaps with more fields.
    header: Vec<u8>,
    /// [`ClockGuestVcpu`] of each vCPU, perhaps with more fields.
    vcpus: Vec<Vec<u8>>,
}

/// What [`SavedClocks::prepare`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// vCPUs are created with the guest's TSC rate.
    Rate,
    /// This host cannot scale: vCPUs are created with its own rate, kHz. A restore compares it with
    /// the guest's.
    HostRate(u32),
}

impl SavedClocks {
    /// The version of the format.
    pub const VERSION: u32 = 1;

    /// Saves the clocks of a VM whose vCPUs are all stopped; `host` is this host.
    ///
    /// With the kernel module `kvm_clock_guest`, this calls `KVM_GET_TSC_KHZ` and
    /// `KVM_GET_VM_CLOCK_GUEST`. Without it, `KVM_GET_CLOCK` and the vCPUs' TSC offsets yield the
    /// same values; only the record is rebuilt, to 2 ns.
    ///
    /// # Errors
    ///
    /// [`Error::NoVcpus`], [`Error::VcpuAdded`], [`Error::VcpuMissing`] or [`Error::VcpuTwice`] if
    /// `vcpus` are not those of `vm`; [`Error::ScaledTsc`]; those of the ioctls. This changes
    /// nothing.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use kvm_clock::{HostId, SavedClocks, Vcpu};
    /// # use kvm_ioctls::Kvm;
    /// let vm = Kvm::new().unwrap().create_vm().unwrap();
    /// let fds = [0, 1].map(|id| vm.create_vcpu(id).unwrap());
    /// let host = HostId::read().unwrap();
    /// let saved = SavedClocks::save(&vm, &Vcpu::numbered(&fds), &host).unwrap();
    /// std::fs::write("clocks.json", serde_json::to_vec(&saved).unwrap()).unwrap();
    /// ```
    pub fn save<V: AsRawFd>(
        vm: &impl AsRawFd,
        vcpus: &[Vcpu<'_, V>],
        host: &HostId,
    ) -> Result<Self, Error> {
        let first = vcpus.first().ok_or(Error::NoVcpus)?;
        let tsc_khz = tsc_khz(first.fd).map_err(Error::of("KVM_GET_TSC_KHZ"))?;
        let (clock, rebuilt_ns) = if clock_guest_cap(vm) & CAP_EXACT != 0 {
            let clock = get_vm_clock_guest_or_fall_back(vm);
            (clock.map_err(Error::of("KVM_GET_VM_CLOCK_GUEST"))?, None)
        } else {
            let clock = legacy::get(vm, vcpus, tsc_khz)?;
            (clock, Some(legacy::REBUILT_RECORD_NS))
        };
        ensure_same_ids(&clock.vcpus, vcpus.iter().map(|vcpu| vcpu.id))?;
        Ok(Self {
            rebuilt_ns,
            ..Self::new(&clock, tsc_khz, host)
        })
    }

    /// The clocks that `KVM_GET_VM_CLOCK_GUEST` returned for a VM with a TSC rate of `tsc_khz` kHz
    /// on `host`.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use kvm_clock::{get_vm_clock_guest, HostId, SavedClocks};
    /// # use kvm_ioctls::Kvm;
    /// let vm = Kvm::new().unwrap().create_vm().unwrap();
    /// let vcpu = vm.create_vcpu(0).unwrap();
    /// let (clock, khz) = (get_vm_clock_guest(&vm).unwrap(), vcpu.get_tsc_khz().unwrap());
    /// let saved = SavedClocks::new(&clock, khz, &HostId::read().unwrap());
    /// assert_eq!(saved.clock().unwrap().vcpus, clock.vcpus);
    /// ```
    pub fn new(clock: &VmClock, tsc_khz: u32, host: &HostId) -> Self {
        Self {
            version: Self::VERSION,
            host: host.clone(),
            asleep_ns: asleep_since_boot_ns(),
            tsc_khz,
            rebuilt_ns: None,
            header: clock.header.as_bytes().to_vec(),
            vcpus: clock
                .vcpus
                .iter()
                .map(|vcpu| vcpu.as_bytes().to_vec())
                .collect(),
        }
    }

    /// The saved values, without the kernel's outputs and the caller's inputs: `status`,
    /// `rate_diff_hz`, `flags` and `mode` are 0, so that another kernel accepts them.
    ///
    /// # Errors
    ///
    /// [`Error::Foreign`], [`Error::Version`], [`Error::Truncated`], [`Error::NoVcpus`],
    /// [`Error::VcpuTwice`], [`Error::OtherVm`], [`Error::Invalid`].
    ///
    /// # Example
    ///
    /// ```
    /// use kvm_clock::{Error, SavedClocks};
    ///
    /// // Other data without an error of serde is refused here.
    /// let other: SavedClocks = serde_json::from_str(r#"{"boot_source": "vmlinux"}"#).unwrap();
    /// assert!(matches!(other.clock(), Err(Error::Foreign)));
    /// ```
    pub fn clock(&self) -> Result<VmClock, Error> {
        match self.version {
            Self::VERSION => (),
            0 => return Err(Error::Foreign),
            version => return Err(Error::Version(version)),
        }
        let header = VmClockGuest {
            size: 0,
            flags: 0,
            mode: 0,
            status: 0,
            nr_vcpus: 0,
            vcpus: 0,
            rate_diff_hz: 0,
            paused_ns: 0,
            ..prefix("the header", &self.header)?
        };
        let vcpus = self.vcpus.iter().map(|vcpu| prefix("a vCPU", vcpu));
        let clock = VmClock {
            header,
            vcpus: vcpus.collect::<Result<_, _>>()?,
        };
        check(&clock)?;
        Ok(clock)
    }

    /// The guest's TSC rate, kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// The host that saved the clocks.
    pub fn host(&self) -> &HostId {
        &self.host
    }

    pub(crate) fn asleep_ns(&self) -> i64 {
        self.asleep_ns
    }

    pub(crate) fn rebuilt_ns(&self) -> Option<u32> {
        self.rebuilt_ns
    }

    /// Sets the guest's TSC rate for vCPUs that are created in `vm` later, if this host can scale.
    ///
    /// # Errors
    ///
    /// Those of [`clock`](Self::clock); `EINVAL` of `KVM_SET_TSC_KHZ` if `vm` already has vCPUs, or
    /// the hardware cannot scale by so much. `vm` is as before.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use kvm_clock::SavedClocks;
    /// # use kvm_ioctls::Kvm;
    /// let json = std::fs::read("clocks.json").unwrap();
    /// let saved: SavedClocks = serde_json::from_slice(&json).unwrap();
    /// let vm = Kvm::new().unwrap().create_vm().unwrap();
    /// saved.prepare(&vm).unwrap();
    /// let vcpu = vm.create_vcpu(0).unwrap();
    /// ```
    pub fn prepare(&self, vm: &impl AsRawFd) -> Result<Prepared, Error> {
        const KVM_CAP_TSC_CONTROL: u32 = 60;
        const KVM_CAP_VM_TSC_CONTROL: u32 = 214;

        self.clock()?;
        let caps = [KVM_CAP_TSC_CONTROL, KVM_CAP_VM_TSC_CONTROL];
        let can_scale = caps.iter().all(|&cap| check_extension(vm, cap) != 0);
        let khz = tsc_khz(vm).map_err(Error::of("KVM_GET_TSC_KHZ"))?;
        // Without scaling, KVM would imitate a faster TSC, and refuse a slower one, unless it does
        // not care about the difference. Also then the guest keeps its own rate from host to host.
        let diff = u64::from(khz.abs_diff(self.tsc_khz));
        let is_close = diff * 1_000_000 <= u64::from(khz) * u64::from(legacy::TOLERANCE_PPM);
        if !can_scale && !is_close {
            return Ok(Prepared::HostRate(khz));
        }
        set_tsc_khz(vm, self.tsc_khz).map_err(Error::of("KVM_SET_TSC_KHZ"))?;
        Ok(Prepared::Rate)
    }

    /// Restores the clocks in `vm`, whose vCPUs `vcpus` are all stopped: those that were saved, or
    /// new ones with the same IDs.
    ///
    /// Call it after everything that changes a TSC or kvmclock (registers and MSRs, including those
    /// of kvmclock, `KVM_SET_TSC_KHZ`, `KVM_SET_CLOCK`), and before what holds a point in the
    /// guest's time (`KVM_SET_LAPIC`, `MSR_IA32_TSC_DEADLINE`). Then, if the guest's watchdogs
    /// should know of the pause, call `KVM_KVMCLOCK_CTRL` for each vCPU.
    ///
    /// # Errors
    ///
    /// All of [`Error`]; the VM's clocks are as before.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use kvm_clock::{Policy, SavedClocks, Vcpu};
    /// # use kvm_ioctls::Kvm;
    /// let json = std::fs::read("clocks.json").unwrap();
    /// let saved: SavedClocks = serde_json::from_slice(&json).unwrap();
    /// let vm = Kvm::new().unwrap().create_vm().unwrap();
    /// saved.prepare(&vm).unwrap();
    /// let fds = [0, 1].map(|id| vm.create_vcpu(id).unwrap());
    /// // Restore memory, registers and MSRs.
    /// let outcome = saved.restore(&vm, &Vcpu::numbered(&fds), &Policy::default()).unwrap();
    /// println!("mode {}, lost: {:?}", outcome.mode.name(), outcome.lost);
    /// // Restore the LAPICs, then the TSC deadlines.
    /// ```
    pub fn restore<V: AsRawFd>(
        &self,
        vm: &impl AsRawFd,
        vcpus: &[Vcpu<'_, V>],
        policy: &Policy,
    ) -> Result<Outcome, Error> {
        restore::restore(self, vm, vcpus, policy)
    }
}

/// The structure at the beginning of `bytes`.
fn prefix<T: FromBytes>(part: &'static str, bytes: &[u8]) -> Result<T, Error> {
    match T::read_from_prefix(bytes) {
        Ok((value, _later_fields)) => Ok(value),
        Err(_) => Err(Error::Truncated {
            part,
            len: bytes.len(),
            least: size_of::<T>(),
        }),
    }
}

/// Finds what the kernel would call `EINVAL`.
fn check(clock: &VmClock) -> Result<(), Error> {
    let mut entries = clock.vcpus.clone();
    ensure_unique(&entries)?;
    let header = VmClockGuest {
        mode: MODE_EXACT,
        ..clock.header
    };
    let checked =
        SetRequest::new(header).and_then(|request| request.match_vcpus(&clock.vcpus, &mut entries));
    match checked {
        Ok(_) => Ok(()),
        Err(Invalid::Inconsistent) => Err(Error::OtherVm),
        Err(Invalid::Vcpus) if entries.is_empty() => Err(Error::NoVcpus),
        Err(Invalid::Vcpus) => Err(Error::VcpuMissing(clock.header.ref_vcpu_id)),
        Err(invalid) => Err(Error::Invalid(invalid)),
    }
}

fn ensure_unique(vcpus: &[ClockGuestVcpu]) -> Result<(), Error> {
    let mut ids: Vec<_> = vcpus.iter().map(|vcpu| vcpu.vcpu_id).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::VcpuTwice(pair[0])),
        None => Ok(()),
    }
}

/// Fails unless `present` are the IDs of `saved`, in any order.
pub(crate) fn ensure_same_ids(
    saved: &[ClockGuestVcpu],
    present: impl IntoIterator<Item = u32>,
) -> Result<(), Error> {
    let mut missing: Vec<_> = saved.iter().map(|vcpu| vcpu.vcpu_id).collect();
    missing.sort_unstable();
    for id in present {
        match missing.binary_search(&id) {
            Ok(at) => drop(missing.remove(at)),
            Err(_) if saved.iter().any(|vcpu| vcpu.vcpu_id == id) => {
                return Err(Error::VcpuTwice(id))
            }
            Err(_) => return Err(Error::VcpuAdded(id)),
        }
    }
    match missing.first() {
        Some(&id) => Err(Error::VcpuMissing(id)),
        None => Ok(()),
    }
}
