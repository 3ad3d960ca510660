# SPDX-License-Identifier: GPL-2.0-only
"""Ways in which guests are stopped, saved and moved in production, beside those in operations.py."""

import copy
import pathlib
import time

from .operations import TIMEOUT, migrate_unix, savevm_new_process, stop_cont
from .readings import Memory

CLONES = 8


# What is done with a guest that has booted, before the first readings that count.

def reset_while_stopped(guest):
    """The guest starts anew; nothing of its old life may be part of the new one's clocks."""
    # Without it, QEMU ends (-no-reboot).
    guest.qmp("set-action", reboot="reset")
    guest.qmp("stop")
    # So that no ring of the old life is found later. Firmware is in the first MB.
    with open(guest.process.memory, "r+b") as memory:
        size = memory.seek(0, 2)
        memory.seek(1 << 20)
        for _ in range((size >> 20) - 1):
            memory.write(bytes(1 << 20))
    time.sleep(1)
    guest.qmp("system_reset")
    guest.notes["reset_ns"] = time.monotonic_ns()
    guest.qmp("cont")
    guest.qmp.wait("the guest's second boot", lambda: guest.console().count("guest-init: clocksource") > 1, TIMEOUT)
    guest.qmp("set-action", reboot="shutdown")


def plug(guest):
    """Plug in a vCPU; the guest's init waits for it."""
    free = next(cpu for cpu in guest.qmp("query-hotpluggable-cpus") if "qom-path" not in cpu)
    guest.qmp("device_add", driver=free["type"], id="plugged", **free["props"])
    guest.plugged += ["-device", ",".join([free["type"], "id=plugged", *(f"{name}={value}" for name, value in free["props"].items())])]
    guest.process.tids += [cpu["thread-id"] for cpu in guest.qmp("query-cpus-fast") if cpu["thread-id"] not in guest.process.tids]


def stop_and_plug(guest):
    """Into a guest that stands still, and whose TSC has gone on since."""
    stop_cont(guest)
    guest.qmp("stop")
    time.sleep(1)
    plug(guest)
    time.sleep(1)
    guest.qmp("cont")


def migrate_and_plug(guest):
    """Into the process where the guest arrived."""
    migrate_unix(guest)
    time.sleep(1)
    plug(guest)


FIRST = {
    "system_reset while stopped": reset_while_stopped,
    "plug in a vCPU": plug,
    "stop, plug in a vCPU": stop_and_plug,
    "migration, plug in a vCPU": migrate_and_plug,
}


# Operations, as in operations.py.

def fan_out(guest):
    """One file, and eight guests from it at once. Their readings go to the notes; the first one stays."""
    path = guest.scratch / "migration.file"
    began, begin, offsets = time.monotonic_ns(), guest.counts(), guest.process.offsets()
    guest.qmp("migrate", uri=f"file:{path}")
    guest.qmp.wait_migration("completed", timeout=TIMEOUT)
    guest.collect()
    known, saved = guest.counts(), copy.deepcopy(guest.timelines)
    time.sleep(1)
    clones = [guest.spawn("-incoming", f"file:{path}") for _ in range(CLONES)]
    entries, timelines, memories = [], [copy.deepcopy(saved) for _ in clones], []

    def look():
        for memory, timeline in zip(memories, timelines):
            for which, ring in guest.rings.items():
                timeline[which].update(memory.slots(ring))

    try:
        for clone in clones:
            clone.connect()
            clone.qmp.wait_status("running", timeout=TIMEOUT)
            # It started some time before.
            entries.append({"name": f"clone {len(entries) + 1} of {CLONES}", "console": 0, "began_ns": began,
                            "runs_ns": time.monotonic_ns(), "offsets_before": offsets, "offsets_after": clone.offsets(),
                            "before": guest.slots({which: max(0, begin[which] - 1) for which in begin}, known)})
            memories.append(Memory(clone.memory))
            look()
        # Eight guests share two CPUs.
        end = time.monotonic() + 8
        while time.monotonic() < end:
            look()
            time.sleep(0.5)
    finally:
        for memory in memories:
            memory.close()
    for clone, entry, timeline in zip(clones, entries, timelines):
        entry["after"] = {"/".join(map(str, which)): b"".join(line.part(known[which], line.count)).hex()
                          for which, line in timeline.items()}
        entry["reported"] = guest.reported(clone.qmp)
        entry["ended_ns"] = time.monotonic_ns()
        entry["printed"] = clone.console.read_text(errors="replace")
    guest.notes["clones"] = entries
    guest.timelines = timelines[0]
    guest.move_to(clones[0])
    for clone in clones[1:]:
        clone.end()
        clone.memory.unlink()
    path.unlink()


def suspend(guest):
    """The guest goes to sleep (S3) by itself; QEMU wakes it up later, which resets its vCPUs."""
    guest.qmp.wait_event("SUSPEND", timeout=TIMEOUT)
    guest.collect()
    time.sleep(5)
    guest.qmp("system_wakeup")
    guest.qmp.wait_event("WAKEUP", timeout=TIMEOUT)


def title(pause):
    return f"a pause of {pause}"


def pause_for(seconds):
    """Of the guest, imitated (interpose.c)."""

    def operation(guest, unwarned=False):
        guest.qmp("stop")
        time.sleep(1)
        path = pathlib.Path(f"/tmp/clock-guest-pause.{guest.process.pid}")
        path.write_text(f"{seconds * 10**9}{' unwarned' * unwarned}")
        try:
            guest.qmp("cont")
        finally:
            path.unlink()

    return operation


PAUSES_S = {"1 min": 60, "10 min": 600, "1 h": 3600, "10 h": 36_000, "3 days": 259_200, "60 days": 5_184_000}

FAN_OUT, SNAPSHOT = f"migration to a file, {CLONES} clones", "savevm, loadvm by another QEMU"
SUSPEND = "suspend to RAM, wake up"
TO_STOCK, TO_PATCHED = "migration to stock", "migration to patched"

OPERATIONS = {
    FAN_OUT: fan_out,
    SNAPSHOT: savevm_new_process,
    SUSPEND: suspend,
    TO_STOCK: migrate_unix,
    TO_PATCHED: migrate_unix,
    **{title(name): pause_for(seconds) for name, seconds in PAUSES_S.items()},
}
