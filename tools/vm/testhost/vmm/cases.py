# SPDX-License-Identifier: GPL-2.0-only
"""The guests of other VMMs, the operations on each, and the verdicts about them."""

from ..qemu import verdicts
from ..qemu.cases import Check, each, last, name_of, operations
from .guest import SNAPSHOT, SNAPSHOT_MODULE_GONE

VMMS = ("cloud-hypervisor", "firecracker")
# In the kernel's build folder: Firecracker loads ELF files only, Cloud Hypervisor those with PVH's note.
KERNELS = {"cloud-hypervisor": "arch/x86/boot/bzImage", "firecracker": "vmlinux"}
# The emulated host needs up to 4 s for a guest's first page faults, with the patch and without. Cloud Hypervisor reads
# all of a guest's memory before.
SLOW_S = {"cloud-hypervisor": 0, "firecracker": 8}
# What the crate may leave as kvmclock's error without the module.
OLDER_IOCTLS_NS = 1_000
REALTIME = {"clock_realtime": True}


def older_ioctls(operation, baseline):
    """Without the module: the TSCs go on, kvmclock nearly does, and the VMM reports the loss."""
    if why := verdicts.moved(operation):
        return why
    if operation.offsets[1] != baseline.offsets:
        return f"TSC offsets {operation.offsets[1]}, not {baseline.offsets}"
    for step in operation.steps():
        if abs(step.change_ns) > OLDER_IOCTLS_NS:
            return f"vCPU {step.vcpu}: kvmclock moved against the TSC by {step.change_ns} ns"
    if operation.unstable:
        return "the guest's kernel marked its TSC unstable"
    text = "no kvm_clock_guest"
    return None if text in operation.case.qemu else f"the VMM's log has no '{text}': {operation.case.qemu}"


def patched(vmm, what, clocksource, vcpus, judgement, life, **how):
    """Saved and restored twice."""
    return Check(name_of("patched", *what, clocksource, vcpus=vcpus), "patched", clocksource, vcpus, operations(SNAPSHOT, SNAPSHOT, **how),
                 each(judgement, life), ["saved, restored", "saved again, restored", verdicts.LIFE], [], vmm=vmm, slow_s=SLOW_S[vmm])


def exact(vmm, what=(), **how):
    return [patched(vmm, what, clocksource, vcpus, verdicts.unchanged, verdicts.exact_life, **how)
            for clocksource, vcpus in (("kvm-clock", 2), ("tsc", 1))]


def stock(vmm, what=(), **how):
    """It must show an error, or the others would prove nothing."""
    return [Check(name_of("stock", *what, "kvm-clock", vcpus=1), "stock", "kvm-clock", 1, operations(SNAPSHOT, **how),
                  last(verdicts.measured), ["saved, restored"], [], vmm=vmm, slow_s=SLOW_S[vmm])]


def module_gone(vmm, **how):
    return [Check(name_of("patched", "the module goes away", "kvm-clock", vcpus=2), "patched", "kvm-clock", 2,
                  operations(SNAPSHOT_MODULE_GONE, SNAPSHOT, **how), each(older_ioctls, verdicts.no_error),
                  ["restored without it", "saved and restored without it", verdicts.LIFE], [], vmm=vmm, slow_s=SLOW_S[vmm])]


def hosts(vmm):
    """Test hosts, as (name, options of `tools/vm/host run`, checks)."""
    if vmm == "firecracker":
        with_module = [
            *exact(vmm, ["clock_realtime"], **REALTIME),
            patched(vmm, [], "kvm-clock", 2, verdicts.stood_still_together, verdicts.life),
            *stock(vmm), *stock(vmm, ["clock_realtime"], **REALTIME),
        ]
        without = module_gone(vmm, **REALTIME)
    else:
        with_module, without = [*exact(vmm), *stock(vmm)], module_gone(vmm)
    return [(vmm, [], with_module), (f"{vmm}, the module goes away", [], without)]
