// SPDX-License-Identifier: GPL-2.0-only

//! What nearly every test program uses.

pub use crate::{
    clocks::{function, pages, versions, without_version, Clocks},
    ensure_eq, ensure_eq_hex,
    fixture::{
        an_hour_ahead, derived, derived_at_rate, get, get_clock, get_or_fall_back, make_consistent,
        move_to_domain, move_to_other_host, offsets, pin, pinned, pinned_an_hour_ahead,
        reference_offset, reference_transform, request, run_a_little, set, set_clock, set_tsc_khz,
        settle, successor, vcpu_transform, wait_in_guest, MODES, OTHER_DOMAIN,
    },
    ktap::{self, option, Case, Skip},
    note,
    refusal::{ensure_changes_nothing, ensure_errno, ensure_refused},
    require,
    time::{HOUR_NS, SECOND_NS},
    wait::wait_until,
};
pub use anyhow::{bail, ensure, Context, Result};
pub use clockguest::{host::rdtsc_ordered, observe, vmm::Vm};
pub use kvm_clock::{
    get_clock_guest, get_vm_clock_guest, set_clock_guest, set_tsc_offset, set_vm_clock_guest,
    tsc_offset, VmClock,
};
pub use kvm_ioctls::{Kvm, VcpuFd, VmFd};
pub use pvclock::{
    abi::{
        ClockGuest, ClockGuestVcpu, VmClockGuest, FLAG_ALLOW_BACKWARDS, MODE_ADVANCE, MODE_EXACT,
        MODE_FREEZE, PVCLOCK_TSC_STABLE, STATUS_HOST_TSC_STABLE, STATUS_PINNED,
    },
    counter::{GuestTsc, HostTsc, TscOffset},
    tsc::TscTransform,
};
pub use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};
