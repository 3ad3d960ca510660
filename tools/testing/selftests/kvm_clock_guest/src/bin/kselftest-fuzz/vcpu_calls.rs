// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_GET_CLOCK_GUEST`, `KVM_SET_CLOCK_GUEST`, and the attributes of `KVM_VCPU_TSC_CTRL`.

use crate::{
    arena::HEADER,
    expected::Expected,
    extremes::{any32, any64, one_in, pick, Rng},
    fixture::ioctl,
    fuzz::Fuzz,
    model,
    outcome::ensure_same_function,
    plan,
    records::record_for,
    state::State,
};
use kvm_bindings::{kvm_device_attr, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET};
use kvm_clock_guest_selftests::prelude::*;
use pvclock::abi::{KVM_GET_CLOCK_GUEST, KVM_SET_CLOCK_GUEST, KVM_VCPU_TSC_SCALE};
use rand::Rng as _;
use zerocopy::{FromBytes, IntoBytes};

const LEN: usize = size_of::<ClockGuest>();
const ATTR_LEN: usize = size_of::<kvm_device_attr>();

const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;
const KVM_GET_DEVICE_ATTR: u32 = 0x4018_aee2;
const KVM_HAS_DEVICE_ATTR: u32 = 0x4018_aee3;

type Mutation = fn(&mut ClockGuest, &mut Rng);

/// Mutations of a record.
const MUTATIONS: &[Mutation] = &[
    |r, rng| r.pad0 = any32(rng),
    |r, rng| r.pad[rng.random_range(0..2)] = rng.random(),
    |r, rng| r.tsc_to_system_mul = pick(rng, &[0, 1, (1 << 31) - 1, 1 << 31, u32::MAX]),
    |r, rng| r.tsc_to_system_mul = any32(rng),
    |r, rng| {
        let by = rng.random_range(-1000..=1000);
        r.tsc_to_system_mul = r.tsc_to_system_mul.wrapping_add_signed(by);
    },
    |r, rng| r.tsc_shift = rng.random(),
    |r, rng| r.tsc_shift = pick(rng, &[-128, -32, -31, 31, 32, 64, 127]),
    |r, rng| r.tsc_timestamp = GuestTsc(any64(rng)),
    |r, rng| r.tsc_timestamp = r.tsc_timestamp.wrapping_add(any64(rng)),
];

fn place(fuzz: &mut Fuzz<'_>, len: usize) -> u64 {
    if one_in(&mut fuzz.rng, 8) {
        fuzz.arena.wrong_place(&mut fuzz.rng, len)
    } else {
        fuzz.arena.place(&mut fuzz.rng, HEADER, len)
    }
}

/// A GET through a vCPU.
pub(crate) fn get(fuzz: &mut Fuzz<'_>) -> Result<()> {
    let index = fuzz.rng.random_range(0..fuzz.fixture.vcpus());
    let at = place(fuzz, LEN);
    let expected = model::get_record(&fuzz.arena, at, &fuzz.state);
    let offset = fuzz.arena.offset(at);
    let before = offset.map(|offset| fuzz.arena.read(offset, LEN + 8));
    let result = ioctl(fuzz.fixture.fds()[index], KVM_GET_CLOCK_GUEST, at);
    fuzz.count("KVM_GET_CLOCK_GUEST", result);
    let context = || format!("vCPU {index}, record at {at:#x}");
    expected.check(result).with_context(context)?;
    fuzz.ensure_unchanged().with_context(context)?;
    let (Some(offset), Some(before)) = (offset, before) else {
        return Ok(());
    };
    let now = fuzz.arena.read(offset, LEN + 8);
    match result {
        Ok(_) => {
            let reported = ClockGuest::read_from_bytes(&now[..LEN])
                .ok()
                .context("no record")?;
            let present = fuzz.state.record(index);
            // Until KVM has a master clock, GET derives the record at its own anchor.
            let is_like = fuzz.state.is_derived() && fuzz.state.is_like(&reported);
            ensure!(
                reported == present || is_like,
                "GET reported {reported:x?}, expected {present:x?}"
            );
            ensure!(
                now[LEN..] == before[LEN..],
                "more than a record was written"
            );
        }
        Err(libc::EFAULT) => (),
        Err(_) => ensure!(now == before, "the record was written to"),
    }
    Ok(())
}

/// A SET through a vCPU; with `keep`, one that does not change the function.
pub(crate) fn set(fuzz: &mut Fuzz<'_>, keep: bool) -> Result<()> {
    let index = fuzz.rng.random_range(0..fuzz.fixture.vcpus());
    let mut record = match keep {
        true => ClockGuest {
            version: any32(&mut fuzz.rng),
            // CAST: any bits.
            flags: any32(&mut fuzz.rng) as u8,
            ..fuzz.state.record(index)
        },
        false => record_for(&mut fuzz.rng, &fuzz.state, index),
    };
    if fuzz.only_failures || one_in(&mut fuzz.rng, 2) {
        pick(&mut fuzz.rng, MUTATIONS)(&mut record, &mut fuzz.rng);
    }
    let at = place(fuzz, LEN);
    set_as(fuzz, index, &record, at, keep)
        .with_context(|| format!("vCPU {index}, record at {at:#x}: {record:x?}"))
}

/// SET of `record` at address `at`, through vCPU `index`.
pub(crate) fn set_as(
    fuzz: &mut Fuzz<'_>,
    index: usize,
    record: &ClockGuest,
    at: u64,
    keep: bool,
) -> Result<()> {
    if let Some(offset) = fuzz.arena.offset(at) {
        fuzz.arena.write(offset, record.as_bytes());
    }
    let (expected, given) = model::set_record(&fuzz.arena, at, &fuzz.state);
    let expected = |states: [&State; 2]| {
        let mut expected = expected.clone();
        if let Some(given) = &given {
            plan::plan_record(&mut expected, given, states, index);
        }
        expected
    };
    let present = function(fuzz.state.record(index));
    let changes = given.is_some_and(|given| function(given) != present);
    if (fuzz.only_failures || keep && changes) && !expected([&fuzz.state; 2]).must_fail() {
        return Ok(());
    }
    let result = ioctl(fuzz.fixture.fds()[index], KVM_SET_CLOCK_GUEST, at);
    fuzz.count("KVM_SET_CLOCK_GUEST", result);
    let was = fuzz.check(result, expected)?;
    if let (Some(was), Some(given)) = (was, &given) {
        ensure!(fuzz.state.is_pinned(), "no record is pinned");
        ensure_eq_hex!(fuzz.state.offsets, was.offsets, "TSC offsets");
        ensure_same_function(given, &fuzz.state.record(index))?;
    }
    if let (Some(offset), Some(given)) = (fuzz.arena.offset(at), given) {
        let now = fuzz.arena.read(offset, LEN);
        ensure!(now == given.as_bytes(), "the record was written to");
    }
    Ok(())
}

/// Queries, reads or writes an attribute of a stopped vCPU.
pub(crate) fn attribute(fuzz: &mut Fuzz<'_>) -> Result<()> {
    let stopped = (0..fuzz.fixture.vcpus()).filter(|&index| !fuzz.fixture.is_running(index));
    let stopped: Vec<_> = stopped.collect();
    if stopped.is_empty() {
        return Ok(());
    }
    let rng = &mut fuzz.rng;
    let index = pick(rng, &stopped);
    let (request, name) = pick(
        rng,
        &[
            (KVM_HAS_DEVICE_ATTR, "KVM_HAS_DEVICE_ATTR"),
            (KVM_GET_DEVICE_ATTR, "KVM_GET_DEVICE_ATTR"),
            (KVM_SET_DEVICE_ATTR, "KVM_SET_DEVICE_ATTR"),
        ],
    );
    let mut attr = kvm_device_attr {
        flags: any32(rng),
        group: KVM_VCPU_TSC_CTRL,
        attr: pick(
            rng,
            &[
                KVM_VCPU_TSC_SCALE,
                KVM_VCPU_TSC_SCALE,
                KVM_VCPU_TSC_OFFSET.into(),
            ],
        ),
        addr: 0,
    };
    if one_in(rng, 4) {
        (attr.group, attr.attr) = (any32(rng), any64(rng));
    }
    attr.addr = place(fuzz, 16);
    // SET of the offset would succeed.
    if request == KVM_SET_DEVICE_ATTR && (attr.group, attr.attr) == (KVM_VCPU_TSC_CTRL, 0) {
        attr.attr = KVM_VCPU_TSC_SCALE;
    }
    let at = place(fuzz, ATTR_LEN);
    attribute_as(fuzz, index, (request, name), &attr, at)
        .with_context(|| format!("{name} of vCPU {index} at {at:#x}: {attr:x?}"))
}

fn attribute_as(
    fuzz: &mut Fuzz<'_>,
    index: usize,
    (request, name): (u32, &'static str),
    attr: &kvm_device_attr,
    at: u64,
) -> Result<()> {
    let value = fuzz.arena.offset(attr.addr);
    let bytes: [u8; ATTR_LEN] = attr_bytes(attr);
    if let Some(offset) = value {
        fuzz.arena.write(offset, &[0x5a; 16]);
    }
    if let Some(offset) = fuzz.arena.offset(at) {
        fuzz.arena.write(offset, &bytes);
    }
    let scaling = fuzz.state.ratio().map_or(fuzz.scales, |ratio| ratio.0 != 0);
    let mut expected = Expected::default();
    expected.must(libc::EFAULT, !fuzz.arena.is_readable(at, ATTR_LEN));
    let len = match (attr.group, attr.attr) {
        (KVM_VCPU_TSC_CTRL, 0) => 8,
        (KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_SCALE) if scaling => 16,
        _ => 0,
    };
    expected.must(libc::ENXIO, len == 0);
    expected.must(libc::EINVAL, len == 16 && request == KVM_SET_DEVICE_ATTR);
    let is_get = request == KVM_GET_DEVICE_ATTR;
    expected.must(
        libc::EFAULT,
        is_get && !fuzz.arena.is_writable(attr.addr, len),
    );

    let result = ioctl(fuzz.fixture.fds()[index], request, at);
    fuzz.count(name, result);
    expected.check(result)?;
    fuzz.ensure_unchanged()?;
    let was = &fuzz.state;
    let reported = value
        .map(|offset| fuzz.arena.read(offset, 16))
        .unwrap_or_default();
    match (result, len) {
        (Ok(_), 8) if is_get => {
            let offset = was.offsets[index];
            ensure!(
                reported[..8] == offset.0.to_ne_bytes(),
                "reported {reported:x?}, offset {offset:#x}"
            );
        }
        (Ok(_), 16) if is_get => {
            let ratio: Option<[u64; 2]> = was.ratio().map(|(ratio, bits)| [ratio, bits.into()]);
            ensure!(
                ratio.is_none_or(|ratio| reported == ratio.as_bytes()),
                "reported {reported:x?}, the ratio is {ratio:x?}"
            );
        }
        _ => (),
    }
    Ok(())
}

fn attr_bytes(attr: &kvm_device_attr) -> [u8; ATTR_LEN] {
    let mut bytes = [0; ATTR_LEN];
    bytes[..4].copy_from_slice(&attr.flags.to_ne_bytes());
    bytes[4..8].copy_from_slice(&attr.group.to_ne_bytes());
    bytes[8..16].copy_from_slice(&attr.attr.to_ne_bytes());
    bytes[16..].copy_from_slice(&attr.addr.to_ne_bytes());
    bytes
}
