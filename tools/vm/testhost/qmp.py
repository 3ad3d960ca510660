# SPDX-License-Identifier: GPL-2.0-only
"""A small client of QEMU's machine protocol (QMP)."""

import json
import socket
import time


class QMPError(Exception):
    """QEMU refused a command, or is gone."""


class QMP:
    """A connection to the monitor at a Unix socket."""

    def __init__(self, path, alive, timeout):
        """`alive` returns whether QEMU still runs; it may take `timeout` seconds to listen."""
        self.events = []
        self._buffer = b""
        end = time.monotonic() + timeout
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(path))
                break
            except OSError as error:
                self._socket.close()
                if not alive():
                    raise QMPError("QEMU ended before its monitor was there") from error
                if time.monotonic() > end:
                    raise QMPError(f"no monitor within {timeout} s") from error
                time.sleep(0.02)
        self._socket.settimeout(timeout)
        self._message()
        self("qmp_capabilities")

    def close(self):
        self._socket.close()

    def _message(self):
        while b"\n" not in self._buffer:
            try:
                chunk = self._socket.recv(65536)
            except OSError as error:
                raise QMPError(f"no answer from QEMU: {error}") from error
            if not chunk:
                raise QMPError("QEMU closed its monitor")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def __call__(self, command, **arguments):
        """Execute a command and return what it returns; underscores of names stand for dashes."""
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        except OSError as error:
            raise QMPError(f"{command}: {error}") from error
        while True:
            message = self._message()
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise QMPError(f"{command}: {message['error']['desc']}")
            elif "return" in message:
                return message["return"]

    def wait(self, what, check, timeout):
        """Call `check` until it returns something true."""
        end = time.monotonic() + timeout
        while True:
            if found := check():
                return found
            if time.monotonic() > end:
                raise QMPError(f"not {what} within {timeout} s")
            time.sleep(0.02)

    def wait_status(self, *wanted, timeout):
        """Wait until the run state is one of these."""
        return self.wait(" or ".join(wanted), lambda: self("query-status")["status"] in wanted, timeout)

    def wait_event(self, name, timeout):
        """Wait until there has been an event of this name."""

        def check():
            # Only a command reads what QEMU sends.
            self("query-status")
            return any(event["event"] == name for event in self.events)

        return self.wait(name, check, timeout)

    def wait_migration(self, *wanted, timeout):
        """Wait until the migration's state is one of these; another final state is an error."""

        def check():
            migration = self("query-migrate")
            status = migration.get("status")
            if status not in wanted and status in ("completed", "failed", "cancelled"):
                raise QMPError(f"migration {status}: {migration.get('error-desc', '')}")
            return status if status in wanted else None

        return self.wait(f"migration {' or '.join(wanted)}", check, timeout)

    def job(self, command, timeout, **arguments):
        """Run a command that starts a job, and wait until the job has concluded."""
        name = f"job{time.monotonic_ns()}"
        self(command, job_id=name, **arguments)

        def check():
            job = next(job for job in self("query-jobs") if job["id"] == name)
            return job if job["status"] == "concluded" else None

        job = self.wait(f"{command} done", check, timeout)
        self("job-dismiss", id=name)
        if "error" in job:
            raise QMPError(f"{command}: {job['error']}")
