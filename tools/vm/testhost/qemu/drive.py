# SPDX-License-Identifier: GPL-2.0-only
"""Inside the test host: boot the guests of a plan, carry out its operations, and write down all measurements.

usage: drive-guests PLAN    (`tools/vm/host qemu` writes the plan, and judges the results)

Results go to $CLOCK_GUEST_RESULTS: a folder for each case, the test host's own clocks, and KVM's trace.
A line `done CASE` reports each case that has ended, in whatever way.

If the plan goes on after a kexec, this program starts again in the next kernel. Its results are in a folder of their own.
"""

import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import threading
import time
import traceback

from .. import kexec
from ..qmp import QMPError
from ..vmm.cloud_hypervisor import CloudHypervisorGuest
from ..vmm.firecracker import FirecrackerGuest
from ..vmm.guest import OPERATIONS as VMM_OPERATIONS
from . import operations, over_kexec, ways
from .machine import Guest, GuestError

RESULTS = pathlib.Path(os.environ["CLOCK_GUEST_RESULTS"]) / (f"kexec-{count}" if (count := kexec.count()) else "")
SCRATCH = pathlib.Path("/tmp/qemu")
TRACING = pathlib.Path("/sys/kernel/tracing")
EVENTS = ("kvm_pvclock_update", "kvm_write_tsc_offset")

GUESTS = {"qemu": Guest, "cloud-hypervisor": CloudHypervisorGuest, "firecracker": FirecrackerGuest}
OPERATIONS = {**operations.OPERATIONS, **ways.OPERATIONS, **VMM_OPERATIONS, "kexec": over_kexec.leave}

# How a guest may fail; any other exception is a bug here.
FAILURES = (GuestError, QMPError, LookupError, OSError)

# Seconds for a guest's watchdog to find its TSC unstable; it checks twice a second.
WATCH = 3


def observe(probe):
    """Start to collect the test host's clocks and KVM's trace."""
    if not (TRACING / "events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], check=True)
    (TRACING / "trace_clock").write_text("mono")
    for event in EVENTS:
        (TRACING / f"events/kvm/{event}/enable").write_text("1")
    files = [open(RESULTS / name, "w") for name in ("host-clock", "trace")]
    commands = [probe, "lines"], ["cat", TRACING / "trace_pipe"]
    return [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file) for command, file in zip(commands, files)], files


def operate(guest, operation):
    """Do one operation, and add the readings before and after it to the guest's list."""
    guest.collect()
    guest.clear_events()
    begin = guest.counts()
    entry = {"name": operation["name"], "console": len(guest.console()), "offsets_before": guest.process.offsets()}
    guest.operations.append(entry)
    entry["began_ns"] = time.monotonic_ns()
    entry["seen"] = OPERATIONS[operation["name"]](guest, **operation.get("options", {}))
    entry["runs_ns"] = time.monotonic_ns()
    guest.check_alive()
    entry["reported"] = None if guest.gone else guest.reported(guest.qmp)
    entry["offsets_after"] = guest.process.offsets()
    # The last readings that the guest remembers from before the operation.
    known = guest.collect()
    entry["before"] = guest.slots({which: max(0, min(begin[which], count) - 1) for which, count in known.items()}, known)
    if not guest.gone:
        guest.watch(operation["watch"] or WATCH)
        guest.collect_until(time.monotonic() + 120, 5)
    entry["after"] = guest.slots(known)
    entry["ended_ns"] = time.monotonic_ns()


def run(case, binaries, kernels, initrd):
    guest = GUESTS[case["vmm"]](case, binaries, kernels[case["kernel"]], initrd, RESULTS / case["slug"], SCRATCH / case["slug"])
    error = None
    try:
        guest.boot()
        guest.watch(case["settles"])
        guest.booted = guest.slots()
        for operation in case["operations"]:
            operate(guest, operation)
    except FAILURES as problem:
        error = f"{type(problem).__name__}: {problem}"
    except Exception:
        error = traceback.format_exc()
    finally:
        guest.save(guest.folder / "result.json", error)
        guest.end()


def work(cases, files, *arguments):
    while True:
        try:
            case = cases.get_nowait()
        except queue.Empty:
            return
        print(f"begin {case['slug']}", flush=True)
        run(case, *arguments)
        # The case is judged outside next, with the files up to this moment.
        time.sleep(0.2)
        for file in files:
            os.fsync(file.fileno())
        print(f"done {case['slug']}", flush=True)


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    plan = json.loads(pathlib.Path(sys.argv[1]).read_text())
    boots, boot = plan["boots"], kexec.count()
    SCRATCH.mkdir(exist_ok=True)
    RESULTS.mkdir(exist_ok=True)

    # Read from the emulated host's root once, not at each start.
    def local(path):
        return pathlib.Path(shutil.copy(path, SCRATCH / f"{len(os.listdir(SCRATCH))}-{os.path.basename(path)}"))

    binaries = {name: local(path) for name, path in plan["binaries"].items()}
    kernels = {name: local(path) for name, path in plan["kernels"].items()}
    initrd, probe = local(plan["initrd"]), local(plan["probe"])
    observers, files = observe(probe)
    for phase in boots[boot]:
        cases = queue.Queue()
        for case in phase:
            cases.put(case)
        workers = [threading.Thread(target=work, args=(cases, files, binaries, kernels, initrd)) for _ in range(plan["at_once"])]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for observer in observers:
        observer.terminate()
        observer.wait()
    if boot + 1 < len(boots):
        kexec.kexec()
