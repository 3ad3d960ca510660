# SPDX-License-Identifier: GPL-2.0-only
"""A guest of another VMM than QEMU, and the operations on it."""

import os
import shutil
import subprocess
import time

from ..qemu import machine
from ..qemu.operations import PAUSE
from .api import API
from .memory import ProcessMemory

SNAPSHOT = "snapshot, new process"
SNAPSHOT_MODULE_GONE = "snapshot, new process without the module"


class Process:
    """One process of a VMM; a subclass for each VMM has its commands and requests."""

    def __init__(self, guest):
        self.guest = guest
        self.number = len(guest.processes)
        guest.processes.append(self)
        self.binary = guest.binaries[guest.case["binary"]]
        self.socket = guest.scratch / f"api-{self.number}"
        self.log = guest.scratch / f"log-{self.number}"
        self.console = guest.scratch / f"console-{self.number}"
        self.tids, self.pid, self.api, self._process = [], None, None, None

    def start(self, command, output=None):
        """Start it; its output is a file, by default the log."""
        with open(output or self.log, "a") as file:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self.pid = self._process.pid
        self.api = API(self.socket, self.alive, machine.START_TIMEOUT)

    def seen(self):
        """Its threads, once all vCPUs have one."""
        self.tids = [int(name) for name in os.listdir(f"/proc/{self.pid}/task")]

    def alive(self):
        return self._process is not None and self._process.poll() is None

    def output(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def offsets(self):
        return machine.tsc_offsets(self.tids, self.guest.case["vcpus"])

    def end(self):
        """Kill it."""
        if self._process:
            self._process.kill()
            self._process.wait()


class Guest(machine.Guest):
    """A Linux guest with the probe in it; a subclass for each VMM names its class of processes."""

    PROCESS: type[Process]

    # These VMMs report nothing by themselves.
    qmp = None

    def clear_events(self):
        pass

    def reported(self, qmp):
        return None

    def open_memory(self):
        megabytes = int(self.case["memory"].removesuffix("M"))
        return ProcessMemory(self.process.pid, megabytes << 20)

    def cmdline(self):
        return f"console=ttyS0 quiet panic=-1 {self.case['boot']} probe.clocksource={self.case['clocksource']}"

    def boot(self):
        end = time.monotonic() + machine.BOOT_TIMEOUT
        self.process = self.PROCESS(self)
        self.process.boot()
        self.await_probe(end)
        self.process.seen()
        self.collect_until(end, 10)

    def snapshot(self, between, **options):
        """Save the guest, end the VMM, call `between`, and restore the guest in a new process."""
        folder = self.scratch / f"snapshot-{self.process.number}"
        folder.mkdir()
        self.process.pause()
        self.process.snapshot(folder)
        self.close_memory()
        self.process.end()
        # They are elsewhere in another process.
        self.rings = None
        between()
        self.process = self.PROCESS(self)
        self.process.restore(folder, **options)
        self.process.resume()
        self.process.seen()
        # What is mapped stays.
        shutil.rmtree(folder)


def snapshot(guest, **options):
    guest.snapshot(lambda: time.sleep(PAUSE), **options)


def snapshot_module_gone(guest, **options):
    guest.snapshot(lambda: subprocess.run(["rmmod", "kvm_clock_guest"], check=True), **options)


OPERATIONS = {SNAPSHOT: snapshot, SNAPSHOT_MODULE_GONE: snapshot_module_gone}
