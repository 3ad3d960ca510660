# SPDX-License-Identifier: GPL-2.0-only
"""Instructions of a save and a restore, and of a guest that uses neither."""

import json

from .record import KERNEL, NotTaken
from .rst import table

NAME, COMMAND = "cost", "make bench"
RESULTS = ["build/bench/whole.json", "build/bench/idle.json"]
SOURCES = [*KERNEL, "tools/bench", "tools/vm/kernel-bench.config", "tools/vm/kernel-bench-off.config"]

METHODS = {"atomic": "atomic", "documented": "documented", "qemu": "QEMU"}
OPERATIONS = {("save", "unchanged"): "save", ("restore", "unchanged"): "restore in place", ("restore", "written"): "restore, all written"}
VCPUS = [1, 64, 1024]
IDLE = {"run": "``KVM_RUN``", "run_and_update": "with an update of its clock"}
KERNELS = {"off": "option off", "hook": "option on", "module": "module loaded"}


def take(whole, idle):
    whole, idle = json.loads(whole), json.loads(idle)
    counts = {(one["operation"], one["case"], one["method"], one["vcpus"]): one["instructions"] for one in whole["results"]}
    slopes = {(one["operation"], one["case"], one["method"]): one["instructions_per_vcpu"] for one in whole["slopes"]}
    try:
        rows = [{"operation": name, "method": method, **{str(vcpus): counts[*operation, method, vcpus] for vcpus in VCPUS},
                 "further": round(slopes[*operation, method])}
                for operation, name in OPERATIONS.items() for method in METHODS]
        return {"whole": rows, "idle": {name: {kernel: idle["kernels"][kernel][name] for kernel in KERNELS} for name in IDLE}}
    except KeyError as missing:
        raise NotTaken(f"the run lacks {missing}") from None


def number(value):
    return "" if value is None else f"{value:,}"


def whole(data, _):
    rows, last = [], None
    for row in data["whole"]:
        rows.append([row["operation"] if row["operation"] != last else "", METHODS[row["method"]],
                     *(number(row[str(vcpus)]) for vcpus in VCPUS), number(row["further"])])
        last = row["operation"]
    return table(["operation", "method", "1 vCPU", *(f"{vcpus} vCPUs" for vcpus in VCPUS[1:]), "each further vCPU"], rows)


def idle(data, _):
    return table(["a guest that uses none of it", *KERNELS.values()],
                 [[title, *(number(data["idle"][name][kernel]) for kernel in KERNELS)] for name, title in IDLE.items()])


def short(data, _):
    def of(vcpus, operation, method):
        return number(next(row[str(vcpus)] for row in data["whole"] if (row["operation"], row["method"]) == (operation, method)))

    rows = [f"| {operation}, {vcpus} vCPU{'s' * (vcpus > 1)} | {of(vcpus, operation, 'atomic')} | {of(vcpus, operation, 'qemu')} |"
            for operation in ("save", "restore in place") for vcpus in VCPUS[:2]]
    return ["| instructions | these ioctls | QEMU's calls |", "|---|---|---|", *rows]


BLOCKS = {"cost": whole, "cost-idle": idle, "cost-short": short}
