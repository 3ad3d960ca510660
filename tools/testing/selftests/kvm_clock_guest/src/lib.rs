// SPDX-License-Identifier: GPL-2.0-only

//! What the selftests of `kvm_clock_guest` have in common.
//!
//! - [`ktap`]: runs a table of cases and reports it,
//! - [`require`]: what the host must have, or else the whole program is skipped,
//! - [`apart`]: a VM whose vCPUs' TSCs differ,
//! - [`clocks`]: all that can be seen of a VM's clocks, to compare before and after,
//! - [`clocksource`]: a host that does not keep its time by its TSC, for the duration of a case,
//! - [`continued`]: kvmclock on such a host: the saved function first, the raw clock from then on,
//! - [`descriptors`]: further descriptors of a VM and its vCPUs,
//! - [`expect`]: what SET should make of a saved clock,
//! - [`fault`]: system calls that fail half way,
//! - [`fixture`]: VMs in the states that the cases start from,
//! - [`flat_out`]: a guest that reads its clocks without a pause,
//! - [`halting`]: vCPUs that only halt,
//! - [`host_clock`]: the host's clocks,
//! - [`host_module`]: kernel modules that come and go, and those that do something to the host,
//! - [`hotplug`]: CPUs of the host that go offline for a while,
//! - [`hyperv`], [`xen`]: the clocks that KVM makes for guests of other hypervisors,
//! - [`last_host_tsc`]: what KVM believes that a vCPU last saw of the host's TSC,
//! - [`machine`]: a VM whose vCPUs have a local APIC, for guest code of a program's own,
//! - [`one_clock`]: KVM_GET_CLOCK and the pvclock pages agree,
//! - [`payload`]: ioctl arguments that end, or are write-protected, where a case wants it,
//! - [`references`]: what is in use of KVM: references to modules, VMs,
//! - [`refusal`]: a call that must fail and change nothing,
//! - [`single_cpu`]: one CPU of the host for all threads,
//! - [`snippet`]: a few instructions executed by a stopped vCPU,
//! - [`threads`]: threads that do something beside a case,
//! - [`time`]: how long a second is, an hour, a week,
//! - [`trace`]: the clock updates that KVM makes,
//! - [`tsc_writes`]: the ways to move a vCPU's TSC.

// The guest is x86 code.
#![cfg(target_arch = "x86_64")]

pub mod apart;
pub mod clocks;
pub mod clocksource;
pub mod continued;
pub mod descriptors;
pub mod expect;
pub mod fault;
pub mod fixture;
pub mod flat_out;
pub mod halting;
pub mod host_clock;
pub mod host_module;
pub mod hotplug;
pub mod hyperv;
pub mod ktap;
pub mod last_host_tsc;
pub mod machine;
pub mod one_clock;
pub mod payload;
pub mod references;
pub mod refusal;
pub mod require;
pub mod single_cpu;
pub mod snippet;
pub mod threads;
pub mod time;
pub mod trace;
pub mod tsc_writes;
pub mod xen;
