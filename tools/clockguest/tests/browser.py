# SPDX-License-Identifier: GPL-2.0-only
"""A headless Chromium, controlled over its DevTools pipe."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

# Seconds for an answer: a busy machine starts a browser slowly.
PATIENCE = 60

# Debian's packages, the smaller one first.
NAMES = ("chromium-headless-shell", "chromium")


class Browser:
    """A browser with one page; a context manager that ends it."""

    def __init__(self):
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            raise RuntimeError(f"none of {', '.join(NAMES)} is installed: run `scripts/get-browser`")
        self._profile = tempfile.TemporaryDirectory()
        inside, self._out = os.pipe()
        self._in, outside = os.pipe()
        # The browser reads from 3 and writes to 4. As root it has no sandbox; it loads only our own page.
        command = ["sh", "-c", f'exec "$@" 3<&{inside} 4>&{outside}', "sh", program, "--headless", "--no-sandbox",
                   "--disable-gpu", "--hide-scrollbars", "--disable-background-networking", "--no-first-run",
                   f"--user-data-dir={self._profile.name}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(inside, outside), stdin=subprocess.DEVNULL,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(inside)
        os.close(outside)
        self._number = 0
        self._buffer = b""
        self._session = None
        self.events = []
        page = next(target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._out)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        self._profile.cleanup()

    def _receive(self):
        """Return the next message, an answer or an event."""
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self._in, 1 << 20) if ready else b""
            if not chunk:
                raise RuntimeError("the browser " + ("has ended" if ready else f"did not answer within {PATIENCE} s"))
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method, **params):
        """Call a DevTools method, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") != self._number:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            else:
                return answer["result"]

    def show(self, *, width, height=800, dark=False, media="screen"):
        """Set the size and media features."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def open(self, url):
        """Load a page and its resources."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression):
        """Evaluate a JavaScript expression in the page, and return its JSON value."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def requests(self):
        """Return the URLs that the current page has requested, including its own."""
        return [event["params"]["request"]["url"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]

    def complaints(self):
        """Return the browser's log of the current page: blocked loads, exceptions."""
        return [event["params"] for event in self.events if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]

    def pdf(self):
        """Print the page on A4, and return the PDF."""
        return base64.b64decode(self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])

    def screenshot(self):
        """Return a PNG of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
