"""The daemon over its Unix socket: overhead, concurrency, fairness between tenants, prefill.

    bazel build //server:kvdepotd //tests/bench:rpc_bench
    python3 tests/bench/rpc_bench.py [--quick] [--results tests/bench/results] [NAME...]

NAME: rpc_overhead, concurrency, fairness, append; all without. Each writes FOLDER/NAME.json.
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
    """The samples by name."""
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


def p50(samples: list[float]) -> float:
    return statistics.median(samples)


def p99(samples: list[float]) -> float:
    return sorted(samples)[(len(samples) * 99 + 99) // 100 - 1]


def rpc_overhead(folder: Path, calls: int) -> dict:
    """A small Attend, less its time on the device, and an echo of the same sizes."""
    with daemon(folder) as (socket, metrics):
        echo_socket = folder / "echo.sock"
        echo = subprocess.Popen([results.program(BENCH), "echo", str(echo_socket)])
        try:
            # The device's time is known as a mean over all calls, so the daemon is warm before they count.
            bench("overhead", socket, echo_socket, 200)
            seconds_before, count_before = attend_kernel(metrics)
            samples = bench("overhead", socket, echo_socket, calls)
            seconds, count = attend_kernel(metrics)
        finally:
            echo.terminate()
            echo.wait()
    ours, opponent = samples["ours"], samples["echo"]
    kernel = (seconds - seconds_before) / (count - count_before) * 1e6
    value = p50(ours) - kernel
    mean = statistics.mean(ours) - kernel
    return {
        "name": "rpc/attend_overhead", "value": value, "unit": "us p50", "opponent": "bare gRPC echo",
        "opponent_value": p50(opponent), "ratio": p50(opponent) / value, "repeats": calls,
        "spread": results.spread(ours), "opponent_spread": results.spread(opponent), "kernel_us": kernel,
        # From p50 a mean is taken away above; of means alone it is this.
        "ratio_of_means": statistics.mean(opponent) / mean,
        "p50_us": p50(ours), "p99_us": p99(ours), "echo_p99_us": p99(opponent), "shown": ["kernel_us"],
    }


def concurrency(folder: Path, calls: int) -> dict:
    """64 clients, each with a connection and a session of 4,096 tokens."""
    with daemon(folder) as (socket, _):
        samples = bench("concurrency", socket, 64, calls)
    latencies = samples["attend"]
    return {
        "name": "rpc/attend_64_clients", "value": p99(latencies) / 1e3, "unit": "ms p99", "repeats": len(latencies),
        "spread": results.spread(latencies), "errors": int(samples["errors"][0]), "p50_ms": p50(latencies) / 1e3,
        "calls_per_second": len(latencies) / samples["seconds"][0], "shown": ["errors", "p50_ms"],
    }


def fairness(folder: Path, calls: int) -> dict:
    """What b's p99 gains while a computes 512 queries over 32,768 tokens, against the p99 of one piece of a's work."""
    tokens = {"a": "token-of-a", "b": "token-of-b"}
    file = folder / "tokens"
    file.write_text("".join(f"{t} {hashlib.sha256(s.encode()).hexdigest()}\n" for t, s in tokens.items()))
    with daemon(folder, f"--tokens_file={file}") as (socket, _):
        samples = bench("fairness", socket, tokens["a"], tokens["b"], calls)
    alone, beside, piece, large = ([us / 1e3 for us in samples[name]] for name in ("alone", "beside", "piece", "large"))
    more = p99(beside) - p99(alone)
    return {
        "name": "rpc/p99_beside_512_queries", "value": more, "unit": "ms more", "opponent": "one work piece, p99",
        "opponent_value": p99(piece), "ratio": p99(piece) / more, "repeats": calls, "spread": results.spread(beside),
        "alone_p50_ms": p50(alone), "alone_p99_ms": p99(alone), "beside_p50_ms": p50(beside),
        "beside_p99_ms": p99(beside), "piece_p50_ms": p50(piece), "piece_max_ms": max(piece), "large_p50_ms": p50(large),
        "shown": ["alone_p99_ms", "beside_p99_ms"],
    }


def append(folder: Path, repeats: int) -> dict:
    """A prompt of 8 layers x 8 KV heads x 8,192 tokens until it is sealed, own calibration; there is no opponent."""
    with daemon(folder) as (socket, _):
        speeds = bench("append", socket, repeats)["bytes_per_second"]
    return {
        "name": "rpc/append_8x8192", "value": p50(speeds) / 1e6, "unit": "MB/s of bf16", "repeats": repeats,
        "spread": results.spread(speeds), "slowest": min(speeds) / 1e6,
    }


# With the calls or repeats of each.
BENCHES = {rpc_overhead: 4000, concurrency: 200, fairness: 400, append: 20}


def main() -> None:
    names = [measure.__name__ for measure in BENCHES]
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *names], metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="few repeats, to see that it runs")
    parser.add_argument("--results", type=Path, help="folder to write to")
    options = parser.parse_args()
    for measure, repeats in BENCHES.items():
        if options.names and measure.__name__ not in options.names:
            continue
        with tempfile.TemporaryDirectory(prefix="kvdepot-bench.", dir="/tmp") as folder:
            row = measure(Path(folder), max(2, repeats // (20 if options.quick else 1)))
        print(row)
        if options.results:
            results.write(str(options.results / f"{measure.__name__}.json"), [row])


if __name__ == "__main__":
    main()
