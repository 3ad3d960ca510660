// SPDX-License-Identifier: GPL-2.0-only

//! The ratio in KVM, in the attribute KVM_VCPU_TSC_SCALE and in GET, and the guest's readings.

use crate::{
    tsc::{ensure_on_function, excludes_host_rate, Tsc},
    Host, Rate, RATES,
};
use clockguest::host::Vendor;
use kvm_bindings::{kvm_device_attr, KVM_VCPU_TSC_CTRL};
use kvm_clock_guest_selftests::prelude::*;
use pvclock::abi::{VcpuTscScale, KVM_VCPU_TSC_SCALE};
use vmm_sys_util::{errno, ioctl::ioctl_with_ref};

/// Request numbers.
mod nr {
    use kvm_bindings::kvm_device_attr;
    use vmm_sys_util::ioctl_iow_nr;

    const KVMIO: u32 = 0xae;

    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
}

/// How long it may take until a guest's TSC differs measurably from one at the host's rate.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = Vec::new();
    for rate in RATES {
        cases.extend([
            Case::new(format!("ratio as KVM computes it, {}", rate.name), |host| {
                ratio(host, rate)
            }),
            Case::new(
                format!("the guest's RDTSC is the scaled TSC, {}", rate.name),
                |host| readings(host, rate),
            ),
        ]);
    }
    cases.push(Case::new(
        "KVM_VCPU_TSC_SCALE is read-only, and not written to address 0",
        refused,
    ));
    cases
}

/// Attribute and header have the ratio of the rates.
fn ratio(host: &Host, rate: &Rate) -> Result<()> {
    let frac_bits = Vendor::loaded()
        .context("neither kvm_amd nor kvm_intel is loaded")?
        .tsc_frac_bits();
    // CAST: Rates of a few GHz and 48 bits.
    let expected = ((u128::from(rate.khz(host)) << frac_bits) / u128::from(host.khz)) as u64;
    for vm in [rate.derived(host)?, rate.pinned(host)?] {
        let header = get(&vm)?.header;
        let reported = [header.tsc_ratio, header.tsc_frac_bits.into()];
        ensure!(
            reported == [expected, frac_bits.into()] && header.host_tsc_khz == host.khz,
            "GET reports {reported:x?} and host {} kHz, expected {expected:#x}, {frac_bits} bits and {} kHz",
            header.host_tsc_khz,
            host.khz
        );
        for index in 0..vm.vcpus().len() {
            let tsc = Tsc::of(&vm, index)?;
            ensure_eq_hex!(
                [tsc.scale.ratio(), tsc.scale.frac_bits().into()],
                reported,
                "vCPU {index}'s ratio and GET's"
            );
        }
    }
    Ok(())
}

fn readings(host: &Host, rate: &Rate) -> Result<()> {
    let vm = rate.pinned(host)?;
    let first = run_a_little(&vm)?;
    ensure_on_function(&vm, &first)?;
    let is_unscaled = Tsc::of(&vm, 0)?.is_unscaled();
    ensure!(
        is_unscaled == (rate.khz(host) == host.khz),
        "the ratio of {} kHz on a host of {} kHz is {:x?}",
        rate.khz(host),
        host.khz,
        Tsc::of(&vm, 0)?
    );
    let start = Instant::now();
    loop {
        let last = run_a_little(&vm)?;
        ensure_on_function(&vm, &last)?;
        match excludes_host_rate(&first, &last).context("no readings")? {
            true if is_unscaled => bail!("the guest's TSC does not run at the host's rate"),
            true => return Ok(()),
            // At the host's rate this long is enough.
            false if is_unscaled && start.elapsed() > Duration::from_millis(500) => return Ok(()),
            false => ensure!(
                start.elapsed() < PATIENCE,
                "after {PATIENCE:?} the guest's TSC could still be one at the host's rate"
            ),
        }
    }
}

fn refused(host: &Host) -> Result<()> {
    let scale = VcpuTscScale {
        tsc_ratio: 1 << 32,
        tsc_frac_bits: 32,
    };
    let vm = RATES[0].pinned(host)?;
    ensure_changes_nothing(&vm, |_| {
        let set = call(&vm, nr::KVM_SET_DEVICE_ATTR(), (&raw const scale).addr());
        ensure_errno(libc::EINVAL, set).context("SET")?;
        let get = call(&vm, nr::KVM_GET_DEVICE_ATTR(), 0);
        ensure_errno(libc::EFAULT, get).context("GET to address 0")
    })
}

/// SET of the attribute from `address`, or GET to it, which must not be writable then.
fn call(vm: &Vm, request: libc::c_ulong, address: usize) -> errno::Result<()> {
    let attr = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_SCALE,
        addr: address as u64,
        ..kvm_device_attr::default()
    };
    let fd = vm.vcpus()[0].fd();
    // SAFETY: SET reads no more than the 16 bytes there are at `address`, and GET finds none.
    let ret = unsafe { ioctl_with_ref(&*fd, request, &attr) };
    if ret < 0 {
        return errno::errno_result();
    }
    Ok(())
}
