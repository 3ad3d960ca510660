# SPDX-License-Identifier: GPL-2.0-only
"""The expected content of a report, computed from the JSON of its runs."""


def worst(values):
    known = [abs(value) for value in values if value is not None]
    return max(known) if known else None


def singles(run):
    return run["per_cycle"] if run["kind"] == "cycle" else run.get("per_move", [])


def expected_charts(runs):
    """Return the expected values of each chart, by title and series, in order."""
    charts = {}

    def add(chart, series, x, value):
        if value is not None:
            charts.setdefault(chart, {}).setdefault(series, []).append((str(x), value))

    groups = {}
    for run in runs:
        groups.setdefault((run["kind"], run.get("scenario")), []).append(run["method"] if run["kind"] != "bench" else None)
    for number, run in enumerate(runs, 1):
        if run["kind"] == "bench":
            for cost in run["results"]:
                case = f"{cost['operation']}, {cost['case']}: instructions"
                add(case, cost["method"], cost["vcpus"], cost["instructions"])
                add(f"{case} with vCPUs locked", cost["method"], cost["vcpus"], cost["locked"])
            continue
        methods = groups[run["kind"], run.get("scenario")]
        series = run["method"] + (f" (run {number})" if methods.count(run["method"]) > 1 else "")
        name = "two hosts" if run["kind"] == "migrate" else {"migrate": "migrate on one host"}.get(run["scenario"], run["scenario"])
        for x, one in enumerate(singles(run), 1):
            x = one.get("cycle", x)
            add(f"{name}: TSC error", series, x, one["tsc_error_ticks"])
            add(f"{name}: kvmclock error", series, x, one["kvmclock_error_ns"])
            for part, key in (("restore", "restore"), ("clock sync", "clock_sync")):
                add(f"two hosts, {run['method']}: TSC error by cause", part, x, one.get(f"{key}_error_ticks"))
            add(f"two hosts, {run['method']}: TSC error by cause", "sync bound", x, one.get("clock_sync_bound_ticks"))
    return charts
