# SPDX-License-Identifier: GPL-2.0-only
"""How Firecracker is started, saved and restored."""

from .guest import Guest, Process


class Firecracker(Process):
    """One process; its output is the guest's console."""

    def launch(self):
        self.log.touch()
        # Its build has no filter for this target, only an empty one.
        self.start([self.binary, "--api-sock", self.socket, "--no-seccomp", "--log-path", self.log, "--level", "Warn"], self.console)

    def boot(self):
        guest = self.guest
        self.launch()
        self.api("PUT", "/boot-source", kernel_image_path=str(guest.kernel), initrd_path=str(guest.initrd), boot_args=guest.cmdline())
        self.api("PUT", "/machine-config", vcpu_count=guest.case["vcpus"], mem_size_mib=int(guest.case["memory"].removesuffix("M")))
        self.api("PUT", "/actions", action_type="InstanceStart")

    def pause(self):
        self.api("PATCH", "/vm", state="Paused")

    def snapshot(self, folder):
        self.api("PUT", "/snapshot/create", snapshot_type="Full", snapshot_path=f"{folder}/state", mem_file_path=f"{folder}/memory")

    def restore(self, folder, clock_realtime=False):
        self.launch()
        self.api("PUT", "/snapshot/load", snapshot_path=f"{folder}/state", clock_realtime=clock_realtime,
                 mem_backend={"backend_type": "File", "backend_path": f"{folder}/memory"})

    def resume(self):
        self.api("PATCH", "/vm", state="Resumed")


class FirecrackerGuest(Guest):
    """A guest of it."""

    PROCESS = Firecracker
