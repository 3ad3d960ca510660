// SPDX-License-Identifier: GPL-2.0-only

//! The kernel's documented procedure: TSC offsets, and kvmclock tied to host TSC and REALTIME.
//!
//! The steps and names are those of `Documentation/virt/kvm/devices/vcpu.rst`, group
//! `KVM_VCPU_TSC_CTRL`.

use super::SavedClocks;
use crate::vmm::{error::Context, Error, Result, Vm};
use kvm_bindings::{kvm_clock_data, KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME};
use kvm_clock::set_tsc_offset;
use pvclock::counter::{HostTsc, TscOffset};
use serde::{Deserialize, Serialize};

/// The values that the source records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// tsc_src, guest_src and host_src.
    pub clock: kvm_clock_data,
    /// ofs_src.
    pub offsets: Vec<TscOffset>,
    /// freq, kHz.
    pub tsc_khz: u32,
}

impl SavedClocks for Saved {
    fn save(vm: &Vm) -> Result<Self> {
        // Steps 1 to 3.
        Ok(Self {
            clock: clock_of(vm)?,
            offsets: vm.tsc_offsets()?,
            tsc_khz: vm.tsc_khz()?,
        })
    }

    fn restore(&self, vm: &Vm) -> Result<()> {
        // Step 4.
        let clock = kvm_clock_data {
            clock: self.clock.clock,
            realtime: self.clock.realtime,
            flags: KVM_CLOCK_REALTIME,
            ..kvm_clock_data::default()
        };
        vm.fd().set_clock(&clock).context("KVM_SET_CLOCK")?;
        // Step 5.
        let here = clock_of(vm)?;
        // Steps 6 and 7.
        let shift = self.offset_shift(&here);
        for (vcpu, offset) in vm.vcpus().iter().zip(&self.offsets) {
            set_tsc_offset(&vcpu.fd(), offset.wrapping_add(shift))
                .context("KVM_VCPU_TSC_OFFSET")?;
        }
        Ok(())
    }
}

impl Saved {
    /// Converts `realtime` to the clock of a host whose `CLOCK_TAI` is `ahead_ns` ahead, and whose
    /// TAI - UTC is `tai_offset_there_s` instead of `tai_offset_s`.
    pub fn shift_realtime(&mut self, ahead_ns: i64, tai_offset_s: i32, tai_offset_there_s: i32) {
        const NSEC_PER_SEC: i64 = 1_000_000_000;
        let offset_ns = (i64::from(tai_offset_s) - i64::from(tai_offset_there_s)) * NSEC_PER_SEC;
        self.clock.realtime = self
            .clock
            .realtime
            .wrapping_add_signed(ahead_ns)
            .wrapping_add_signed(offset_ns);
    }

    /// ofs_dst - ofs_src, ticks mod 2^64: `-(guest_src - guest_dest) * freq + (tsc_src -
    /// tsc_dest)`.
    pub fn offset_shift(&self, here: &kvm_clock_data) -> u64 {
        let elapsed_ns = i128::from(here.clock) - i128::from(self.clock.clock);
        let elapsed_ticks = elapsed_ns * i128::from(self.tsc_khz) / 1_000_000;
        let domain_diff = HostTsc(self.clock.host_tsc).since(HostTsc(here.host_tsc));
        // CAST: TSC arithmetic is mod 2^64.
        (elapsed_ticks as u64).wrapping_add(domain_diff)
    }
}

/// `KVM_GET_CLOCK` with host TSC and REALTIME.
fn clock_of(vm: &Vm) -> Result<kvm_clock_data> {
    let clock = vm.fd().get_clock().context("KVM_GET_CLOCK")?;
    let needed = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    if clock.flags & needed != needed {
        return Err(Error::Missing(format!(
            "KVM_GET_CLOCK has flags {:#x}, the documented procedure needs {needed:#x}: the VM has \
             no master clock",
            clock.flags
        )));
    }
    Ok(clock)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(clock: u64, host_tsc: u64) -> kvm_clock_data {
        kvm_clock_data {
            clock,
            host_tsc,
            ..kvm_clock_data::default()
        }
    }

    #[test]
    fn same_host_same_rate_needs_no_shift() {
        let saved = Saved {
            clock: at(1_000, 5_000),
            offsets: vec![],
            tsc_khz: 2_000_000,
        };
        assert_eq!(saved.offset_shift(&at(11_000, 25_000)), 0);
    }

    #[test]
    fn another_host_tsc_is_compensated() {
        let saved = Saved {
            clock: at(1_000_000_000, 7_000_000_000),
            offsets: vec![],
            tsc_khz: 3_000_000,
        };
        // Two seconds later, on a host whose TSC has just started.
        let shift = saved.offset_shift(&at(3_000_000_000, 100));
        assert_eq!(shift, 6_000_000_000 + 7_000_000_000 - 100);
        // A clock that steps back moves the TSC back as well.
        let shift = saved.offset_shift(&at(999_999_000, 7_000_000_000));
        assert_eq!(shift, 3_000u64.wrapping_neg());
    }
}
