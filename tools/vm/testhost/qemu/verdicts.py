# SPDX-License-Identifier: GPL-2.0-only
"""The verdicts on operations and guests: functions that return why one failed, or None."""

from . import stream
from .clocks import khz, kvmclock, rate_error, signed
from .measure import UNSTABLE
from .operations import PAUSE

# A timer that was lost would not come at all.
WAKE_LATE_NS = 2e9
# With wider read windows the readings prove nothing.
WINDOW_NS = 50_000
# A task with a CPU limit gets some CPU in each of the limit's periods of 0.1 s. When the machine stalls the
# test host, the guest charges the stall to the task, which then waits for as long.
WITHOUT_CPU_S = 2
# The part of a pause that may be missing: QEMU is slow to stop a guest, and the first steps of a new one are slow.
PAUSE_SHARE = 0.1
# The guest's kernel counts run time in ticks, steal time in hundredths of a second.
CHARGE_STEP_S = 0.1
# Stock QEMU is expected to do worse.
STOCK_ERROR_NS = 10_000


CLOCKS = ("monotonic", "realtime", "raw")


def clock_goes_back(sequences, clocks=CLOCKS):
    """A clock of a vCPU goes back from one reading to the next."""
    for sequence in sequences:
        for one, other in zip(sequence, sequence[1:]):
            for name in clocks:
                if getattr(other, name) < getattr(one, name):
                    return f"{name} went back by {getattr(one, name) - getattr(other, name)} ns"
    return None


def goes_back(sequences, clocks=CLOCKS):
    """Likewise, or a TSC does, or CLOCK_MONOTONIC from one vCPU to another."""
    if why := clock_goes_back(sequences, clocks):
        return why
    for sequence in sequences:
        for one, other in zip(sequence, sequence[1:]):
            if signed(other.before - one.after) < 0:
                return f"the TSC went back by {-signed(other.before - one.after)} ticks"
    merged = sorted((reading for sequence in sequences for reading in sequence), key=lambda reading: reading.before)
    for one, other in zip(merged, merged[1:]):
        if "monotonic" in clocks and other.before >= one.after and other.monotonic < one.monotonic:
            return f"CLOCK_MONOTONIC of one vCPU is {one.monotonic - other.monotonic} ns behind another's"
    return None


def timers(operation):
    """No timer comes early or late, whether it was due during the operation or not."""
    steps = operation.steps()
    for step in steps:
        if step.woke_late_ns > WAKE_LATE_NS + operation.case.case["slow_s"] * 1e9:
            return f"vCPU {step.vcpu}: the first timer came {step.woke_late_ns / 1e6:.0f} ms after the guest ran"
    resumed = max(step.woke for step in steps)
    for sleep in (sleep for sleeps in (*operation.after, *operation.sleeps) for sleep in sleeps):
        if sleep.woke < sleep.due:
            return f"a sleep ended {sleep.due - sleep.woke} ns too early"
        if sleep.woke > max(sleep.due, resumed) + WAKE_LATE_NS:
            return f"a sleep ended {(sleep.woke - sleep.due) / 1e6:.0f} ms too late"
    return None


def other_record(vcpu, sequence, baseline):
    """Why these readings of a vCPU are not of its record, or None."""
    for reading in sequence:
        if reading.record != baseline.records[vcpu]:
            return f"vCPU {vcpu}'s record is {reading.record}, not {baseline.records[vcpu]}"
    return None


def other_update(updates, baseline):
    """Why KVM did not write the same record each time, or None."""
    for update in updates:
        if update.record != baseline.records[update.vcpu]:
            return f"KVM handed vCPU {update.vcpu} {update.record}, not {baseline.records[update.vcpu]}"
    return None


def untouched(operation, baseline):
    """Holds in every mode: the guest's records are unchanged, and time goes on as kvmclock's function of the TSC."""
    if not operation.complete:
        return "it did not end"
    for vcpu, sequence in enumerate(operation.after):
        if len(sequence) < 5:
            return f"vCPU {vcpu} gave only {len(sequence)} readings"
        if why := other_record(vcpu, sequence, baseline):
            return why
    if why := other_update(operation.updates(), baseline):
        return why
    for step in operation.steps():
        if step.change_ns != 0:
            return f"vCPU {step.vcpu}: kvmclock moved against the TSC by {step.change_ns} ns"
        if not step.raw.fits:
            return f"vCPU {step.vcpu}: CLOCK_MONOTONIC_RAW against the TSC: {step.raw}"
    if operation.unstable:
        return "the guest's kernel marked its TSC unstable"
    return goes_back(operation.sequences()) or timers(operation)


def lost_but(operation, ticks):
    """Against the host's clocks, the guest's lost only these ticks of its TSC."""
    for step in operation.steps():
        for name, lost in step.lost.items():
            if lost.allowed > WINDOW_NS + operation.rounding_ns:
                return f"vCPU {step.vcpu}: readings are only good to {lost.allowed:.0f} ns"
            if not (rest := lost.less(ticks * step.ns_per_tick)).fits:
                return f"vCPU {step.vcpu}: {name} lost {rest}"
    return None


def reported(operation, mode, reasons=()):
    """QEMU reports by query-clock-guest what it did, and by an event what was lost."""
    if not (found := operation.reported):
        return "QEMU does not know query-clock-guest"
    events = [event["data"] for event in found["events"] if event["event"] == "CLOCK_GUEST_DISRUPTED"]
    if [event["reason"] for event in events] != list(reasons):
        return f"QEMU reported {events}, not {reasons}"
    if ("last-error" in found) != bool(reasons):
        return f"the last error is {found.get('last-error')}"
    expected = {"supported": True, "pinned": True, "last-operation": "restore", "mode": mode, "precision-ns": 0,
                "rate-diff-hz": operation.rate_diff_hz}
    if differ := {key: found.get(key) for key, value in expected.items() if found.get(key) != value}:
        return f"QEMU reports {differ}, not {expected}"
    # A snapshot may be of an earlier operation.
    most = 0 if mode == "freeze" else operation.runs_ns - operation.case.operations[0].began_ns
    if not (mode != "freeze") <= found["advanced-ns"] <= most:
        return f"QEMU reports that the clocks advanced by {found['advanced-ns']} ns, of at most {most}"
    return None


def unchanged(operation, baseline):
    """The clocks are unchanged but for the time that passed: bit for bit, and as the guest reads them."""
    if why := untouched(operation, baseline):
        return why
    if operation.offsets[1] != baseline.offsets:
        return f"TSC offsets {operation.offsets[1]}, not {baseline.offsets}"
    return lost_but(operation, 0)


def same_host(operation, baseline):
    """As unchanged(), and QEMU reports it."""
    return unchanged(operation, baseline) or reported(operation, "exact")


def went_on(operation, baseline):
    """As same_host(), after an operation in which the clocks stood still."""
    if why := untouched(operation, baseline):
        return why
    if operation.offsets[0] != operation.offsets[1]:
        return f"TSC offsets {operation.offsets[1]}, not {operation.offsets[0]}"
    return lost_but(operation, 0) or reported(operation, "exact")


def limited(operation, baseline):
    """The pause is above the limit: the clocks stood still, and QEMU reports it."""
    return frozen(operation, baseline, reasons=["limit"])


def frozen(operation, baseline, reasons=()):
    """As stood_still_together(), and QEMU reports it."""
    return stood_still_together(operation, baseline) or reported(operation, "freeze", reasons)


def stood_still_together(operation, baseline):
    """All clocks stood still together while the guest was stopped, and no longer."""
    if why := untouched(operation, baseline):
        return why
    lost = {step.tsc_lost_ticks for step in operation.steps()}
    if len(lost) != 1:
        return f"the vCPUs' TSCs stood still for {lost} ticks"
    ticks = lost.pop()
    stood_s = ticks * operation.steps()[0].ns_per_tick / 1e9
    least, most = PAUSE if operation.name.startswith("stop") else 0, (operation.runs_ns - operation.began_ns) / 1e9
    if not least <= stood_s <= most or not ticks:
        return f"the clocks stood still for {stood_s:.3f} s, not for {least} to {most:.3f} s"
    return lost_but(operation, ticks)


def tsc_kept(operation, baseline):
    """A guest without kvmclock: only its TSC has to go on."""
    if not operation.complete:
        return "it did not end"
    if operation.offsets[1] != baseline.offsets:
        return f"TSC offsets {operation.offsets[1]}, not {baseline.offsets}"
    if any(reading.record for sequence in operation.after for reading in sequence):
        return "the guest has kvmclock"
    # Its other clocks may be of acpi_pm, which stands still with QEMU's own clock.
    return goes_back(operation.sequences(), clocks=()) or timers(operation)


def stood_still(operation, baseline):
    """A guest without kvmclock: its TSC stood still as the devices' clocks did."""
    if not operation.complete:
        return "it did not end"
    return goes_back(operation.sequences(), clocks=()) or timers(operation) or (
        operation.unstable and "the guest's kernel marked its TSC unstable") or reported(operation, "freeze") or None


def kept_stable(operation, baseline):
    """As tsc_kept(), and the guest's kernel watches its TSC by a device."""
    return tsc_kept(operation, baseline) or (operation.unstable and "the guest's kernel marked its TSC unstable") or None


def audited(kvmclock_stands_still):
    """`clockguest audit` reports the guest's offsets and records as they are, and by how much a stop moved kvmclock."""

    def verdict(operation):
        if why := moved(operation):
            return why
        seen = operation.seen
        if seen["status"] != 0 or seen["errors"] or seen["left"]:
            return f"the audit ended with {seen['status']}, and left {seen['left']}: {seen['errors']}"
        *events, report = seen["lines"]
        vm, = report["vms"]
        if vm["name"] != f"audited-{operation.case.case['binary']}":
            return f"the audit reports the name {vm['name']}"
        if [vcpu["tsc_offset"] % 2**64 for vcpu in vm["vcpus"]] != operation.offsets[1] or vm["tscs_agree"] is not True:
            return f"the offsets are {operation.offsets[1]}, and the audit reports {vm}"
        if vm["master_clock"] is not True or report["lost_events"]:
            return f"the audit reports {report}"
        for step, vcpu in zip(operation.steps(), vm["vcpus"], strict=True):
            found, record = vcpu["kvmclock"], operation.after[step.vcpu][-1].record
            if not found:
                return f"the audit saw no record of vCPU {step.vcpu}"
            fields = ("tsc_timestamp", "system_time", "tsc_to_system_mul", "tsc_shift")
            if tuple(found[field] for field in fields) != record[:4]:
                return f"vCPU {step.vcpu}'s record is {record}, and the audit reports {found}"
            against_ns = [event["moved_against_tsc_ns"] for event in events
                          if event["event"] == "kvmclock" and event["vcpu"] == step.vcpu]
            if sum(against_ns) != found["moved_against_tsc_ns"]:
                return f"the moves are {against_ns}, and {found['moved_against_tsc_ns']} in total"
            if not kvmclock_stands_still:
                if found["updates"] < 2 or any(against_ns) or step.change_ns != 0:
                    return f"vCPU {step.vcpu}'s kvmclock moved by {-step.change_ns} ns, and the audit reports {against_ns}: {found}"
                continue
            # The guest's readings are of both stops, the audit has seen one before.
            stop_ns = -sum(against_ns)
            if not PAUSE <= stop_ns / 1e9 < PAUSE + 1 or not 1 <= (step.change_ns - stop_ns) / 1e9 < 2:
                return f"the TSC went ahead of vCPU {step.vcpu}'s kvmclock by {step.change_ns} ns, and the audit reports {against_ns}"
            tsc = operation.after[step.vcpu][-1].before
            apart_ns = tsc / khz(record) * 1e6 - kvmclock(record, tsc)
            # The rate that a record implies is known to a kHz.
            if abs(found["tsc_minus_kvmclock_ns"] - apart_ns) > 1e6:
                return f"the clocks of vCPU {step.vcpu} are {apart_ns:.0f} ns apart, and the audit reports {found}"
        return None

    return verdict


def with_devices(operation):
    """The devices' clock went on as the guest's did, but for the watchdog's, which expired when it was due."""
    if why := moved(operation):
        return why
    seen = operation.seen
    if abs(seen["rtc_s"] - seen["elapsed_s"]) > 2:
        return f"the RTC went on by {seen['rtc_s']} s in {seen['elapsed_s']:.1f} s"
    at = {event["event"]: event["timestamp"]["seconds"] for event in operation.reported["events"]}
    expired_s = at["WATCHDOG"] - at["RESUME"]
    return None if 5 <= expired_s <= 15 else f"the watchdog of 10 s expired {expired_s} s after the pause"


def marker_moves(case):
    """vmclock's disruption marker: exact, frozen, exact."""
    if case.error:
        return case.error
    markers = [operation.reported["marker"] for operation in case.operations]
    return None if markers == [markers[0], markers[0] + 1, markers[0] + 1] else f"the markers are {markers}"


class Baseline:
    """A guest's clocks before the first operation."""

    def __init__(self, case):
        self.offsets = case.operations[0].offsets[0]
        self.records = [sequence[-1].record for sequence in case.booted]


LIFE = "all of its life"


def no_error(case, _baseline):
    return case.error


def life(case, _baseline):
    """Holds from the first operation to the last."""
    if case.error:
        return case.error
    if any(operation.unstable for operation in case.operations):
        return "the guest's kernel marked its TSC unstable"
    if not any(operation.updates() for operation in case.operations):
        return "KVM's trace has no record"
    if "tsc-deadline" in case.case["cpu"] and "timer lapic-deadline" not in case.console:
        return "the guest has no TSC-deadline timer"
    return None


def exact_life(case, baseline):
    """On one host, over the guest's whole life: a wrong rate would show."""
    if why := life(case, baseline):
        return why
    first, last = case.operations[0], case.operations[-1]
    for vcpu in range(case.vcpus):
        whole = first.step(vcpu, first.before[vcpu][-1], last.after[vcpu][-1])
        for name, lost in whole.lost.items():
            if not lost.fits:
                return f"vCPU {vcpu}: in {whole.elapsed_ns / 1e9:.0f} s {name} lost {lost}"
    return None


def chain_life(case, baseline):
    """Long enough for timers to be pending from before an operation until after it: timers() has judged them."""
    if why := exact_life(case, baseline):
        return why
    all_sleeps = [sleep for operation in case.operations for sleeps in operation.sleeps for sleep in sleeps]
    if not any(sleep.began < operation.before[0][-1].after and sleep.due > operation.steps()[0].woke
               for operation in case.operations for sleep in all_sleeps):
        return "no sleep was pending from before an operation until after it"
    return None


def set_apart(case):
    """Return a stream, and for each vCPU how many ns kvmclock would move against the TSC if the stream is restored as it is."""
    sent, baseline = stream.read(case.folder / "guest.file"), Baseline(case)
    return sent, [kvmclock(record, tsc) - sent.clock for record, tsc in zip(baseline.records, sent.tsc, strict=True)]


def one_instant(relation):
    """The fields of every QEMU are of one instant; the subsection is present if `relation`."""

    def verdict(case):
        if case.error:
            return case.error
        sent, apart_ns = set_apart(case)
        if bool(sent.relation) != relation:
            return f"the stream has {'a' if sent.relation else 'no'} subsection"
        return f"the TSC is {apart_ns} ns ahead of kvmclock" if any(apart_ns) else None

    return verdict


def two_instants(case):
    """Stock QEMU's fields are not of one instant, or one_instant() would prove nothing."""
    if case.error:
        return case.error
    sent, apart_ns = set_apart(case)
    if sent.relation:
        return "the stream has a subsection"
    return None if all(abs(ns) > STOCK_ERROR_NS for ns in apart_ns) else f"the clocks are only {apart_ns} ns apart"


def steal(found):
    """The pause is steal time, and the task with the CPU limit goes on at once."""
    if found.without_cpu_s > WITHOUT_CPU_S:
        return f"the task got no CPU for {found.without_cpu_s:.3f} s"
    # Time that the host was busy with other work is stolen as well.
    least, most = found.paused_s * (1 - PAUSE_SHARE) - CHARGE_STEP_S, found.elapsed_s + CHARGE_STEP_S
    if not least <= found.steal_s <= most:
        return f"the steal time is {found.steal_s:.2f} s, for a pause of {found.paused_s:.2f} s"
    if not 0 < found.usage_s <= most - found.steal_s:
        return f"the task was charged {found.usage_s:.3f} s of {found.elapsed_s:.3f} s, {found.steal_s:.2f} s of which are stolen"
    return None


def charged_to_nobody(operation, baseline):
    """The clocks are unchanged, and the pause is steal time."""
    return same_host(operation, baseline) or steal(operation.charged())


def nothing_to_charge(operation, baseline):
    """All clocks stood still, so there is no steal time either."""
    if why := frozen(operation, baseline):
        return why
    if (without_cpu_s := operation.charged().without_cpu_s) > WITHOUT_CPU_S:
        return f"the task got no CPU for {without_cpu_s:.3f} s"
    first, last = operation.charges[0], operation.charges[-1]
    elapsed_s, used_s = (last.monotonic - first.monotonic) / 1e9, (last.usage_us - first.usage_us) / 1e6
    stolen_s = (last.steal - first.steal) / 100 / operation.case.vcpus
    if stolen_s + used_s > elapsed_s + CHARGE_STEP_S:
        return f"of {elapsed_s:.2f} s, {stolen_s:.2f} s are stolen, and {used_s:.2f} s the task's"
    return None


def pays(case):
    """The guest does not account the pause as steal time: a stop that found the task running was charged to it."""
    if case.error or not case.operations:
        return []
    waits = (100 / case.case["limit"] - 1) / 2
    found = [operation.charged() for operation in case.operations]
    if any(charged.usage_s >= charged.paused_s * (1 - PAUSE_SHARE) and charged.without_cpu_s >= charged.paused_s * waits for charged in found):
        return [None]
    return [f"the task was not charged: {found}"]


def no_task_waits(operation):
    """Of two tasks that spin on the vCPU, none waits for the other to have got as much."""
    found = operation.shared()
    return f"a task got no CPU for {found.without_cpu_s:.3f} s" if found.without_cpu_s > WITHOUT_CPU_S else None


def shared_fairly(operation, baseline):
    """The clocks are unchanged, and the pause is charged to no task."""
    return same_host(operation, baseline) or no_task_waits(operation)


def shared_while_frozen(operation, baseline):
    """No clock shows a pause, so that there is nothing to charge."""
    return frozen(operation, baseline) or no_task_waits(operation)


def shared_unfairly(operation):
    """The pause is charged to the task that it found running, which then gets no CPU for as long."""
    if not operation.complete:
        return "it did not end"
    found = operation.shared()
    if found.without_cpu_s < found.paused_s * (1 - PAUSE_SHARE):
        return f"no task was without CPU for longer than {found.without_cpu_s:.3f} s, for a pause of {found.paused_s:.3f} s"
    return None


def moved(operation):
    """The guest goes on; its clocks need not be right."""
    if not operation.complete:
        return "it did not end"
    return None if all(len(sequence) >= 5 for sequence in operation.after) else "the probe does not go on"


def measured(operation):
    """Stock QEMU, or QEMU that must behave like it: an error must show, or the other verdicts would prove nothing."""
    if why := moved(operation):
        return why
    if all(abs(step.change_ns) < STOCK_ERROR_NS for step in operation.steps()):
        return "the clocks show no error: this proves nothing"
    return None


def not_pinned(operation):
    """QEMU reports that the clocks are not pinned, by an event, by query-clock-guest and by a message."""
    if why := moved(operation):
        return why
    reasons = [event["data"]["reason"] for event in operation.reported["events"] if event["event"] == "CLOCK_GUEST_DISRUPTED"]
    if reasons != ["unsupported"] or operation.reported["pinned"] or "last-error" not in operation.reported:
        return f"QEMU reports {operation.reported}"
    text = "KVM cannot restore TSC and kvmclock as one"
    return None if text in operation.case.qemu else f"QEMU printed: {operation.case.qemu}"


def pinned(operation):
    """The guest's clocks need not be right, but from here on they are kept."""
    return moved(operation) or (None if operation.reported["pinned"] else f"QEMU reports {operation.reported}")


def printed(text, judgement):
    """As `judgement`, and a QEMU printed `text`."""

    def verdict(operation, baseline):
        if why := judgement(operation, baseline):
            return why
        return None if text in operation.case.qemu else f"QEMU printed: {operation.case.qemu}"

    return verdict


def stream_of_stock(case):
    """Two QEMUs have saved the same stopped guest: only what counts on differs, kvmclock in 8 bytes and RTC in 6."""
    if case.error:
        return case.error
    off, stock = (stream.devices(case.folder / f"{name}.file") for name in ("off", "stock"))
    differ = [at for at, (one, other) in enumerate(zip(off, stock)) if one != other]
    if len(off) != len(stock) or len(differ) > 14:
        return f"{len(off)} and {len(stock)} bytes, of which {len(differ)} differ: {differ[:32]}"
    off, stock = (stream.stopped(case.folder / f"{name}.file") for name in ("off", "stock"))
    names = [name for name in off.keys() | stock.keys() if off.get(name) != stock.get(name)]
    return f"{names} differ" if names else None


def refuses(text):
    """QEMU does not start, and prints `text`."""

    def verdicts(case):
        if not case.error:
            return ["it started"]
        return [None if text in case.qemu else f"{case.error}; QEMU printed: {case.qemu}"]

    return verdicts


def arrives(text):
    """A guest from a file goes on, and QEMU prints `text`."""

    def verdicts(case):
        if case.error:
            return [case.error]
        if text not in case.qemu:
            return [f"QEMU printed: {case.qemu}"]
        return [goes_back(case.booted)]

    return verdicts


def arrived(source, destination):
    """Holds in every mode: the records are unchanged, and no clock goes back."""
    baseline = Baseline(source)
    for vcpu, sequence in enumerate(destination.booted):
        known = source.operations[0].before[vcpu][-1].number
        fresh = [reading for reading in sequence if reading.number > known]
        if len(fresh) < 5:
            return f"vCPU {vcpu} gave only {len(fresh)} readings"
        if why := other_record(vcpu, fresh, baseline):
            return why
    if not destination.updates:
        return "KVM's trace has no record"
    if why := other_update(destination.updates, baseline):
        return why
    if UNSTABLE.search(destination.console):
        return "the guest's kernel marked its TSC unstable"
    return goes_back(destination.booted)


def apart(source, destination):
    """How far the guest's TSC is ahead of its value on the source host: [(ticks, allowed error)] for each vCPU.

    That is its value there when the source host's CLOCK_REALTIME is what the destination's was at the SET.
    """
    found = []
    for vcpu in range(source.vcpus):
        at_ns = max(entry.at_ns for entry in destination.written if entry.vcpu == vcpu)
        here = destination.host.tsc(at_ns)
        realtime, bound_here = destination.host.at("realtime", here)
        there = source.host.tsc(realtime, "realtime")
        bound_there = source.host.at("realtime", there)[1]
        ticks = signed(round(here) + destination.offsets[vcpu] - round(there) - source.operations[0].offsets[0][vcpu])
        # The saved guest TSC advanced by the rate of its host, and the time by the clocks of both.
        since_ns = abs(realtime - source.operations[0].before[vcpu][-1].realtime)
        allowed_ns = bound_here + bound_there + since_ns * 2 * rate_error(source.host.khz)
        found.append((ticks, 2 + allowed_ns * source.host.khz / 1e6))
    return found


def other_host(source, destination):
    """Mode advance: the guest's TSC reads as on the source host, according to the two hosts' clocks."""
    if why := arrived(source, destination):
        return why
    for vcpu, (ticks, allowed) in enumerate(apart(source, destination)):
        if abs(ticks) > allowed:
            return f"vCPU {vcpu}: its TSC is {ticks} ticks from its value on the source host, {allowed:.0f} allowed"
    return None


def other_host_steal(source, destination):
    """Mode advance: time that the guest ran on neither host is steal time."""
    return other_host(source, destination) or steal(destination.charged())


def other_host_behind(source, destination):
    """The guest's clocks must not go back: they stood still, and QEMU reports it."""
    if "the guest's clocks stood still" not in destination.qemu:
        return f"QEMU printed: {destination.qemu}"
    return arrived(source, destination)


def falls_back(text):
    """The guest goes on with the old interfaces, and QEMU reports it."""

    def verdict(source, destination):
        if text not in destination.qemu:
            return f"QEMU printed: {destination.qemu}"
        return goes_back(destination.booted)

    return verdict
