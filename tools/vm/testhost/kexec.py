# SPDX-License-Identifier: GPL-2.0-only
"""Replace the kernel of a test host by the same one. For use inside the host.

tools/vm/inside/init runs the command anew in each kernel, as the kernel command line is the same but for a marker
that counts the kexecs.
"""

import ctypes
import os
import pathlib
import re
import subprocess
import sys

MARKER = "clock_guest_kexecs"
# What the kernels of a host need on their command lines for LUO sessions.
LIVE_UPDATE = "kho=on liveupdate=on"

# From the kernel's uapi headers; x86-64.
SYS_KEXEC_FILE_LOAD = 320
KEXEC_FILE_NO_INITRAMFS = 4
LINUX_REBOOT_CMD_KEXEC = 0x45584543


def count():
    """How many kexecs there have been since the host was powered on."""
    marker = re.search(rf"\b{MARKER}=(\d+)", pathlib.Path("/proc/cmdline").read_text())
    return int(marker[1]) if marker else 0


def boot_id():
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def tsc_khz():
    """As this kernel has calibrated the TSC."""
    printed = subprocess.run(["dmesg"], stdout=subprocess.PIPE, text=True, check=True).stdout
    mhz, = re.findall(r"Refined TSC clocksource calibration: (\d+\.\d{3}) MHz", printed)
    return round(float(mhz) * 1000)


def kexec():
    """Replace the kernel; returns only by SystemExit, if that fails."""
    image = pathlib.Path(os.environ["CLOCK_GUEST_KDIR"]) / "arch/x86/boot/bzImage"
    libc = ctypes.CDLL(None, use_errno=True)
    words = pathlib.Path("/proc/cmdline").read_text().split()
    words = [word for word in words if not word.startswith(f"{MARKER}=")] + [f"{MARKER}={count() + 1}"]
    command_line = " ".join(words).encode() + b"\0"
    with open(image, "rb") as kernel:
        loaded = libc.syscall(SYS_KEXEC_FILE_LOAD, kernel.fileno(), -1, ctypes.c_ulong(len(command_line)),
                              command_line, ctypes.c_ulong(KEXEC_FILE_NO_INITRAMFS))
    if loaded != 0:
        sys.exit(f"kexec_file_load of {image}: {os.strerror(ctypes.get_errno())}; "
                 "it needs CONFIG_KEXEC_FILE and CONFIG_RELOCATABLE")
    sys.stdout.flush()
    os.sync()
    libc.reboot(LINUX_REBOOT_CMD_KEXEC)
    sys.exit(f"reboot(LINUX_REBOOT_CMD_KEXEC): {os.strerror(ctypes.get_errno())}")
