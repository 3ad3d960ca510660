# SPDX-License-Identifier: GPL-2.0-only
"""A guest, the QEMU processes that run it one after the other, and the collection of its readings."""

import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import time

from . import over_kexec, rendezvous, ways
from ..qmp import QMP, QMPError
from .readings import LONG_SLEEPERS, PAGE, READINGS, Memory, Timeline

# The guest's address of vmclock's page, and a field of struct vmclock_abi there.
VMCLOCK, DISRUPTION_MARKER, DISRUPTION_MARKER_AT = 0xFEFF_B000, struct.Struct("<Q"), 16
KVM_DEBUG = pathlib.Path("/sys/kernel/debug/kvm")

# Emulation within emulation, on a machine that may be busy.
START_TIMEOUT = 120
BOOT_TIMEOUT = 120


# Where a guest comes from that the previous kernel handed over.
SESSION = "session"


class GuestError(Exception):
    """The guest or its QEMU failed."""


def tsc_offsets(tids, vcpus):
    """The TSC offset of each vCPU of a process, from KVM's debugfs, which names the thread that made the VM."""
    found = {}
    for tid in tids:
        for vcpu in KVM_DEBUG.glob(f"{tid}-*/vcpu*"):
            found[int(vcpu.name[4:])] = int((vcpu / "tsc-offset").read_text()) % 2**64
    if len(found) != vcpus:
        raise GuestError(f"KVM shows {len(found)} vCPUs of threads {tids}")
    return [found[vcpu] for vcpu in sorted(found)]


class Process:
    """One QEMU process, or its successor through exec."""

    def __init__(self, guest, binary, properties, memory, arguments=(), pid=None, preload=None):
        """Start it, or adopt the process `pid`, which will exec."""
        self.guest, self.binary, self.properties, self.memory = guest, binary, properties, memory
        self.number = len(guest.processes)
        guest.processes.append(self)
        self.qmp_path = guest.scratch / f"qmp-{self.number}"
        self.console = guest.scratch / f"console-{self.number}"
        self.log = guest.scratch / f"qemu-{self.number}"
        self.qmp, self.tids, self._process = None, [], None
        self.pid = pid
        if pid is None:
            with open(self.log, "w") as log:
                self._process = subprocess.Popen(self.command(*arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                                 env={**os.environ, **self.environment(preload)})
            self.pid = self._process.pid

    def environment(self, preload):
        """The library between QEMU and the C library, and its argument, which may be this process' own."""
        library, _, argument = self.guest.case["preload"].partition(",")
        argument = preload or argument
        return {"LD_PRELOAD": library, "CLOCK_GUEST_PRELOAD": argument}

    def command(self, *arguments):
        guest = self.guest
        limit = f" probe.limit={guest.case['limit']}" if guest.case["limit"] else ""
        spin = f" probe.spin={guest.case['spin']}" if guest.case["spin"] else ""
        suspend = f" probe.suspend={guest.case['suspend']}" if guest.case["suspend"] else ""
        cpus = f" probe.cpus={guest.case['vcpus']}" if guest.case["plugged"] else ""
        timers = f" probe.timers={guest.case['timers']}" if guest.case["timers"] else ""
        machine = ",".join([guest.case["machine"], "memory-backend=ram", "aux-ram-share=on", *self.properties])
        return [
            str(guest.binaries[self.binary]), "-accel", "kvm", "-machine", machine,
            "-cpu", guest.case["cpu"], "-smp", f"{guest.case['vcpus'] - guest.case['plugged']},maxcpus={guest.case['vcpus']}",
            "-m", guest.case["memory"], "-object", f"memory-backend-file,id=ram,size={guest.case['memory']},mem-path={self.memory},share=on",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(guest.kernel), "-initrd", str(guest.initrd),
            "-append", f"console=ttyS0 quiet panic=-1 {guest.case['boot']} probe.clocksource={guest.case['clocksource']}{limit}{spin}{suspend}{cpus}{timers}",
            "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
            "-qmp", f"unix:{self.qmp_path},server=on,wait=off", "-msg", "timestamp=on",
            *(os.path.expandvars(argument) for argument in guest.case["arguments"]), *guest.plugged, *arguments,
        ]

    def alive(self):
        if self._process:
            return self._process.poll() is None
        return pathlib.Path(f"/proc/{self.pid}").exists()

    def connect(self):
        try:
            self.qmp = QMP(self.qmp_path, self.alive, START_TIMEOUT)
        except QMPError as error:
            raise GuestError(f"{error}; QEMU printed: {self.output()[-500:]}") from error
        self.tids = [self.pid, *(cpu["thread-id"] for cpu in self.qmp("query-cpus-fast"))]
        return self.qmp

    def output(self):
        # The successor through exec appends to the same log.
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def offsets(self):
        return tsc_offsets(self.tids, self.guest.case["vcpus"])

    def end(self):
        """Kill it."""
        if self.qmp:
            self.qmp.close()
        if self._process:
            self._process.kill()
            self._process.wait()

    def adopt(self, other):
        """Take over the process object of `other`, which has become this one, to end it."""
        self._process, other._process = other._process, None


class Guest:
    """A Linux guest with the probe in it."""

    def __init__(self, case, binaries, kernel, initrd, folder, scratch):
        """`folder` outlives the test host, but is slow; `scratch` is fast, and is removed."""
        self.case, self.binaries, self.kernel, self.initrd = case, binaries, kernel, initrd
        self.folder, self.scratch = folder, scratch
        for path in (folder, scratch):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        self.processes, self.booted, self.operations = [], {}, []
        # The connection to the other host's driver, and the time when the guest arrived from there or from a file.
        self.peer = self.arrived_ns = None
        self.rings, self.timelines = None, {}
        # It has moved to another host.
        self.gone = False
        # QEMU's arguments for vCPUs that were plugged in, and more measurements.
        self.plugged, self.notes = [], {}
        # The descriptors of the files that outlive the kernel.
        self.files = {}
        self._memory = None
        self.process = None

    # Its processes.

    def new_memory(self):
        if self.case["outlives_kernel"]:
            return over_kexec.new_memory(self)
        return self.scratch / f"memory-{len(self.processes)}"

    def spawn(self, *arguments, memory=None, binary=None, properties=None, preload=None):
        """Start another process that can take the guest."""
        return Process(self, binary or self.case["binary"], self.case["properties"] if properties is None else properties,
                       memory or self.new_memory(), arguments, preload=preload)

    def move_to(self, process):
        """The guest runs in this process now; end the one where it ran before."""
        old, self.process = self.process, process
        if old and old is not process:
            self.close_memory()
            old.end()
            if old.memory != process.memory:
                old.memory.unlink(missing_ok=True)
        if not process.qmp:
            process.connect()

    @property
    def qmp(self):
        return self.process.qmp

    def await_probe(self, end):
        """Wait until the guest starts its probe."""
        while "guest-init: clocksource" not in self.console():
            self.check_alive()
            if time.monotonic() > end:
                raise GuestError(f"the guest did not boot within {BOOT_TIMEOUT} s")
            time.sleep(0.1)

    def boot(self):
        """Start the guest, and wait until the probe has taken some new readings."""
        incoming = self.case["incoming"]
        if incoming == SESSION:
            over_kexec.arrive(self)
        else:
            self.move_to(self.spawn(*["-incoming", os.path.expandvars(incoming)] if incoming else []))
        end = time.monotonic() + BOOT_TIMEOUT
        if incoming:
            if incoming.startswith("tcp:"):
                self.peer = rendezvous.invite()
            self.qmp.wait_status("running", timeout=BOOT_TIMEOUT)
            self.arrived_ns = time.monotonic_ns()
            self.notes["reported"] = self.reported(self.qmp)
        else:
            self.await_probe(end)
        if self.case["first"]:
            ways.FIRST[self.case["first"]](self)
            end = time.monotonic() + BOOT_TIMEOUT
        self.collect_until(end, 10)

    def console(self):
        return "".join(process.console.read_text(errors="replace") for process in self.processes if process.console.exists())

    def check_alive(self):
        if not self.process.alive():
            raise GuestError(f"the VMM ended: {self.process.output()[-500:]}")
        if re.search("guest-init: (no|the) |Kernel panic", console := self.console()):
            raise GuestError("the guest failed; its console's end: " + console[-800:])

    def clear_events(self):
        """The next ones are of the next operation."""
        self.qmp.events.clear()

    def reported(self, qmp):
        """What one of its QEMUs reports about the guest's clocks; None by a QEMU that does not know the command."""
        try:
            found = qmp("query-clock-guest")
        except QMPError:
            return None
        events = [event for event in qmp.events if event["event"] in ("CLOCK_GUEST_DISRUPTED", "WATCHDOG", "RESUME")]
        return {**found, "events": events, "marker": self.disruption_marker(qmp)}

    def disruption_marker(self, qmp):
        """Of device vmclock, which changes it when the guest's TSC did anything but go on."""
        if "vmclock" not in self.case["arguments"]:
            return None
        path = self.scratch / "vmclock"
        qmp("pmemsave", val=VMCLOCK, size=PAGE, filename=str(path))
        return DISRUPTION_MARKER.unpack_from(path.read_bytes(), DISRUPTION_MARKER_AT)[0]

    # Its readings.

    def open_memory(self):
        return Memory(self.process.memory)

    def close_memory(self):
        if self._memory:
            self._memory.close()
            self._memory = None

    def collect(self):
        """Collect new readings. Returns for each ring how many of the readings known before are still valid."""
        if self._memory is None:
            self._memory = self.open_memory()
        if self.rings is None:
            rings = self._memory.rings()
            # One for each vCPU, each thread that only sleeps and each task that spins, and one for the charges of a limited task.
            if len(rings) < self.case["vcpus"] + LONG_SLEEPERS + self.case["timers"] + self.case["spin"] + (2 if self.case["limit"] else 0):
                return {}
            self.rings = rings
        return {which: self.timelines.setdefault(which, Timeline()).update(self._memory.slots(offsets))
                for which, offsets in self.rings.items()}

    def collect_until(self, end, more):
        """Collect until each vCPU has given `more` readings."""
        begin = []
        while True:
            self.check_alive()
            self.collect()
            now = self.readings()
            begin = begin or now
            if now and all(after >= before + more for before, after in zip(begin, now)):
                return
            if time.monotonic() > end:
                raise GuestError(f"the probe has read the clocks {now} times, after {begin} times, not {more} times more; "
                                 f"slots of all its rings: {self.counts()}")
            time.sleep(0.2)

    def slots(self, begin=None, end=None):
        """The slots of each ring between two counts, for a file."""
        return {"/".join(map(str, which)): b"".join(timeline.part(
            begin[which] if begin else 0, end[which] if end else timeline.count)).hex()
            for which, timeline in self.timelines.items()}

    def counts(self):
        return {which: timeline.count for which, timeline in self.timelines.items()}

    def readings(self):
        """The number of readings of each vCPU."""
        return [self.timelines[which].count for which in sorted(self.timelines) if which[0] == READINGS]

    def watch(self, seconds):
        """Let the guest run for a while, and collect its readings."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.5)
            self.check_alive()
            self.collect()

    # Its results.

    def save(self, path, error):
        """Write all measurements."""
        (self.folder / "console").write_text(self.console())
        (self.folder / "qemu").write_text("".join(process.output() for process in self.processes))
        path.write_text(json.dumps({
            "case": self.case, "error": error, "booted": self.booted, "operations": self.operations,
            "arrived_ns": self.arrived_ns, "offsets": self.process.offsets() if not error else None,
            "threads": [process.tids for process in self.processes], "notes": self.notes,
        }))

    def end(self):
        for process in self.processes:
            process.end()
        if self.peer:
            rendezvous.part(self.peer)
        self.close_memory()
        shutil.rmtree(self.scratch, ignore_errors=True)
