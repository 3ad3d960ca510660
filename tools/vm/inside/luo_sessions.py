# SPDX-License-Identifier: GPL-2.0-only
"""Sessions of the kernel's Live Update Orchestrator, made from those of clockguest but faulty.

`clockguest save --luo` keeps a session open until the kexec, and its memfds are in /proc. The copies
here differ in one way each; the next kernel hands them over as faithfully as the good ones.
"""

import os
import pathlib
import struct

from testhost import sessions as luo

# clockguest's tokens, and the names of its memfds: tools/clockguest/src/update/session.rs.
FILES = {1: "clockguest memory", 2: "clockguest clocks", 3: "clockguest vCPUs"}
MEMORY, CLOCKS, REST = FILES


def contents(pid):
    """The content of each memfd that the clockguest with this process id preserves, by token."""
    found = {}
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link)
        for token, name in FILES.items():
            if target.startswith(f"/memfd:{name} "):
                found[token] = link.read_bytes()
    return found


def flipped(content, position):
    changed = bytearray(content)
    changed[position] ^= 1
    return bytes(changed)


# For each session, the files that differ from those of a good one; None: it has no such file.
CHANGES = {
    "copy": lambda whole: {},
    "another version": lambda whole: {CLOCKS: whole[CLOCKS][:8] + struct.pack("<I", 2) + whole[CLOCKS][12:]},
    "truncated": lambda whole: {CLOCKS: whole[CLOCKS][:-1]},
    "corrupted": lambda whole: {CLOCKS: flipped(whole[CLOCKS], len(whole[CLOCKS]) // 2)},
    "not clocks": lambda whole: {CLOCKS: flipped(whole[CLOCKS], 0)},
    "empty": lambda whole: {CLOCKS: b""},
    "no clocks": lambda whole: {CLOCKS: None},
    "vCPUs corrupted": lambda whole: {REST: flipped(whole[REST], len(whole[REST]) // 2)},
    "too little memory": lambda whole: {MEMORY: whole[MEMORY][:-4096]},
    "no files": lambda whole: dict.fromkeys(FILES),
}

# Those of create_faulty(), and one that nobody created.
NAMES = (*CHANGES, "never created")


def create_faulty(whole):
    """Sessions with a fault each, from the files of a good one; keep what is returned open until the kexec."""
    sessions = []
    for name, change in CHANGES.items():
        sessions.append(luo.create(name))
        for token, content in {**whole, **change(whole)}.items():
            if content is not None:
                file = luo.memfd(FILES[token], content)
                luo.preserve(sessions[-1], token, file)
                os.close(file)
    return sessions
