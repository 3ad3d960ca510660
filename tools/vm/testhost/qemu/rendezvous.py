# SPDX-License-Identifier: GPL-2.0-only
"""The drivers in two connected test hosts wait for each other: one has the guest, the other receives it."""

import os
import socket
import time

# The guest itself comes through the port below this one.
PORT = 4445
TIMEOUT = 240


def invite():
    """In the host that receives the guest: let it come. Returns once the other host has called accept()."""
    with socket.create_server((os.environ["CLOCK_GUEST_ADDRESS"], PORT)) as server:
        server.settimeout(TIMEOUT)
        return server.accept()[0]


def accept():
    """In the host that has the guest: wait until the other host has called invite()."""
    end = time.monotonic() + TIMEOUT
    while True:
        try:
            peer = socket.create_connection((os.environ["CLOCK_GUEST_PEER"], PORT), timeout=TIMEOUT)
            peer.settimeout(TIMEOUT)
            return peer
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def part(peer):
    """Both hosts have finished with the guest: returns once the other host has called part(), too."""
    peer.shutdown(socket.SHUT_WR)
    while peer.recv(1):
        pass
    peer.close()
