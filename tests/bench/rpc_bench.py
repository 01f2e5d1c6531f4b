"""The daemon over its Unix socket: overhead, concurrency, fairness between tenants, prefill.

    bazel build //server:kvdepotd //tests/bench:rpc_bench
    python3 tests/bench/rpc_bench.py [--json tests/bench/results/rpc_cpu.json]
"""

import argparse
import hashlib
import re
import statistics
import subprocess
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import results

BENCH = "tests/bench/rpc_bench"
DAEMON = "server/kvdepotd"


def bench(*arguments) -> dict[str, list[float]]:
    output = subprocess.run([results.program(BENCH), *map(str, arguments)], capture_output=True, text=True, check=True).stdout
    numbers: dict[str, list[float]] = {}
    for line in output.splitlines():
        name, value = line.split()
        numbers.setdefault(name, []).append(float(value))
    return numbers


@contextmanager
def daemon(folder: Path, *flags: str):
    """Yields the socket and the metrics page's address."""
    socket = folder / "kvdepotd.sock"
    process = subprocess.Popen(
        [results.program(DAEMON), f"--listen=unix://{socket}", "--metrics_address=127.0.0.1:0", "--device=cpu", *flags],
        stderr=subprocess.PIPE, text=True,
    )
    # The start line comes once the daemon listens; nothing is logged at this level afterwards that would fill the pipe.
    started = process.stderr.readline()
    try:
        yield socket, re.search(r"metrics=(\S+)", started).group(1)
    finally:
        process.terminate()
        process.wait()


def attend_kernel(metrics_address: str) -> tuple[float, float]:
    """Sum of seconds and number of attends on the device so far."""
    page = urllib.request.urlopen(f"http://{metrics_address}/metrics").read().decode()
    values = []
    for suffix in ("sum", "count"):
        pattern = rf'^kvdepot_operation_duration_seconds_{suffix}{{(?=[^}}]*operation="attend")(?=[^}}]*stage="kernel")[^}}]*}} (\S+)'
        values.append(float(re.search(pattern, page, re.M).group(1)))
    return values[0], values[1]


def overhead(folder: Path, calls: int) -> dict:
    with daemon(folder) as (socket, metrics):
        echo_socket = folder / "echo.sock"
        echo = subprocess.Popen([results.program(BENCH), "echo", str(echo_socket)])
        try:
            numbers = bench("overhead", socket, echo_socket, calls)
            seconds, count = attend_kernel(metrics)
        finally:
            echo.terminate()
            echo.wait()
    kernel = seconds / count * 1e6
    value = numbers["ours_p50"][0] - kernel
    return {
        "name": "rpc/attend_overhead", "value": value, "unit": "us", "opponent": "bare gRPC echo",
        "opponent_value": numbers["echo_p50"][0], "ratio": numbers["echo_p50"][0] / value, "repeats": calls,
        "kernel_us": kernel, "p50_us": numbers["ours_p50"][0], "p99_us": numbers["ours_p99"][0],
        "echo_p99_us": numbers["echo_p99"][0], "shown": ["kernel_us"],
    }


def concurrency(folder: Path, calls: int) -> dict:
    with daemon(folder) as (socket, _):
        numbers = bench("concurrency", socket, 64, calls)
    return {
        "name": "rpc/attend_64_clients", "value": numbers["attend_p99"][0], "unit": "us p99", "repeats": 64 * calls,
        "errors": numbers["errors"][0], "p50_us": numbers["attend_p50"][0],
        "calls_per_second": numbers["calls_per_second"][0], "shown": ["errors", "p50_us"],
    }


def fairness(folder: Path, calls: int) -> dict:
    tokens = {"a": "token-of-a", "b": "token-of-b"}
    file = folder / "tokens"
    file.write_text("".join(f"{t} {hashlib.sha256(s.encode()).hexdigest()}\n" for t, s in tokens.items()))
    with daemon(folder, f"--tokens_file={file}") as (socket, _):
        numbers = bench("fairness", socket, tokens["a"], tokens["b"], calls)
    return {
        "name": "rpc/p99_beside_512_queries", "value": numbers["beside_p99"][0] - numbers["alone_p99"][0],
        "unit": "us more", "opponent": "one work piece", "opponent_value": numbers["piece_p50"][0],
        "ratio": numbers["piece_p50"][0] / (numbers["beside_p99"][0] - numbers["alone_p99"][0]), "repeats": calls,
        "alone_p99_us": numbers["alone_p99"][0], "beside_p99_us": numbers["beside_p99"][0],
        "alone_p50_us": numbers["alone_p50"][0], "beside_p50_us": numbers["beside_p50"][0],
        "piece_p99_us": numbers["piece_p99"][0], "large_p50_us": numbers["large_p50"][0],
        "shown": ["alone_p99_us", "beside_p99_us"],
    }


def append(folder: Path, repeats: int) -> dict:
    with daemon(folder) as (socket, _):
        speeds = bench("append", socket, repeats)["bytes_per_second"]
    return {
        "name": "rpc/append_8x8192", "value": statistics.median(speeds) / 1e6, "unit": "MB/s of bf16",
        "repeats": repeats, "spread": results.spread(speeds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, to see that it runs")
    parser.add_argument("--json")
    options = parser.parse_args()
    scale = 20 if options.quick else 1
    rows = []
    for measure, repeats in ((overhead, 4000), (concurrency, 200), (fairness, 400), (append, 20)):
        with tempfile.TemporaryDirectory(prefix="kvdepot-bench.", dir="/tmp") as folder:
            rows.append(measure(Path(folder), max(2, repeats // scale)))
        print(rows[-1])
    if options.json:
        results.write(options.json, rows)


if __name__ == "__main__":
    main()
