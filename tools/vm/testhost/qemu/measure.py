# SPDX-License-Identifier: GPL-2.0-only
"""Computes the clock errors of each operation from the files that drive.py wrote."""

import copy
import json
import re
from typing import NamedTuple

from . import readings
from .clocks import MODULUS, TSCClock, khz, kvmclock, linux_khz, rate_error, signed

UNSTABLE = re.compile(r"[Mm]arking (?:TSC|clocksource '?tsc'?) (?:as )?unstable")
OFFSET = re.compile(r"-(\d+) +\[\d+\] \S+ +([\d.]+): kvm_write_tsc_offset: vcpu=(\d+) prev=\d+ next=(\d+)")
PVCLOCK = re.compile(r"-(\d+) +\[\d+\] \S+ +([\d.]+): kvm_pvclock_update: vcpu_id (\d+), pvclock \{ version \d+, "
                     r"tsc_timestamp (0x[0-9a-f]+), system_time (0x[0-9a-f]+), tsc_to_system_mul (0x[0-9a-f]+), "
                     r"tsc_shift (-?\d+), flags (0x[0-9a-f]+) \}")

# A guest charges a pause with its first ticks after it.
SETTLED_NS = 5e8

# A guest takes its TSC's rate from its record, in whole kHz.
RATE_STEP_KHZ = 1


class Difference(NamedTuple):
    """A measured number of ns that should be 0, and the measurement's error bound."""

    ns: float
    allowed: float

    @property
    def fits(self):
        return abs(self.ns) <= self.allowed

    def less(self, ns):
        """The difference to `ns` instead of 0."""
        return Difference(self.ns - ns, self.allowed)

    def __str__(self):
        return f"{self.ns:,.0f} ns, {self.allowed:,.0f} allowed"


class Step(NamedTuple):
    """The changes of one vCPU's clocks between two readings."""

    vcpu: int
    ns_per_tick: float
    # By the host's clock, from reading to reading.
    elapsed_ns: float
    # By how much its TSC is behind what it would have been.
    tsc_lost_ticks: int
    # By how much its TSC went ahead of its kvmclock, ns; none without kvmclock.
    change_ns: float | None
    # By how much its clocks are behind the test host's.
    lost: dict[str, Difference]
    # CLOCK_MONOTONIC_RAW against the TSC.
    raw: Difference
    # When the first sleep ended since, by CLOCK_MONOTONIC.
    woke: int
    # How long that was after the guest was seen to run.
    woke_late_ns: float


class Update(NamedTuple):
    """A record that KVM wrote for a guest, from KVM's trace."""

    thread: int
    at_ns: float
    vcpu: int
    record: readings.Record


def updates(trace):
    found = []
    for match in PVCLOCK.finditer(trace):
        thread, seconds, vcpu, timestamp, system_time, mul, shift, flags = match.groups()
        record = readings.Record(int(timestamp, 16), int(system_time, 16), int(mul, 16), int(shift),
                                 int(flags, 16) & ~readings.GUEST_STOPPED)
        found.append(Update(int(thread), float(seconds) * 1e9, int(vcpu), record))
    return found


class Written(NamedTuple):
    """A TSC offset that KVM wrote, from its trace."""

    thread: int
    at_ns: float
    vcpu: int
    offset: int


def written(trace):
    return [Written(int(thread), float(seconds) * 1e9, int(vcpu), int(offset) % MODULUS)
            for thread, seconds, vcpu, offset in OFFSET.findall(trace)]


class Charged(NamedTuple):
    """How a guest accounted a pause, with a task that has a CPU limit; all by the guest's CLOCK_MONOTONIC."""

    # How long no reading was taken: but for a moment before and after, the guest did not run.
    paused_s: float
    # From the last reading before the pause to one after the guest has charged it.
    elapsed_s: float
    # The CPU time of the task in that time.
    usage_s: float
    # The steal time, of each vCPU.
    steal_s: float
    # The longest that the task got no CPU once the guest ran again, and whether it got some after that.
    without_cpu_s: float
    got_cpu_again: bool


def charged(charges, spins, vcpus):
    """Of the longest pause that there was."""
    before, resumed = max(zip(charges, charges[1:]), key=lambda pair: pair[1].monotonic - pair[0].monotonic)
    settled = next((charge for charge in charges if charge.monotonic >= resumed.monotonic + SETTLED_NS), charges[-1])
    ran = [resumed.monotonic, *(spin.monotonic for spin in spins if spin.monotonic > resumed.monotonic)]
    end = max(ran[-1], charges[-1].monotonic)
    gaps = [later - earlier for earlier, later in zip(ran, [*ran[1:], end])]
    return Charged((resumed.monotonic - before.monotonic) / 1e9, (settled.monotonic - before.monotonic) / 1e9,
                   (settled.usage_us - before.usage_us) / 1e6, (settled.steal - before.steal) / 100 / vcpus,
                   max(gaps) / 1e9, max(gaps) != gaps[-1])


class Shared(NamedTuple):
    """How tasks that spin on one vCPU shared it after a pause, by the guest's CLOCK_MONOTONIC."""

    # How long none of them ran.
    paused_s: float
    # The longest time afterwards in which one of them did not run, and for how long they were watched.
    without_cpu_s: float
    watched_s: float


def shared(tasks):
    """`tasks` has the moments when each of them ran."""
    ran = sorted(spin.monotonic for task in tasks for spin in task)
    before, resumed = max(zip(ran, ran[1:]), key=lambda pair: pair[1] - pair[0])
    gaps = [0]
    for task in tasks:
        own = [resumed, *(spin.monotonic for spin in task if spin.monotonic > resumed), ran[-1]]
        gaps += [later - earlier for earlier, later in zip(own, own[1:])]
    return Shared((resumed - before) / 1e9, max(gaps) / 1e9, (ran[-1] - resumed) / 1e9)


class Operation:
    """An operation, and all readings around it."""

    # The number by which the guest's kernel multiplies ticks is rounded: by so much it may be off after a long pause.
    rounding_ns = 0
    # By how much the host's rate differs from what it was before.
    rate_diff_hz = 0

    def __init__(self, case, entry):
        self.case, self.name = case, entry["name"]
        self.offsets = entry["offsets_before"], entry.get("offsets_after")
        self.began_ns, self.runs_ns, self.ended_ns = (entry.get(key) for key in ("began_ns", "runs_ns", "ended_ns"))
        self.complete = "ended_ns" in entry
        if self.complete:
            self.before, self.after = ([decode(entry[when], vcpu, readings.READINGS) for vcpu in range(case.vcpus)]
                                       for when in ("before", "after"))
            self.sleeps = [decode(entry["after"], number, readings.SLEEPS) for number in range(readings.LONG_SLEEPERS)]
            self.charges, self.spins = ([slot for when in ("before", "after") for slot in decode(entry[when], 0, kind)]
                                        for kind in (readings.CHARGES, readings.SPINS))
            self.sharers = [[slot for when in ("before", "after") for slot in decode(entry[when], number + 1, readings.SPINS)]
                            for number in range(case.case["spin"])]
        self._console = entry["console"]
        # What QEMU reports afterwards, if it is asked and knows the command.
        self.reported = entry.get("reported")
        # What the operation itself returns.
        self.seen = entry.get("seen")
        self.unstable, self.printed = False, ""

    def end_at(self, console):
        """Its part of the console goes up to there."""
        self.printed = self.case.console[self._console:console]
        self.unstable = bool(UNSTABLE.search(self.printed))
        return self._console

    def host_tsc(self, tsc, vcpu, after):
        """The host's TSC when a vCPU's was that."""
        return (tsc - self.offsets[after][vcpu]) % MODULUS

    def steps(self):
        """The changes of each vCPU's clocks, from the last reading before the operation to the first after it."""
        runs = self.case.host.tsc(self.runs_ns)
        return [self.step(vcpu, self.before[vcpu][-1],
                          next(reading for reading in self.after[vcpu] if self.host_tsc(reading.before, vcpu, True) >= runs))
                for vcpu in range(self.case.vcpus)]

    def slope(self, record):
        """The rate of a guest's TSC in kHz, and by what fraction the guest's idea of it may differ."""
        rate = khz(record) if record else self.case.host.khz
        return rate, RATE_STEP_KHZ / rate + rate_error(rate) if self.case.clocksource == "tsc" else 0

    def step(self, vcpu, before, after):
        host = self.case.host
        rate, slope = self.slope(before.record)
        places = [self.host_tsc((reading.before + reading.after) // 2, vcpu, reading is after) for reading in (before, after)]
        elapsed = (places[1] - places[0]) / rate * 1e6
        windows = (before.after - before.before + after.after - after.before) / 2 / rate * 1e6
        lost = {}
        for name in ("monotonic", "realtime"):
            (host_before, bound_before), (host_after, bound_after) = (host.at(name, place) for place in places)
            ns = (host_after - host_before) - (getattr(after, name) - getattr(before, name))
            # The guest's slope may differ from its record's, and the host's from its own rate.
            allowed = windows + bound_before + bound_after + elapsed * (slope + host.rate_error) + 2
            lost[name] = Difference(ns, allowed)
        ticks = signed((after.before + after.after) // 2 - (before.before + before.after) // 2)
        raw = Difference((after.raw - before.raw) - ticks / rate * 1e6, windows + abs(ticks) / rate * 1e6 * slope + 2)
        change = None
        if before.record and after.record:
            change = kvmclock(before.record, after.before) - kvmclock(after.record, after.before)
        woke = host.at("monotonic", self.host_tsc(after.woke_tsc, vcpu, True))[0]
        tsc_lost = -signed(self.offsets[1][vcpu] - self.offsets[0][vcpu])
        return Step(vcpu, 1e6 / rate, elapsed, tsc_lost, change, lost, raw, after.woke, woke - self.runs_ns)

    def charged(self):
        return charged(self.charges, self.spins, self.case.vcpus)

    def shared(self):
        return shared(self.sharers)

    def sequences(self):
        """Each vCPU's readings, from the last before it on."""
        return [before + after for before, after in zip(self.before, self.after)]

    def updates(self):
        """The records that KVM wrote during the operation."""
        return [update for update in self.case.updates if self.began_ns <= update.at_ns <= self.ended_ns]


def decode(rings, number, kind):
    slots = bytes.fromhex(rings.get(f"{kind}/{number}", ""))
    decoder = readings.DECODERS[kind]
    return [decoder(slots[at:at + readings.SLOT.size]) for at in range(0, len(slots), readings.SLOT.size)]


class Case:
    """All measurements of a guest."""

    def __init__(self, folder, host, trace):
        """Read its folder; `host` has the test host's clocks, `trace` is KVM's."""
        self.folder = folder
        result = json.loads((folder / "result.json").read_text())
        self.case, self.error, self.host = result["case"], result["error"], host
        self.vcpus, self.clocksource = self.case["vcpus"], self.case["clocksource"]
        self.arrived_ns, self.offsets = result["arrived_ns"], result["offsets"]
        self.notes = result["notes"]
        self.sleeps = [decode(result["booted"], number, readings.SLEEPS)
                       for number in range(readings.LONG_SLEEPERS + self.case["timers"])]
        self.console = (folder / "console").read_text()
        self.qemu = (folder / "qemu").read_text()
        threads = {thread for process in result["threads"] for thread in process}
        self.updates, self.written = ([entry for entry in find(trace) if entry.thread in threads]
                                      for find in (updates, written))
        self.booted = [decode(result["booted"], vcpu, readings.READINGS) for vcpu in range(self.vcpus)]
        self.charges, self.spins = (decode(result["booted"], 0, kind) for kind in (readings.CHARGES, readings.SPINS))
        self.operations = [Operation(self, entry) for entry in result["operations"]]
        end = len(self.console)
        if any(operation.complete and operation.ended_ns > host.end_ns for operation in self.operations):
            raise ValueError("the readings of the test host's own clocks end too early")
        for operation in reversed(self.operations):
            end = operation.end_at(end)

    def charged(self):
        """How it accounted the pause of its arrival."""
        return charged(self.charges, self.spins, self.vcpus)


class OverKexec(Operation):
    """A kexec between the two halves of a guest's life. The host's TSC counts on, and is the clock that the guest's are measured by."""

    name = "kexec"

    def __init__(self, source, destination):
        leaving = source.operations[-1]
        record = leaving.before[0][-1].record
        rate = linux_khz(record) if source.clocksource == "tsc" else khz(record)
        self.case = copy.copy(destination)
        self.case.host, self.case.operations = TSCClock(rate), [self]
        self.tsc_counts_on = source.host.end_tsc < destination.host.begin_tsc
        self.offsets = leaving.offsets[0], destination.offsets
        self.before = leaving.before
        self.after = [[reading for reading in sequence if reading.number > before[-1].number]
                      for before, sequence in zip(leaving.before, destination.booted)]
        stopped = max(before[-1].monotonic for before in leaving.before)
        self.sleeps = [[sleep for sleep in sleeps if sleep.woke > stopped] for sleeps in destination.sleeps]
        self.began_ns, self.runs_ns = (self.case.host.at(None, host.tsc(time))[0] for host, time in (
            (source.host, leaving.began_ns), (destination.host, destination.arrived_ns)))
        self.complete, self.reported = True, destination.notes["reported"]
        # The new kernel has calibrated the same TSC anew.
        self.rate_diff_hz = (destination.notes["host_khz"] - source.notes["host_khz"]) * 1000
        self.rounding_ns = (self.runs_ns - self.began_ns) * self.slope(record)[1]
        self.printed = leaving.printed + destination.console
        self.unstable = bool(UNSTABLE.search(self.printed))

    def slope(self, record):
        """The guest's clocksource tsc is known to have the rate of the measurement, but for the rounding of its factor."""
        return self.case.host.khz, rate_error(self.case.host.khz) if self.case.clocksource == "tsc" else 0

    def steps(self):
        """From the last reading under the old kernel to the first under the new one."""
        return [self.step(vcpu, before[-1], after[0]) for vcpu, (before, after) in enumerate(zip(self.before, self.after))]

    def updates(self):
        """The records that KVM wrote in the new kernel."""
        return self.case.updates

    def pending(self):
        """The sleeps that began under the old kernel and ended under the new one."""
        return [sleep for sleeps in self.sleeps for sleep in sleeps if sleep.began < self.before[0][-1].after]
