# SPDX-License-Identifier: GPL-2.0-only
"""Paths of the repository, and of what `make setup` built."""

import fcntl
import pathlib
import subprocess

REPO = pathlib.Path(__file__).resolve().parents[1]

# What `make setup` builds only if asked to.
OPTIONS = {
    "qemu-stock": "QEMU=1", "qemu-clock-guest": "QEMU=1", "qemu-source": "QEMU=1", "guest-kernels": "QEMU=1",
    "kdir-debug": "DEBUG=1", "kdir-kcsan": "DEBUG=1", "kdir-debian": "DEBIAN=1", "kdir-bench": "BENCH=1", "kdir-bench-off": "BENCH=1",
}


class NotBuilt(Exception):
    """What was asked for does not exist yet; the message names the command that builds it."""


def built(name):
    """Return the path that `scripts/env NAME` prints."""
    asked = subprocess.run([REPO / "scripts/env", name], stdout=subprocess.PIPE, text=True)
    if asked.returncode != 0:
        raise NotBuilt(f"no {name} yet: run `{' '.join(['make setup', OPTIONS.get(name, '')]).strip()}` first")
    return pathlib.Path(asked.stdout.strip())


def lock_kernel():
    """Return the kernel of the cache, and the lock that keeps another clone's setup from changing it."""
    lock = open(built("kdir").parent / "lock")
    fcntl.flock(lock, fcntl.LOCK_SH)
    # Another series may have been applied while this waited.
    return built("kdir"), lock
