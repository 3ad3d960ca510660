// SPDX-License-Identifier: GPL-2.0-only

//! Mode exact after a live update: the same counter, for which KVM computes another ratio.

use crate::{exact::ensure_pinned, Host, Rate, RATES, VCPUS};
use kvm_clock::tsc_scale;
use kvm_clock_guest_selftests::prelude::*;
use pvclock::tsc::Scale;

/// Fraction bits of SVM's ratio, and its total bits; the others are reserved.
const SVM_BITS: (u32, u32) = (32, 40);

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases: Vec<_> = RATES
        .iter()
        .map(|rate| {
            Case::new(
                format!("exact after another calibration, {}", rate.name),
                move |host| recalibrated(host, rate),
            )
        })
        .collect();
    cases.push(Case::new(
        "exact refuses a ratio that the hardware does not have",
        beyond_hardware,
    ));
    cases
}

/// KVM computes a ratio from the requested rate and the one that the host calibrated. Here the
/// former changes, as the latter would after a live update.
fn recalibrated(host: &Host, rate: &Rate) -> Result<()> {
    let mut vm = rate.derived(host)?;
    let before = Clocks::of(&vm)?;
    let ratio = get(&vm)?.header.tsc_ratio;
    for ppm in [7, -7, 100, -100] {
        let (state, mut clock) = (vm.save()?, get(&vm)?);
        drop(vm);
        // At least a kHz, which is 10 ppm of the slowest.
        let change = match i64::from(rate.khz(host)) * ppm / 1_000_000 {
            0 => ppm.signum(),
            khz => khz,
        };
        // CAST: A few kHz.
        let khz = rate.khz(host).wrapping_add_signed(change as i32);
        vm = Vm::empty_at_rate(&host.kvm, VCPUS, khz)?;
        vm.load(&state)?;
        let made = get(&vm)?.header.tsc_ratio;
        ensure!(
            (made == ratio) == (rate.khz(host) == host.khz),
            "KVM scales by {made:#x} for {khz} kHz and by {ratio:#x} for {} kHz",
            rate.khz(host)
        );
        set(&vm, &mut clock, MODE_EXACT)?;
        let when = format!("after {ppm} ppm");
        ensure_pinned(&vm, &before, &when)?;
        for vcpu in vm.vcpus() {
            let scale = tsc_scale(&vcpu.fd()).context("KVM_VCPU_TSC_SCALE")?;
            ensure_eq_hex!(
                scale.tsc_ratio,
                ratio,
                "{when}, the ratio of vCPU {}",
                vcpu.index()
            );
        }
    }
    Ok(())
}

/// A ratio one above the largest, SET in a VM whose own is almost as large.
fn beyond_hardware(host: &Host) -> Result<()> {
    let (frac_bits, bits) = SVM_BITS;
    if get(&Vm::at_rate(&host.kvm, 1, host.khz)?)?
        .header
        .tsc_frac_bits
        != frac_bits
    {
        note!("VMX takes any ratio that 64 bits can hold");
        return Ok(());
    }
    let limit = 1u64 << bits;
    let nearly = limit - (limit >> 14);
    // CAST: Some 10^8 kHz; KVM has 31 bits for them.
    let khz = ((u128::from(nearly) * u128::from(host.khz)) >> frac_bits) as u32;
    let vm = Vm::at_rate(&host.kvm, VCPUS, khz)?;
    run_a_little(&vm)?;
    let mut clock = get(&vm)?;
    let header = &mut clock.header;
    let transform = TscTransform {
        scale: Scale::new(limit, frac_bits).context("no ratio")?,
        offset: clock.vcpus[0].tsc_offset,
    };
    ensure!(
        header.tsc_ratio < limit && header.tsc_ratio > limit - (limit >> 13),
        "KVM scales by {:#x} for {khz} kHz",
        header.tsc_ratio
    );
    header.tsc_ratio = limit;
    header.guest_tsc = transform.guest_tsc(header.host_tsc);
    header.kvmclock_ns = header.record.kvmclock_ns(header.guest_tsc);
    header.mode = MODE_EXACT;
    ensure_refused(&vm, libc::ERANGE, |fd| set_vm_clock_guest(fd, &mut clock))
}
