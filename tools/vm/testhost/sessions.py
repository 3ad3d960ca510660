# SPDX-License-Identifier: GPL-2.0-only
"""Sessions of the kernel's Live Update Orchestrator (LUO): files that outlive a kernel. For use inside a test host.

A session that is created lives as long as its descriptor is open, until a kexec; then the next kernel, and
only that one, has it by its name.
"""

import fcntl
import os
import struct

DEVICE = "/dev/liveupdate"

# From the kernel's include/uapi/linux/liveupdate.h.
CREATE_SESSION = 0xba00
RETRIEVE_SESSION = 0xba01
SESSION_PRESERVE_FD = 0xba40
SESSION_RETRIEVE_FD = 0xba41
SESSION_FINISH = 0xba42

OPEN_SESSION, SESSION_FD, FINISH = struct.Struct("Ii64s"), struct.Struct("IiQ"), struct.Struct("II")


def memfd(name, content):
    """A new memfd with `content`."""
    file = os.memfd_create(name)
    os.write(file, content)
    return file


def _open(request, name):
    if len(name) >= 64:
        raise ValueError(f"no session can have this name: {name}")
    argument = bytearray(OPEN_SESSION.pack(OPEN_SESSION.size, -1, name.encode()))
    device = os.open(DEVICE, os.O_RDWR)
    try:
        fcntl.ioctl(device, request, argument)
    finally:
        os.close(device)
    return OPEN_SESSION.unpack(argument)[1]


def create(name):
    """A new session's descriptor."""
    return _open(CREATE_SESSION, name)


def retrieve(name):
    """The descriptor of a session that the previous kernel handed over."""
    return _open(RETRIEVE_SESSION, name)


def preserve(session, token, file):
    """Hand a memfd over to the next kernel; its size is fixed from now on."""
    fcntl.ioctl(session, SESSION_PRESERVE_FD, SESSION_FD.pack(SESSION_FD.size, file, token))


def retrieve_file(session, token):
    """The memfd that was preserved as `token`."""
    argument = bytearray(SESSION_FD.pack(SESSION_FD.size, -1, token))
    fcntl.ioctl(session, SESSION_RETRIEVE_FD, argument)
    return SESSION_FD.unpack(argument)[1]


def finish(session):
    """End a session that was retrieved; its files stay."""
    fcntl.ioctl(session, SESSION_FINISH, FINISH.pack(FINISH.size, 0))
    os.close(session)
