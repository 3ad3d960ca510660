# SPDX-License-Identifier: GPL-2.0-only
"""Guests that go through a kexec of the test host, and the verdicts about them."""

import dataclasses
from collections.abc import Callable

from . import guest_kernels, measure, verdicts
from ..table import columns
from .cases import TO_FILE, Check, name_of, operations
from .machine import SESSION
from .properties import KEXEC_FROM, ON
from .report import milliseconds, within

# Folders of the results.
FOLDER, COLD_FOLDER = "test-host-over-a-kexec", "test-host-powered-on"
# Guests are stopped for some minutes on a slow machine, and QEMU lets them see 10 of them. Within 15 s, a timer is due.
TIMERS, SETTLES = 40, 20
# Far more than an RTC of whole seconds may be off.
WALL_AHEAD_S = 60
WRONG = "x-clock-guest-kexec-from is wrong"


@dataclasses.dataclass
class Move:
    """A guest, its two halves, and the verdict about both."""

    source: Check
    destination: Check
    verdict: Callable

    @property
    def name(self):
        return self.source.name


def move(also, clocksource, vcpus, verdict, properties=(ON,), here=(ON, KEXEC_FROM), kernel=None, before=(), **arrival):
    """`properties` are those of the guest before the kexec, `here` those after it."""
    debian = {"kernel": kernel, "boot": guest_kernels.BOOT, "memory": guest_kernels.MEMORY} if kernel else {}
    name = name_of(*also, f"Linux {kernel.name}" if kernel else "the host's Linux", clocksource, vcpus=vcpus)
    source = Check(name, "patched" if here else "stock", clocksource, vcpus, operations(*before, "kexec"), None, [], list(properties),
                   timers=TIMERS, outlives_kernel=True, **debian)
    destination = dataclasses.replace(source, operations=[], properties=list(here), incoming=SESSION, settles=SETTLES, **arrival)
    return Move(source, destination, verdict)


def goes_on(source, destination):
    """The kexec as an operation, and why the guest did not get through it, or None."""
    kexec = measure.OverKexec(source, destination)
    if not kexec.tsc_counts_on:
        return kexec, "the host's TSC was reset"
    return kexec, verdicts.moved(kexec)


def timers(kexec):
    """Those that were armed before the kexec: which became due before the guest ran again, and which after that."""
    resumed = max(step.woke for step in kexec.steps())
    pending = kexec.pending()
    return [sleep for sleep in pending if sleep.due < resumed], [sleep for sleep in pending if sleep.due >= resumed]


def armed(kexec):
    """There were timers of both kinds: verdicts.timers() judges them."""
    meanwhile, afterwards = timers(kexec)
    if not meanwhile:
        return "no timer became due meanwhile"
    return None if afterwards else "no pending timer became due afterwards"


def exact(kernel):
    """The clocks are unchanged but for the time that passed, and the watchdogs are silent."""

    def verdict(source, destination):
        kexec, why = goes_on(source, destination)
        if why := why or verdicts.same_host(kexec, verdicts.Baseline(source)) or armed(kexec):
            return why
        if not kexec.updates():
            return "KVM's trace has no record"
        if kernel and (why := guest_kernels.runs(source, kernel)):
            return why
        found = guest_kernels.alarms(kexec.printed)
        return f"its watchdogs: {found}" if found else None

    return verdict


def advanced(source, destination):
    """The clocks go on together, but by the time of day, so that the TSC is off: the other verdicts prove something."""
    kexec, why = goes_on(source, destination)
    if why := why or verdicts.untouched(kexec, verdicts.Baseline(source)):
        return why
    if kexec.reported["mode"] != "advance":
        return f"QEMU reports {kexec.reported}"
    return "the TSC offsets are the same" if kexec.offsets[0] == kexec.offsets[1] else None


def refuted(source, destination):
    """As advanced(), although the property claims that the TSC has counted on: what QEMU sees contradicts that, and it warns."""
    return advanced(source, destination) or (None if WRONG in destination.qemu else f"QEMU printed: {destination.qemu}")


def stock(source, destination):
    """Measured, and an error shows."""
    kexec, why = goes_on(source, destination)
    return why or verdicts.measured(kexec)


def moves():
    """In the order in which they are stopped; the last one arrives alone, as it puts the host's clock forward."""
    debian = next(kernel for kernel in guest_kernels.all_kernels() if kernel.name == "6.12")
    guests = [(debian, "tsc", 2), (debian, "kvm-clock", 1), (None, "tsc", 1), (None, "kvm-clock", 2)]
    slow, *others = [move(["patched"], clocksource, vcpus, exact(kernel), kernel=kernel) for kernel, clocksource, vcpus in guests]
    return [
        # Early, as a host that was powered on has to get there by its TSC.
        slow, move(["patched, no session named"], "kvm-clock", 1, advanced, here=(ON,), before=(TO_FILE,)),
        *others,
        *(move(["stock"], clocksource, vcpus, stock, (), ()) for clocksource, vcpus in (("kvm-clock", 2), ("tsc", 1))),
        move(["patched, another host's clock"], "kvm-clock", 1, refuted, wall_ahead=WALL_AHEAD_S),
    ]


def phases(chosen):
    """What arrives in the next kernel, one phase after the other."""
    alone = [move.destination for move in chosen if move.destination.wall_ahead]
    return [[move.destination for move in chosen if not move.destination.wall_ahead], *([check] for check in alone)]


def saved_to_file(chosen):
    """The guests that another host can have, too."""
    return [move.source for move in chosen if any(operation["name"] == TO_FILE for operation in move.source.operations)]


def cold(source, boot_id):
    """The guest that was also saved to a file, on a host that was powered on anew, and a property that names its boot all the same."""
    return dataclasses.replace(source, name="patched, after a power cycle", operations=[], outlives_kernel=False,
                               incoming=f"file:{FOLDER}/{source.slug}/guest.file", properties=[ON, KEXEC_FROM.format(boot_id=boot_id)])


def power_cycled(destination):
    """QEMU does not believe that the TSC counted on."""
    if destination.error:
        return destination.error
    if destination.notes["reported"]["mode"] != "advance" or WRONG not in destination.qemu:
        return f"QEMU reports {destination.notes['reported']}, and printed: {destination.qemu}"
    return verdicts.goes_back(destination.booted)


def row(move, kexec):
    """A line of the table."""
    steps = kexec.steps()
    lost = max((step.lost["monotonic"] for step in steps), key=lambda lost: abs(lost.ns))
    down_s = min(step.elapsed_ns for step in steps) / 1e9
    late_ns = max((sleep.woke - sleep.due for sleep in timers(kexec)[1]), default=None)
    return [move.name, (kexec.reported or {}).get("mode", ""), f"{down_s:.1f} s", f"{max((step.tsc_lost_ticks for step in steps), key=abs):+,}",
            milliseconds(max((step.change_ns for step in steps), key=abs)), within(lost.ns, lost.allowed),
            "yes" if kexec.unstable else "no", "none" if late_ns is None else f"{late_ns / 1e6:.1f} ms"]


def table(rows):
    if rows:
        yield "TSC lost: against the host's, in ticks; time lost: CLOCK_MONOTONIC against the host's TSC; late: a timer that was armed before"
        yield from columns([["guest", "mode", "stopped", "TSC lost", "TSC - kvmclock", "time lost", "unstable", "late"], *rows], left=2)
