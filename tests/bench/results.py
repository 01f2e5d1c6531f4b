"""The file that every benchmark writes: {"commit", "date", "machine", "command", "rows"}."""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
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


def commit() -> str:
    return subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()


def write(path: str, rows: list[dict], machine_name: str | None = None) -> None:
    """`ratio` above 1 in a row means that we are better than the opponent."""
    document = {
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "machine": machine_name or machine(),
        "command": " ".join(["python3", *sys.argv]),
        "rows": rows,
    }
    Path(path).write_text(json.dumps(document, indent=1) + "\n")
