// SPDX-License-Identifier: GPL-2.0-only

//! `EINVAL`: requests that are invalid at any state of the host's clocks.

use crate::Host;
use kvm_clock_guest_selftests::{payload::Payload, prelude::*};
use pvclock::abi::{FLAG_ALLOW_RATE_MISMATCH, FLAG_FALLBACK};

type Edit = fn(&mut VmClock);

/// Changes of a valid SET, after which `guest_tsc` and `kvmclock_ns` are recomputed.
const SET: &[(&str, Edit)] = &[
    ("unknown flag", |c| c.header.flags = 1 << 4),
    ("highest flag", |c| c.header.flags = 1 << 31),
    ("mode 0", |c| c.header.mode = 0),
    ("unknown mode", |c| c.header.mode = MODE_FREEZE + 1),
    ("unknown status bit", |c| c.header.status = 1 << 2),
    ("highest status bit", |c| c.header.status = 1 << 31),
    ("record's first padding", |c| c.header.record.pad0 = 1),
    ("record's second padding", |c| c.header.record.pad = [1, 0]),
    ("record's last padding byte", |c| {
        c.header.record.pad = [0, 1]
    }),
    ("mul 0", |c| c.header.record.tsc_to_system_mul = 0),
    ("mul 2^31 - 1", |c| {
        c.header.record.tsc_to_system_mul = (1 << 31) - 1
    }),
    ("half of mul", |c| {
        c.header.record.tsc_to_system_mul >>= 1;
        c.header.record.tsc_shift += 1;
    }),
    ("2^63 ns paused", |c| c.header.paused_ns = 1 << 63),
    ("2^63 ns of steal time", |c| c.vcpus[1].steal_ns = 1 << 63),
    ("2^63 ns of steal time and paused", |c| {
        c.header.paused_ns = i64::MAX.unsigned_abs();
        c.vcpus[0].steal_ns = 1;
    }),
    ("shift 32", |c| c.header.record.tsc_shift = 32),
    ("shift -32", |c| c.header.record.tsc_shift = -32),
    ("shift 127", |c| c.header.record.tsc_shift = 127),
    ("shift -128", |c| c.header.record.tsc_shift = -128),
    ("rate 0 kHz", |c| c.header.host_tsc_khz = 0),
    ("ratio without fraction bits", |c| ratio(c, 1, 0)),
    ("fraction bits without ratio", |c| ratio(c, 0, 32)),
    ("64 fraction bits", |c| ratio(c, 1 << 63, 64)),
    ("ratio that leaves 0 Hz", |c| ratio(c, 1, 63)),
    ("reference vCPU not in the array", |c| {
        c.header.ref_vcpu_id = 7
    }),
    ("vCPU twice", |c| c.vcpus[1] = c.vcpus[0]),
    ("unknown vCPU", |c| c.vcpus[1].vcpu_id = 7),
    ("vCPU missing", |c| c.vcpus.truncate(1)),
    ("no vCPU", |c| c.vcpus.clear()),
    ("extra vCPU", |c| {
        c.vcpus.push(ClockGuestVcpu {
            vcpu_id: 7,
            ..c.vcpus[0]
        })
    }),
    ("first vCPU's padding", |c| c.vcpus[0].pad = 1),
    ("last vCPU's padding", |c| c.vcpus[1].pad = 1 << 31),
    ("record 1 tick ahead", |c| put_record_ahead(c, 1)),
    ("record 1 tick ahead, freeze", |c| {
        c.header.mode = MODE_FREEZE;
        put_record_ahead(c, 1);
    }),
    ("record 1 tick ahead, advance", |c| {
        c.header.mode = MODE_ADVANCE;
        put_record_ahead(c, 1);
    }),
    ("record as far ahead as TSCs compare", |c| {
        put_record_ahead(c, i64::MAX as u64)
    }),
    ("record ahead, all flags set", |c| {
        c.header.flags = FLAG_ALLOW_BACKWARDS | FLAG_ALLOW_RATE_MISMATCH | FLAG_FALLBACK;
        put_record_ahead(c, 1 << 40);
    }),
    ("advance by more than 64 bits of ticks", |c| {
        c.header.mode = MODE_ADVANCE;
        c.header.tai_ns = i64::MIN;
    }),
];

/// Changes of a valid SET that make it inconsistent.
const CONTRADICTIONS: &[(&str, Edit)] = &[
    ("guest_tsc 1 tick off", |c| c.header.guest_tsc.0 ^= 1),
    ("guest_tsc's highest bit", |c| {
        c.header.guest_tsc.0 ^= 1 << 63
    }),
    ("kvmclock_ns 1 ns off", |c| c.header.kvmclock_ns ^= 1),
    ("kvmclock_ns's highest bit", |c| {
        c.header.kvmclock_ns ^= 1 << 63
    }),
    ("host_tsc 1 tick off", |c| c.header.host_tsc.0 ^= 1),
    ("record's system_time 1 ns off", |c| {
        c.header.record.system_time ^= 1
    }),
    // A tick may be less than a ns.
    ("record's tsc_timestamp 4096 ticks off", |c| {
        c.header.record.tsc_timestamp.0 ^= 1 << 12
    }),
    ("reference vCPU's offset 1 tick off", |c| {
        c.vcpus[0].tsc_offset.0 ^= 1
    }),
];

/// Changes of a valid GET.
const GET: &[(&str, Edit)] = &[
    ("ALLOW_BACKWARDS", |c| c.header.flags = FLAG_ALLOW_BACKWARDS),
    ("ALLOW_RATE_MISMATCH", |c| {
        c.header.flags = FLAG_ALLOW_RATE_MISMATCH
    }),
    ("FALLBACK with a flag of SET's", |c| {
        c.header.flags = FLAG_FALLBACK | FLAG_ALLOW_BACKWARDS
    }),
    ("an unknown flag", |c| c.header.flags = 1 << 3),
    ("FALLBACK with an unknown flag", |c| {
        c.header.flags = FLAG_FALLBACK | 1 << 3
    }),
    ("the highest flag", |c| c.header.flags = 1 << 31),
    ("a mode", |c| c.header.mode = MODE_EXACT),
    ("an unknown mode", |c| c.header.mode = 1 << 31),
];

/// The record's `tsc_timestamp` is `ticks` ahead of the guest's TSC at the anchor.
fn put_record_ahead(clock: &mut VmClock, ticks: u64) {
    clock.header.record.tsc_timestamp = clock.header.guest_tsc.wrapping_add(ticks);
}

fn ratio(clock: &mut VmClock, ratio: u64, frac_bits: u32) {
    clock.header.tsc_ratio = ratio;
    clock.header.tsc_frac_bits = frac_bits;
}

pub(crate) fn cases() -> Vec<Case<Host>> {
    let set = SET.iter().map(|&(name, edit)| {
        Case::new(format!("EINVAL SET: {name}"), move |host| {
            refused_set(host, edit, make_consistent)
        })
    });
    let contradictions = CONTRADICTIONS.iter().map(|&(name, edit)| {
        Case::new(format!("EINVAL SET: {name}"), move |host| {
            refused_set(host, edit, |_| ())
        })
    });
    let get = GET.iter().map(|&(name, edit)| {
        Case::new(format!("EINVAL GET: {name}"), move |host| {
            refused_get(host, edit)
        })
    });
    let no_vcpus = Case::new("EINVAL SET: VM without vCPUs", without_vcpus);
    set.chain(contradictions)
        .chain(get)
        .chain([no_vcpus])
        .collect()
}

fn refused_set(host: &Host, edit: Edit, then: Edit) -> Result<()> {
    for vm in &host.vms {
        let mut clock = request(vm, MODE_EXACT)?;
        edit(&mut clock);
        then(&mut clock);
        ensure_refused(vm, libc::EINVAL, |fd| set_vm_clock_guest(fd, &mut clock))?;
    }
    Ok(())
}

fn refused_get(host: &Host, edit: Edit) -> Result<()> {
    for vm in &host.vms {
        let mut clock = get(vm)?;
        edit(&mut clock);
        let payload = Payload::new(&clock)?;
        ensure_refused(vm, libc::EINVAL, |fd| payload.get(fd))?;
    }
    Ok(())
}

fn without_vcpus(host: &Host) -> Result<()> {
    let vm = host.kvm.create_vm()?;
    let mut clock = get(&host.vms[0])?;
    clock.header.mode = MODE_EXACT;
    clock.vcpus.clear();
    ensure_errno(libc::EINVAL, set_vm_clock_guest(&vm, &mut clock))
}
