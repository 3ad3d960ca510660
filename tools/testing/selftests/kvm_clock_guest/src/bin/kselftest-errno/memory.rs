// SPDX-License-Identifier: GPL-2.0-only

//! `EINVAL`, `E2BIG` and `EFAULT` for the size and the address of the payload.

use crate::Host;
use kvm_clock_guest_selftests::{
    fixture::unlike,
    payload::{Payload, PAGE},
    prelude::*,
};

/// Bytes of the module's own size.
const KNOWN: u32 = size_of::<VmClockGuest>() as u32;
const MAX: u32 = PAGE as u32;

/// (`size`, byte that is set to 1 if any, errno)
const SIZES: &[(&str, u32, Option<usize>, i32)] = &[
    ("size 0", 0, None, libc::EINVAL),
    ("size 1 too small", KNOWN - 1, None, libc::EINVAL),
    (
        "first byte of the tail set",
        KNOWN + 1,
        Some(KNOWN as usize),
        libc::E2BIG,
    ),
    (
        "last byte of the tail set",
        KNOWN + 100,
        Some(KNOWN as usize + 99),
        libc::E2BIG,
    ),
    ("last byte of a page set", MAX, Some(PAGE - 1), libc::E2BIG),
    ("larger than a page", MAX + 1, None, libc::E2BIG),
    ("largest size", u32::MAX, None, libc::E2BIG),
];

/// Addresses of the payload that cause `EFAULT`.
type Place = fn(&VmClock) -> std::io::Result<Payload>;
const BOTH: &[(&str, Place)] = &[
    ("header at an inaccessible address", |c| {
        Payload::with_header_cut(c, 0)
    }),
    ("only the size accessible", |c| {
        Payload::with_header_cut(c, 4)
    }),
    ("header without its last word", |c| {
        Payload::with_header_cut(c, KNOWN as usize - 8)
    }),
    ("array at an inaccessible address", |c| {
        Payload::with_array_cut(c, 0)
    }),
    ("second vCPU inaccessible", |c| {
        Payload::with_array_cut(c, 1)
    }),
    ("array in the kernel", |c| {
        let payload = Payload::new(c)?;
        payload.point_array_into_kernel();
        Ok(payload)
    }),
    ("header write-protected", |c| {
        let payload = Payload::new(c)?;
        payload.protect_header()?;
        Ok(payload)
    }),
];

#[derive(Clone, Copy)]
enum Call {
    Get,
    Set,
}

impl Call {
    fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Set => "SET",
        }
    }

    /// A request that would succeed.
    fn clock(self, vm: &Vm) -> Result<VmClock> {
        let mut clock = get(vm)?;
        if let Self::Set = self {
            clock = unlike(clock);
            clock.header.mode = MODE_EXACT;
        }
        Ok(clock)
    }

    fn make(self, payload: &Payload, vm: &VmFd) -> kvm_clock::Result<()> {
        match self {
            Self::Get => payload.get(vm),
            Self::Set => payload.set(vm),
        }
    }
}

pub(crate) fn cases() -> Vec<Case<Host>> {
    let mut cases = Vec::new();
    for call in [Call::Get, Call::Set] {
        let of = call.name();
        for &(name, size, byte, errno) in SIZES {
            let errno_name = if errno == libc::E2BIG {
                "E2BIG"
            } else {
                "EINVAL"
            };
            cases.push(Case::new(
                format!("{errno_name} {of}: {name}"),
                move |host| wrong_size(host, call, size, byte, errno),
            ));
        }
        for &(name, place) in BOTH {
            cases.push(Case::new(format!("EFAULT {of}: {name}"), move |host| {
                inaccessible(host, call, place)
            }));
        }
    }
    cases.push(Case::new(
        "EFAULT GET: array write-protected",
        array_read_only,
    ));
    for entries in [0, 1] {
        cases.push(Case::new(
            format!("E2BIG GET: room for {entries} of {} vCPUs", crate::VCPUS),
            move |host| array_too_small(host, entries),
        ));
    }
    cases
}

fn wrong_size(host: &Host, call: Call, size: u32, byte: Option<usize>, errno: i32) -> Result<()> {
    for vm in &host.vms {
        let payload = Payload::new(&call.clock(vm)?)?;
        payload.set_size(size);
        if let Some(index) = byte {
            payload.set_byte(index);
        }
        let before = payload.bytes();
        ensure_refused(vm, errno, |fd| call.make(&payload, fd))?;
        ensure!(payload.bytes() == before, "the payload was written to");
    }
    Ok(())
}

fn inaccessible(host: &Host, call: Call, place: Place) -> Result<()> {
    for vm in &host.vms {
        let payload = place(&call.clock(vm)?)?;
        ensure_refused(vm, libc::EFAULT, |fd| call.make(&payload, fd))?;
    }
    Ok(())
}

fn array_read_only(host: &Host) -> Result<()> {
    for vm in &host.vms {
        let payload = Payload::new(&get(vm)?)?;
        payload.protect_array()?;
        let before = payload.bytes();
        ensure_refused(vm, libc::EFAULT, |fd| payload.get(fd))?;
        ensure!(payload.bytes() == before, "the header was written to");
    }
    Ok(())
}

/// The required count is written back, and nothing else.
fn array_too_small(host: &Host, entries: u32) -> Result<()> {
    for vm in &host.vms {
        let payload = Payload::new(&get(vm)?)?;
        let before = payload.bytes();
        payload.set_nr_vcpus(entries);
        ensure_refused(vm, libc::E2BIG, |fd| payload.get(fd))?;
        let needed = payload.nr_vcpus();
        ensure_eq!(needed, crate::VCPUS, "nr_vcpus");
        // As it was with the right number.
        ensure!(payload.bytes() == before, "more than nr_vcpus was written");
    }
    Ok(())
}
