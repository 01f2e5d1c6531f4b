"""CPU attend of one query token against the fastest of torch's forms, in one run, taking turns.

    bazel build //tests/bench:attend_cpu_worker
    PYTHON tests/bench/attend_cpu.py [--rounds 31] [--json tests/bench/results/attend_cpu.json]

PYTHON has torch (tests/model/make makes such an environment: .tools/model-venv/bin/python). Both sides use the same number
of threads; data rotate over more than the caches hold.
"""

import argparse
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

import results

KV_HEADS, QUERY_HEADS, HEAD_DIM = 2, 12, 128
# Mean payload of K and V by pattern number (gpu/FORMAT.md): 2.0 b is compact.
COMPACT_PATTERNS = (6, 6)
BITS_PER_VALUE = 2.0 + 0.0625 + 32 / 1024
CALLS = 5  # of one side in a round


class Worker:
    def __init__(self, tokens: int, threads: int, layers: int):
        arguments = (tokens, KV_HEADS, QUERY_HEADS, HEAD_DIM, *COMPACT_PATTERNS, threads, layers)
        self.process = subprocess.Popen(
            [results.program("tests/bench/attend_cpu_worker"), *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )

    def seconds(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def torch_forms(tokens: int, dtype: torch.dtype):
    """Callables by name, over caches that rotate."""
    copies = 2 + (96 << 20) // (2 * KV_HEADS * tokens * HEAD_DIM * dtype.itemsize)
    caches = [
        tuple(torch.randn(KV_HEADS, tokens, HEAD_DIM).to(dtype) for _ in range(2)) for _ in range(copies)
    ]
    q = torch.randn(KV_HEADS, QUERY_HEADS // KV_HEADS, HEAD_DIM).to(dtype)
    turn = iter(range(1 << 30))

    def sdpa():
        k, v = caches[next(turn) % copies]
        return F.scaled_dot_product_attention(q[None], k[None], v[None])

    def sdpa_gqa():
        k, v = caches[next(turn) % copies]
        heads = q.reshape(1, QUERY_HEADS, 1, HEAD_DIM)
        return F.scaled_dot_product_attention(heads, k[None], v[None], enable_gqa=True)

    def matmul():
        k, v = caches[next(turn) % copies]
        weights = torch.softmax((q @ k.transpose(1, 2)) * HEAD_DIM**-0.5, dim=-1)
        return weights @ v

    # sdpa as written treats the query heads of one KV head as six query tokens, which reads the cache once.
    name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    return {f"sdpa_{name}": sdpa, f"sdpa_gqa_{name}": sdpa_gqa, f"matmul_{name}": matmul}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    forms = torch_forms(options.tokens, torch.bfloat16) | torch_forms(options.tokens, torch.float32)
    worker = Worker(options.tokens, options.threads, layers=16)
    def seconds(name: str) -> float:
        if name == "kvdepot":
            return worker.seconds()
        begin = time.perf_counter()
        forms[name]()
        return time.perf_counter() - begin

    times = {name: [] for name in ("kvdepot", *forms)}
    with torch.inference_mode():
        for round_number in range(options.rounds):
            for name in times:
                # Forms that are ten times slower than the fastest are measured in the first round alone.
                if round_number > 0 and min(times[name]) > 10 * min(min(times[form]) for form in forms):
                    continue
                # Each side's calls follow each other, as layers do; the first finds caches that the other side filled.
                times[name] += [seconds(name) for _ in range(CALLS + 1)][1:]

    worker.end()
    median = {name: statistics.median(values) for name, values in times.items()}
    fastest = min(forms, key=median.get)
    for name, values in times.items():
        print(f"{name:16} {median[name] * 1e3:8.3f} ms  spread {results.spread(values):.2f}")
    print(f"ratio to {fastest}: {median[fastest] / median['kvdepot']:.2f}")
    if options.json:
        row = {
            "name": f"attend_cpu/compact/b1_l{options.tokens}", "value": median["kvdepot"] * 1e6, "unit": "us",
            "opponent": f"torch {torch.__version__} {fastest}", "opponent_value": median[fastest] * 1e6,
            "ratio": median[fastest] / median["kvdepot"], "repeats": len(times["kvdepot"]),
            "spread": results.spread(times["kvdepot"]), "opponent_spread": results.spread(times[fastest]),
            "bits_per_value": BITS_PER_VALUE, "threads": options.threads,
            "all_us": {name: value * 1e6 for name, value in median.items()},
        }
        results.write(options.json, [row])


if __name__ == "__main__":
    main()
