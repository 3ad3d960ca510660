# SPDX-License-Identifier: GPL-2.0-only
"""The kernel that a test host boots, and the modules that it loads."""

import os
import pathlib

from paths import lock_kernel

from .outcome import HostError

IMAGE = "arch/x86/boot/bzImage"


class Kernel:
    """A built kernel tree or O= folder; as long as this object lives, no other clone's setup changes it."""

    def __init__(self, kdir=None):
        """`kdir` is the folder; None stands for the kernel that `make setup` built."""
        self.kdir, self._lock = (pathlib.Path(kdir).resolve(), None) if kdir else lock_kernel()
        self.image = self.kdir / IMAGE
        if not self.image.exists():
            raise HostError(f"no {self.image}: build the kernel there, or leave KDIR unset")

    def kvm_modules(self, vendor="amd"):
        """KVM's modules in load order, without those that are built in."""
        listed = self.kdir / "modules.builtin"
        built_in = listed.read_text().split() if listed.exists() else []
        modules = [self.kdir / name for name in ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", f"arch/x86/kvm/kvm-{vendor}.ko")
                   if f"kernel/{name}" not in built_in]
        if missing := [str(module) for module in modules if not module.exists()]:
            raise HostError(f"no {', '.join(missing)}: build the kernel with CONFIG_KVM=m and CONFIG_KVM_{vendor.upper()}=m")
        return modules


def clock_guest_module(path):
    """The real path of kvm_clock_guest.ko, which must exist."""
    if not os.path.exists(path):
        raise HostError(f"no {os.path.realpath(path)}: run `make modules` first")
    return os.path.realpath(path)
