"""The file that every benchmark writes: {"commit", "date", "machine", "command", "other_load", "rows"}."""

import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path


def program(path: str) -> str:
    """A built program. BAZEL_BIN names the folder where it is not bazel-bin."""
    return str(Path(os.environ.get("BAZEL_BIN", "bazel-bin")) / path)


def spread(values: list[float]) -> float:
    """Distance between the quartiles over the median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle


def machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(': ')[1]}, {len(os.sched_getaffinity(0))} cores"
    return platform.machine()


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str:
    """What benchmarks themselves write does not make a tree dirty. A bundle says what it was made from."""
    if Path("COMMIT").exists():
        return Path("COMMIT").read_text().strip()
    changed = git("status", "--porcelain", "-uno", "--", ".", ":!README.md", ":!tests/bench/results")
    return git("describe", "--always") + ("-dirty" if changed else "")


def cpu_seconds() -> tuple[float, float, float]:
    """Of the machine, of this process with the children that it has waited for, and on the clock."""
    user, nice, system, _, _, irq, soft_irq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    busy = (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy, sum(usage.ru_utime + usage.ru_stime for usage in usages), time.monotonic()


_before = cpu_seconds()


def other_load() -> float:
    """Cores that others kept busy since the last call: a figure measured beside more than .1 or so is worth nothing."""
    global _before
    before, _before = _before, cpu_seconds()
    busy, ours, seconds = (now - then for now, then in zip(_before, before))
    return round(max(0.0, busy - ours) / max(seconds, 1e-3), 2)


def write(path: str, rows: list[dict], machine_name: str | None = None) -> None:
    """`ratio` above 1 in a row means that we are better than the opponent."""
    document = {
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "machine": machine_name or machine(),
        "command": " ".join(["python3", *sys.argv]),
        "other_load": other_load(),
        "rows": rows,
    }
    Path(path).write_text(json.dumps(document, indent=1) + "\n")
