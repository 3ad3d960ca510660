# SPDX-License-Identifier: GPL-2.0-only
"""How Cloud Hypervisor is started, saved and restored."""

import pathlib

from .guest import Guest, Process

# Without it in the kernel, a VMM cannot have filters, and ends.
SECCOMP = pathlib.Path("/proc/sys/kernel/seccomp")


class CloudHypervisor(Process):
    """One process."""

    def command(self, *arguments):
        # All processes have the same console, whose name is in the snapshot; each empties it.
        self.console = self.guest.scratch / "serial"
        return [self.binary, "--api-socket", f"path={self.socket}", "--seccomp", "true" if SECCOMP.exists() else "false", *arguments]

    def boot(self):
        guest = self.guest
        self.start(self.command(
            "--kernel", guest.kernel, "--initramfs", guest.initrd, "--cmdline", guest.cmdline(),
            "--cpus", f"boot={guest.case['vcpus']}", "--memory", f"size={guest.case['memory']}",
            "--serial", f"file={guest.scratch}/serial", "--console", "off"))

    def pause(self):
        self.api("PUT", "/api/v1/vm.pause")

    def snapshot(self, folder):
        self.api("PUT", "/api/v1/vm.snapshot", destination_url=f"file://{folder}")
        self.console = self.console.rename(self.guest.scratch / f"console-{self.number}")

    def restore(self, folder):
        self.start(self.command())
        self.api("PUT", "/api/v1/vm.restore", source_url=f"file://{folder}")

    def resume(self):
        self.api("PUT", "/api/v1/vm.resume")


class CloudHypervisorGuest(Guest):
    """A guest of it."""

    PROCESS = CloudHypervisor
