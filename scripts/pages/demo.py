# SPDX-License-Identifier: GPL-2.0-only
"""What `make demo` prints."""

from .record import KERNEL, NotTaken

NAME, COMMAND = "demo", "make demo"
RESULTS = ["build/demo/demo.txt"]
SOURCES = [*KERNEL, "tools/clockguest/src/demo.rs", "tools/clockguest/src/method", "tools/clockguest/src/scenario",
           "tools/clockguest/src/guest"]


def take(output):
    if "bit-identical" not in output:
        raise NotTaken(f"the last run failed: {output.strip().splitlines()[-1]}")
    return {"output": output.rstrip().splitlines()}


def readme(data, _):
    return ["```", *data["output"], "report: build/report/index.html", "```"]


BLOCKS = {"demo": readme}
