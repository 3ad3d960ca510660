// SPDX-License-Identifier: GPL-2.0-only

//! Each errno with each of its causes, and arguments just inside the limits.
//!
//! `EBUSY` needs a host with an unknown TSC rate, which a test cannot set up; kselftest-errno tests
//! `EOPNOTSUPP`.

use crate::{
    edge::Edge,
    get,
    list::{
        get_clock_guest, ioctl, set_clock_guest, TimeInfo, KVM_GET_CLOCK_GUEST, KVM_SET_CLOCK_GUEST,
    },
    record, set, Host, VCPUS,
};
use kvm_clock_guest_selftests::{clocksource::WithoutTsc, prelude::*};
use std::io;
use zerocopy::IntoBytes;

/// The lowest address of the kernel's half.
const KERNEL_HALF: usize = 0xffff_8000_0000_0000;

type Edit = fn(&mut TimeInfo);

/// Malformed records.
const MALFORMED: &[(&str, Edit)] = &[
    ("pad0", |i| i.pad0 = 1),
    ("pad[0]", |i| i.pad = [1, 0]),
    ("pad[1]", |i| i.pad = [0, 1]),
    ("mul 0", |i| i.tsc_to_system_mul = 0),
    ("mul 1", |i| i.tsc_to_system_mul = 1),
    ("mul 2^31 - 1", |i| i.tsc_to_system_mul = (1 << 31) - 1),
    ("half of mul", |i| {
        i.tsc_to_system_mul >>= 1;
        i.tsc_shift += 1;
    }),
    ("shift 32", |i| i.tsc_shift = 32),
    ("shift -32", |i| i.tsc_shift = -32),
    ("shift 127", |i| i.tsc_shift = i8::MAX),
    ("shift -128", |i| i.tsc_shift = i8::MIN),
];

/// Rates far from any vCPU's.
const OTHER_RATES: &[(&str, Edit)] = &[
    ("mul 2^32 - 1", |i| i.tsc_to_system_mul = u32::MAX),
    ("shift 31", |i| i.tsc_shift = 31),
    ("shift -31", |i| i.tsc_shift = -31),
    ("twice the rate", |i| i.tsc_shift -= 1),
    ("half the rate", |i| i.tsc_shift += 1),
    ("mul 2^31, shift -31", |i| {
        (i.tsc_to_system_mul, i.tsc_shift) = (1 << 31, -31);
    }),
];

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = Vec::new();
    for (errno, name, table) in [
        (libc::EINVAL, "EINVAL", MALFORMED),
        (libc::ERANGE, "ERANGE", OTHER_RATES),
    ] {
        for &(what, edit) in table {
            cases.push(Case::new(
                format!("{name} SET: {what}"),
                move |host: &Host| edited(host, errno, edit),
            ));
        }
    }
    cases.extend([
        Case::new("EINVAL SET: tsc_timestamp ahead of the vCPU's TSC", ahead),
        Case::new("EFAULT SET: record not accessible", unreadable),
        Case::new("EFAULT GET: record not accessible", unwritable),
        Case::new(
            "ENODATA GET and SET: host clocksource is not the TSC",
            no_tsc,
        ),
        Case::new("EINVAL: unknown vCPU ioctls", unknown),
    ]);
    cases
}

pub(crate) fn ensure_errno(errno: i32, result: io::Result<()>) -> Result<()> {
    let expected = io::Error::from_raw_os_error(errno);
    match result {
        Ok(()) => bail!("the call succeeded, expected {expected}"),
        Err(e) if e.raw_os_error() != Some(errno) => {
            bail!("the call failed with {e}, expected {expected}")
        }
        Err(_) => Ok(()),
    }
}

/// Fails unless SET of `info` through every vCPU of the stopped `vm` fails with `errno`, and
/// changes nothing.
pub(crate) fn ensure_refused(vm: &Vm, errno: i32, info: &TimeInfo) -> Result<()> {
    let before = Clocks::of(vm)?;
    for vcpu in vm.vcpus() {
        ensure_errno(errno, set_clock_guest(&*vcpu.fd(), info))
            .with_context(|| format!("vCPU {}, {info:x?}", vcpu.index()))?;
    }
    before.ensure_unchanged(vm)
}

/// Fails unless SET of `info` through vCPU 0 succeeds, and the guest has it then.
pub(crate) fn ensure_accepted(vm: &Vm, info: &TimeInfo) -> Result<()> {
    set(vm, 0, info)?;
    run_a_little(vm)?;
    let (reported, page) = (record(&get(vm, 0)?), pages(vm)[0]);
    ensure!(
        reported == page && function(page) == function(record(info)),
        "GET reports {reported:x?}, the guest has {page:x?}, set was {info:x?}"
    );
    Ok(())
}

/// SET of GET's result after `edit`.
fn edited(host: &Host, errno: i32, edit: Edit) -> Result<()> {
    for vm in &host.vms {
        let mut info = get(vm, 0)?;
        edit(&mut info);
        // A difference that would be visible if SET succeeded.
        info.system_time ^= 1 << 40;
        ensure_refused(vm, errno, &info)?;
    }
    Ok(())
}

/// A guest cannot read a record from the future: the ticks since `tsc_timestamp` are unsigned.
fn ahead(host: &Host) -> Result<()> {
    let vm = derived(&host.kvm, VCPUS)?;
    let now = get(&vm, 0)?;
    let guest_tsc = || -> Result<GuestTsc> {
        let host_tsc = rdtsc_ordered();
        Ok(GuestTsc(host_tsc.0).wrapping_add(vm.tsc_offsets()?[0].0))
    };
    let hour = u64::from(vm.tsc_khz()?) * 3_600_000;
    for ticks in [hour, 1 << 62, (1 << 63) - 1_000 * hour] {
        let info = TimeInfo {
            tsc_timestamp: guest_tsc()?.wrapping_add(ticks).0,
            ..now
        };
        ensure_refused(&vm, libc::EINVAL, &info).with_context(|| format!("{ticks} ahead"))?;
    }
    // The TSC has this value at the time of the call, or had it long before.
    for ticks in [0, hour, (1 << 63) - 1_000 * hour] {
        let info = TimeInfo {
            tsc_timestamp: guest_tsc()?.wrapping_sub(ticks).0,
            ..now
        };
        ensure_accepted(&vm, &info).with_context(|| format!("{ticks} behind"))?;
    }
    Ok(())
}

/// Address 0, the kernel's half, and records that end beyond the accessible page; a record that
/// ends with the page succeeds.
fn unreadable(host: &Host) -> Result<()> {
    for vm in &host.vms {
        let before = Clocks::of(vm)?;
        let edge = Edge::new()?;
        let info = get(vm, 0)?;
        let bytes = record(&info);
        let set = |address| {
            // SAFETY: KVM only reads it.
            unsafe { ioctl(&*vm.vcpus()[0].fd(), KVM_SET_CLOCK_GUEST, address) }
        };
        for address in [0, KERNEL_HALF, usize::MAX] {
            ensure_errno(libc::EFAULT, set(address)).with_context(|| format!("{address:#x}"))?;
        }
        for accessible in [0, 1, 8, 16, 31] {
            let address = edge.put(bytes.as_bytes(), accessible);
            ensure_errno(libc::EFAULT, set(address))
                .with_context(|| format!("{accessible} bytes accessible"))?;
        }
        before.ensure_unchanged(vm)?;
        let address = edge.put(bytes.as_bytes(), 32);
        edge.write_protect()?;
        set(address).context("32 bytes accessible, read-only")?;
        before.as_pinned().ensure_unchanged(vm)?;
    }
    Ok(())
}

fn unwritable(host: &Host) -> Result<()> {
    for vm in &host.vms {
        let before = Clocks::of(vm)?;
        let edge = Edge::new()?;
        let get = |address| {
            // SAFETY: No reference exists to the edge's page, the only memory that KVM can write to
            // there. The other addresses give EFAULT.
            unsafe { ioctl(&*vm.vcpus()[0].fd(), KVM_GET_CLOCK_GUEST, address) }
        };
        for address in [0, KERNEL_HALF, usize::MAX] {
            ensure_errno(libc::EFAULT, get(address)).with_context(|| format!("{address:#x}"))?;
        }
        for accessible in [0, 1, 8, 16, 31] {
            ensure_errno(libc::EFAULT, get(edge.put(&[], accessible)))
                .with_context(|| format!("{accessible} bytes accessible"))?;
        }
        get(edge.put(&[], 32)).context("32 bytes accessible")?;
        edge.write_protect()?;
        ensure_errno(libc::EFAULT, get(edge.put(&[], 32))).context("read-only")?;
        before.ensure_unchanged(vm)?;
    }
    Ok(())
}

/// Before and after KVM can notice the new clocksource.
fn no_tsc(host: &Host) -> Result<()> {
    for vm in &[derived(&host.kvm, VCPUS)?, pinned(&host.kvm, VCPUS)?] {
        let mut info = get(vm, 0)?;
        info.system_time ^= 1 << 40;
        let offsets = vm.tsc_offsets()?;
        let _until_checked = WithoutTsc::switch(&host.other_clocksource)?;
        for _ in 0..2 {
            let before = pages(vm);
            for vcpu in vm.vcpus() {
                ensure_errno(libc::ENODATA, get_clock_guest(&*vcpu.fd()).map(drop))
                    .context("GET")?;
                ensure_errno(libc::ENODATA, set_clock_guest(&*vcpu.fd(), &info)).context("SET")?;
            }
            let after = (pages(vm), vm.tsc_offsets()?);
            ensure_eq_hex!(after, (before, offsets.clone()), "records and offsets");
            for vcpu in run_a_little(vm)?.vcpus {
                ensure!(
                    vcpu.record.system_time >> 39 == 0,
                    "the refused record reached the guest: {:x?}",
                    vcpu.record
                );
            }
        }
    }
    Ok(())
}

/// Neighbours of the two numbers, and the two numbers with another size or direction.
fn unknown(host: &Host) -> Result<()> {
    const UNKNOWN: [u64; 8] = [
        0x4020_aed5,
        0x8020_aed8,
        0x8020_aed6,
        0x4020_aed7,
        0xc020_aed7,
        0x8028_aed7,
        0x4018_aed6,
        0x0000_aed7,
    ];
    let vm = &host.vms[0];
    let before = Clocks::of(vm)?;
    for request in UNKNOWN {
        let mut info = get(vm, 0)?;
        let address = (&raw mut info).expose_provenance();
        // SAFETY: An unknown ioctl accesses no memory.
        let result = unsafe { ioctl(&*vm.vcpus()[0].fd(), request, address) };
        ensure_errno(libc::EINVAL, result).with_context(|| format!("request {request:#x}"))?;
    }
    before.ensure_unchanged(vm)
}
