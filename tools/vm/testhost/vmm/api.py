# SPDX-License-Identifier: GPL-2.0-only
"""A client of a VMM's HTTP API at a Unix socket."""

import http.client
import json
import socket
import time


class APIError(OSError):
    """The VMM refused a request, or is gone."""


class Connection(http.client.HTTPConnection):
    """To a Unix socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class API:
    """Each request has a connection of its own."""

    def __init__(self, path, alive, timeout):
        """`alive` returns whether the VMM still runs; it may take `timeout` seconds to listen, and for each request."""
        self._path, self._timeout = path, timeout
        end = time.monotonic() + timeout
        while True:
            try:
                Connection(path, timeout).connect()
                return
            except OSError as error:
                if not alive():
                    raise APIError("the VMM ended before its API was there") from error
                if time.monotonic() > end:
                    raise APIError(f"no API within {timeout} s") from error
                time.sleep(0.05)

    def __call__(self, method, path, **body):
        connection = Connection(self._path, self._timeout)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise APIError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        if answer.status not in (200, 204):
            raise APIError(f"{method} {path}: status {answer.status}, {text}")
