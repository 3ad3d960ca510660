# SPDX-License-Identifier: GPL-2.0-only
"""Debian's own kernels as guests: the same operations, with the same judgement, and with their watchdogs on."""

from . import guest_kernels, verdicts
from ..table import columns
from .cases import (FILE, LOAD, LONG_STOP, PAYING_SHARE, PAYING_STOPS, PAYS, SAVE, STOP, UNIX, Check, each, last,
                    name_of, operations)
from .measure import UNSTABLE
from .properties import FREEZE, ON
from .report import errors, milliseconds, within

OPERATIONS = [STOP, SAVE, LOAD, UNIX, FILE]
HOST = "test host, Debian's kernels"


def guest(kernel, also, clocksource, vcpus, names, judge, properties, watch=0, more=(verdicts.LIFE,), **other):
    return Check(name_of(*also, f"Linux {kernel.name}", clocksource, vcpus=vcpus), "patched", clocksource, vcpus,
                 operations(*names, watch=watch), judge, [*names, *more], properties,
                 kernel=kernel, boot=guest_kernels.BOOT, memory=guest_kernels.MEMORY, **other)


def unalarmed(life, kernel):
    """As `life`, of the right kernel, and without a word of its watchdogs."""

    def verdict(case, baseline):
        if why := life(case, baseline) or guest_kernels.runs(case, kernel):
            return why
        found = guest_kernels.alarms(case.console)
        return f"its watchdogs: {found}" if found else None

    return verdict


def excused(kernel):
    """As same_host(), but for what the kernel does to itself."""

    def verdict(operation, baseline):
        if operation.unstable and guest_kernels.caught_up(kernel, operation.printed):
            operation.unstable = False
        return verdicts.same_host(operation, baseline)

    return verdict


def exact(kernel, clocksource, vcpus):
    return guest(kernel, ["patched"], clocksource, vcpus, OPERATIONS,
                 each(excused(kernel), unalarmed(verdicts.exact_life, kernel)), [ON], figures=marked)


def marked(case):
    """The operations in which the guest's kernel marked its TSC unstable, for whatever reason."""
    return {"marked": [operation.name for operation in case.operations if UNSTABLE.search(operation.printed)]}


def stock(kernel, clocksource, vcpus):
    """An error shows in each of these guests, or the zeros of the others would prove nothing."""
    check = guest(kernel, ["stock"], clocksource, vcpus, [STOP], last(verdicts.measured), [], more=())
    check.binary = "stock"
    return check


def nobody_pays(kernel, freeze, title, frozen, counted, **tasks):
    """Tasks that a pause is not charged to: the clocks stand still in it, or the kernel counts it as steal time."""
    also, properties = (["patched", "freeze", title], [ON, FREEZE]) if freeze else (["patched", title], [ON])
    judge = each(frozen, unalarmed(verdicts.life, kernel)) if freeze else each(counted, unalarmed(verdicts.exact_life, kernel))
    return guest(kernel, also, "kvm-clock", 1, [LONG_STOP], judge, properties, **tasks)


def limited(kernel, freeze):
    """A task with a CPU limit: who pays for a pause depends on the kernel, and nobody does if the clocks stand still."""
    title = "a task with a CPU limit"
    if freeze or kernel.accounts_steal:
        return nobody_pays(kernel, freeze, title, verdicts.nothing_to_charge, verdicts.charged_to_nobody, watch=5, limit=50)
    check = guest(kernel, ["patched", title], "kvm-clock", 1, [LONG_STOP] * PAYING_STOPS, verdicts.pays, [ON],
                  watch=10, more=(), limit=PAYING_SHARE)
    check.results = [PAYS]
    return check


def sharing(kernel, freeze):
    """Two tasks that spin on one vCPU: the one that the pause finds running pays for it, likewise."""
    title = "two tasks that spin"
    if freeze or kernel.accounts_steal:
        return nobody_pays(kernel, freeze, title, verdicts.shared_while_frozen, verdicts.shared_fairly, watch=10, spin=2)
    return guest(kernel, ["patched", title], "kvm-clock", 1, [LONG_STOP], last(verdicts.shared_unfairly), [ON],
                 watch=30, more=(), spin=2)


def checks():
    found = []
    for kernel in guest_kernels.all_kernels():
        # One of the two with one vCPU, and one with two.
        found += [exact(kernel, "kvm-clock", 1 if kernel.smp_tsc else 2), exact(kernel, "tsc", 2 if kernel.smp_tsc else 1)]
        found.append(stock(kernel, "kvm-clock", 1))
    return found


def limited_checks():
    return [make(kernel, freeze) for kernel in guest_kernels.all_kernels() for make in (limited, sharing) for freeze in (False, True)]


def hosts():
    """As cases.hosts()."""
    return [(HOST, [], checks())]


def measured(summaries):
    """The clock errors of each guest, by operation."""
    for summary in summaries:
        if summary["kernel"] and not summary["limited"] and any(entry["operation"] in OPERATIONS for entry in summary["operations"]):
            marked = summary.get("marked", [])
            yield {"kernel": summary["kernel"], "clocksource": summary["clocksource"], "vcpus": summary["vcpus"], "qemu": summary["qemu"],
                   "operations": {entry["operation"]: {**errors([entry]), "unstable": entry["tsc_unstable"] or entry["operation"] in marked}
                                  for entry in summary["operations"]}}


def table(summaries):
    """The clock errors of each kernel, as lines."""
    rows = [[found["kernel"], found["clocksource"], str(found["vcpus"]), found["qemu"],
             *(cell(found["operations"].get(name)) for name in OPERATIONS)] for found in measured(summaries)]
    if not rows:
        return
    rows.insert(0, ["Linux", "clocksource", "vCPUs", "QEMU", *OPERATIONS])
    yield "TSC - kvmclock, if not 0; time lost: the guest's CLOCK_MONOTONIC against the host's; u: the guest's kernel finds its TSC unstable"
    yield from columns(rows)


def cell(found):
    if not found:
        return ""
    apart = f"{milliseconds(found['ahead_ns'])}; " if found["ahead_ns"] else ""
    return apart + within(found["lost_ns"], found["within_ns"]) + (", u" if found["unstable"] else "")
