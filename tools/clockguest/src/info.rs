// SPDX-License-Identifier: GPL-2.0-only

//! The host's support for guest clocks.

use crate::{
    host::{self, module_loaded, Unavailable, Vendor},
    vmm::{self, error::Context, Vm},
};
use kvm_bindings::{kvm_clock_data, KVM_CLOCK_HOST_TSC};
use kvm_clock::{clock_guest_cap, tsc_scale};
use kvm_ioctls::{Cap, Kvm};
use pvclock::{abi, plan::knows_tai};
use serde::Serialize;
use std::fs;

/// The host's support for guest clocks; `None` where unknown.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// Release of the running kernel.
    pub kernel: String,
    /// `KVM_GET_API_VERSION`; `None` if `/dev/kvm` cannot be opened.
    pub kvm_api_version: Option<i32>,
    /// `kvm_amd` or `kvm_intel`, if loaded.
    pub kvm_vendor_module: Option<&'static str>,
    /// Whether the `kvm_clock_guest` module is loaded.
    pub kvm_clock_guest_loaded: bool,
    /// The names of the bits in `KVM_CAP_VM_CLOCK_GUEST`; empty without the module.
    pub clock_guest_cap: Vec<String>,
    /// The host's clocksource.
    pub clocksource: Option<String>,
    /// The default TSC rate of a VM, which is the host's, kHz.
    pub tsc_khz: Option<u32>,
    /// Whether the host can scale a guest's TSC to another rate.
    pub tsc_scaling: Option<bool>,
    /// The number of fraction bits in the scaling ratio, if the host scales.
    pub tsc_frac_bits: Option<u32>,
    /// Whether a VM has a master clock.
    pub master_clock: Option<bool>,
    /// TAI - UTC, s; `None` if it is not set in the kernel.
    pub tai_offset_s: Option<i32>,
    /// Why a value above is missing.
    pub problem: Option<String>,
}

/// Properties that need a VM to find out.
struct ByVm {
    cap: u32,
    tsc_khz: u32,
    frac_bits: Option<u32>,
    master_clock: bool,
}

impl Info {
    /// Queries this host.
    pub fn gather(any_kvm: bool) -> Self {
        let mut info = Self {
            kernel: read_line("/proc/sys/kernel/osrelease").unwrap_or_default(),
            kvm_api_version: None,
            kvm_vendor_module: Vendor::loaded().map(Vendor::module),
            kvm_clock_guest_loaded: module_loaded("kvm_clock_guest"),
            clock_guest_cap: Vec::new(),
            clocksource: read_line(
                "/sys/devices/system/clocksource/clocksource0/current_clocksource",
            ),
            tsc_khz: None,
            tsc_scaling: None,
            tsc_frac_bits: None,
            master_clock: None,
            tai_offset_s: tai_offset_s(),
            problem: None,
        };
        if let Err(problem) = info.ask_kvm(any_kvm) {
            info.problem = Some(problem.to_string());
        }
        info
    }

    fn ask_kvm(&mut self, any_kvm: bool) -> anyhow::Result<()> {
        let kvm = Kvm::new().map_err(Unavailable::NoKvm)?;
        self.kvm_api_version = Some(kvm.get_api_version());
        if !any_kvm && Vendor::loaded().is_none() {
            return Err(Unavailable::NotVendorKvm.into());
        }
        let scaling = kvm.check_extension(Cap::TscControl);
        let by_vm = ByVm::ask(&kvm)?;
        self.clock_guest_cap = cap_names(by_vm.cap);
        self.tsc_khz = Some(by_vm.tsc_khz);
        self.tsc_scaling = Some(scaling);
        // Without the attribute, the vendor determines it.
        self.tsc_frac_bits = by_vm
            .frac_bits
            .or_else(|| Vendor::loaded().map(Vendor::tsc_frac_bits))
            .filter(|&bits| scaling && bits != 0);
        self.master_clock = Some(by_vm.master_clock);
        Ok(())
    }

    /// A line per property.
    pub fn to_text(&self) -> String {
        let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "unknown".into());
        let yes_no = |value: bool| if value { "yes" } else { "no" }.to_owned();
        let version = |version| format!("API version {version}");
        let vendor = self.kvm_vendor_module;
        let scaling = match (self.tsc_scaling, self.tsc_frac_bits) {
            (Some(true), Some(bits)) => format!("yes, {bits} fraction bits"),
            (scaling, _) => or_unknown(scaling.map(yes_no)),
        };
        let tai = |offset| format!("{offset} s");
        let mut text = String::new();
        let mut line = |name: &str, value: String| text += &format!("{name:24}{value}\n");
        line("kernel", self.kernel.clone());
        line(
            "/dev/kvm",
            self.kvm_api_version
                .map_or("cannot be opened".into(), version),
        );
        line(
            "KVM module",
            vendor.unwrap_or("neither kvm_amd nor kvm_intel").into(),
        );
        line(
            "kvm_clock_guest",
            if self.kvm_clock_guest_loaded {
                "loaded"
            } else {
                "not loaded"
            }
            .into(),
        );
        line(
            "KVM_CAP_VM_CLOCK_GUEST",
            match self.clock_guest_cap.as_slice() {
                [] => "0".into(),
                names => names.join(", "),
            },
        );
        line("clocksource", or_unknown(self.clocksource.clone()));
        line(
            "TSC rate",
            or_unknown(self.tsc_khz.map(|khz| format!("{khz} kHz"))),
        );
        line("TSC scaling", scaling);
        line("master clock", or_unknown(self.master_clock.map(yes_no)));
        line(
            "TAI - UTC",
            self.tai_offset_s
                .map_or("not set in the kernel".into(), tai),
        );
        text
    }
}

impl ByVm {
    fn ask(kvm: &Kvm) -> vmm::Result<Self> {
        let vm = Vm::empty(kvm, 1)?;
        // A new VM has no master clock before its first KVM_RUN or KVM_SET_CLOCK.
        vm.fd()
            .set_clock(&kvm_clock_data::default())
            .context("KVM_SET_CLOCK")?;
        let clock = vm.fd().get_clock().context("KVM_GET_CLOCK")?;
        let scale = tsc_scale(&vm.vcpus()[0].fd());
        Ok(Self {
            cap: clock_guest_cap(vm.fd()),
            tsc_khz: vm.tsc_khz()?,
            frac_bits: scale
                .ok()
                .and_then(|scale| u32::try_from(scale.tsc_frac_bits).ok()),
            master_clock: clock.flags & KVM_CLOCK_HOST_TSC != 0,
        })
    }
}

fn cap_names(cap: u32) -> Vec<String> {
    let known = [
        (abi::CAP_EXACT, "exact"),
        (abi::CAP_ADVANCE, "advance"),
        (abi::CAP_FREEZE, "freeze"),
        (abi::CAP_FALLBACK, "fallback"),
        (abi::CAP_VCPU, "vcpu"),
        (abi::CAP_RESLOPE, "reslope"),
        (abi::CAP_STEAL, "steal"),
    ];
    let mut names = Vec::new();
    let mut rest = cap;
    for (bit, name) in known {
        if cap & bit != 0 {
            names.push(name.to_owned());
            rest &= !bit;
        }
    }
    if rest != 0 {
        names.push(format!("{rest:#x}"));
    }
    names
}

pub(crate) fn read_line(path: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

/// TAI - UTC (s), if it is set in the kernel.
fn tai_offset_s() -> Option<i32> {
    host::tai_offset_s()
        .ok()
        .filter(|&offset| knows_tai(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_bits_have_names() {
        assert!(cap_names(0).is_empty());
        assert_eq!(cap_names(0b111), ["exact", "advance", "freeze"]);
        assert_eq!(cap_names(0b11000), ["fallback", "vcpu"]);
        assert_eq!(cap_names(0b110_0000), ["reslope", "steal"]);
        assert_eq!(cap_names(0b1000_0001), ["exact", "0x80"]);
    }
}
