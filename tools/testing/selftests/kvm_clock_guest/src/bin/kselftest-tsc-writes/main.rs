// SPDX-License-Identifier: GPL-2.0-only

//! A pinned clock follows every write of a vCPU's TSC: KVM moves the vCPU's pvclock page with its
//! TSC before the guest's next instruction. So kvmclock continues, and KVM_GET_CLOCK agrees with
//! the page.
//!
//! All threads share one CPU of the host, because a migration of a vCPU makes KVM update a page.

use kvm_clock_guest_selftests::{
    affinity::SingleCpu,
    expect::ensure_reads,
    one_clock::ensure_one_clock,
    prelude::*,
    snippet,
    tsc_writes::{TscWrite, BY_OFFSET, TSC_WRITES},
};

const VCPUS: u32 = 2;
/// The distance by which a TSC moves, ticks.
const TICKS: u64 = 1 << 40;
/// The distance by which vCPU 1 is ahead if the vCPUs' TSCs differ, ticks.
const AHEAD: u64 = 1 << 30;

fn main() -> ExitCode {
    let mut cases = Vec::new();
    for write in TSC_WRITES {
        for (before, ahead) in [("TSCs equal", 0), ("TSCs different", AHEAD)] {
            for index in 0..VCPUS as usize {
                cases.push(Case::new(
                    format!("the page moves: {}, vCPU {index}, {before}", write.name),
                    move |kvm| page_moves(kvm, write, index, ahead),
                ));
            }
            cases.push(Case::new(
                format!("kvmclock continues: {}, all vCPUs, {before}", write.name),
                move |kvm| continues(kvm, write, ahead),
            ));
        }
    }
    ktap::main(require::clock_guest, cases)
}

/// A stopped VM with a pinned clock and no pending update; vCPU 1's TSC is `ahead` ticks ahead.
fn vm(kvm: &Kvm, ahead: u64) -> Result<Vm> {
    let vm = pinned(kvm, VCPUS)?;
    if ahead != 0 {
        (BY_OFFSET.add)(&vm, 1, ahead)?;
    }
    settle(&vm)?;
    ensure_one_clock(&vm).context("before")?;
    Ok(vm)
}

fn page_moves(kvm: &Kvm, write: TscWrite, index: usize, ahead: u64) -> Result<()> {
    let _cpu = SingleCpu::hold()?;
    let vm = vm(kvm, ahead)?;
    let (offsets, before) = (vm.tsc_offsets()?, pages(&vm));
    (write.add)(&vm, index, TICKS)?;
    if !write.by_guest {
        snippet::halt(&vm, index)?;
    }
    let moved = vm.tsc_offsets()?[index].since(offsets[index]);
    ensure!(
        moved >= TICKS / 2,
        "the TSC moved by {moved} ticks, not {TICKS}"
    );
    let (expected, page) = (before[index].shifted_by(moved), pages(&vm)[index]);
    ensure_eq_hex!(
        function(page),
        function(expected),
        "vCPU {index}'s record at its next instruction"
    );
    ensure_one_clock(&vm).context("after the write")?;
    run_a_little(&vm)?;
    ensure_one_clock(&vm).context("after all vCPUs ran")
}

fn continues(kvm: &Kvm, write: TscWrite, ahead: u64) -> Result<()> {
    let _cpu = SingleCpu::hold()?;
    let vm = vm(kvm, ahead)?;
    let (offset, record) = (vm.tsc_offsets()?[0], pages(&vm)[0]);
    for index in 0..vm.vcpus().len() {
        (write.add)(&vm, index, TICKS)?;
    }
    let run = observe::run(&vm)?;
    vm.stop()?;
    let reading = run.finish(&vm, rdtsc_ordered())?;
    ensure_reads(&reading, &function(record), offset)?;
    ensure_one_clock(&vm).context("after the writes")
}
