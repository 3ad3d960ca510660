# SPDX-License-Identifier: GPL-2.0-only
"""Inside the test host: take guests over a kexec with cpr-reboot, in sessions of the kernel's Live Update Orchestrator.

A guest's session has its memory, in which it runs again, QEMU's migration stream, and the boot id of the kernel that
it ran under. That the next kernel has the session proves that only a kexec came in between, so the TSC has counted on.
"""

import os
import pathlib
import threading
import time

from .. import kexec, sessions
from . import operations

MEMORY, STREAM, BOOT = FILES = range(3)

# What is preserved, until the kexec ends this process.
_preserved = []
# Only one process at a time has the device open, and only once.
_device = threading.Lock()


def _path(file):
    """Where QEMU finds a descriptor of this process."""
    return pathlib.Path(f"/proc/{os.getpid()}/fd/{file}")


def new_memory(guest):
    """A place for the guest's memory that can be preserved."""
    guest.files[MEMORY] = os.memfd_create("memory")
    return _path(guest.files[MEMORY])


def leave(guest):
    """Stop the guest, and preserve it for the next kernel."""
    guest.files[STREAM] = os.memfd_create("stream")
    operations.save_for_reboot(guest, f"file:{_path(guest.files[STREAM])}")
    guest.files[BOOT] = sessions.memfd("boot", kexec.boot_id().encode())
    with _device:
        session = sessions.create(guest.case["slug"])
    for token in FILES:
        sessions.preserve(session, token, guest.files[token])
    _preserved.append(session)
    guest.notes["boot_id"], guest.notes["host_khz"] = kexec.boot_id(), kexec.tsc_khz()
    guest.gone = True


def arrive(guest):
    """Take the guest out of its session, and let it run again."""
    with _device:
        session = sessions.retrieve(guest.case["slug"])
    guest.files = {token: sessions.retrieve_file(session, token) for token in FILES}
    sessions.finish(session)
    boot_id = os.pread(guest.files[BOOT], 64, 0).decode()
    if ahead := guest.case["wall_ahead"]:
        time.clock_settime(time.CLOCK_REALTIME, time.time() + ahead)
    process = guest.spawn("-incoming", "defer", memory=_path(guest.files[MEMORY]),
                          properties=[word.format(boot_id=boot_id) for word in guest.case["properties"]])
    operations.load_after_reboot(guest, process, f"file:{_path(guest.files[STREAM])}")
    guest.notes["host_khz"] = kexec.tsc_khz()
