"""Attention of one layer on the GPU beside torch's cuDNN attention over the same tokens in bf16.

Both run in this process through CUDA graphs; the sessions of a graph's launches differ, so that together they are
larger than any cache; no launch attributes on either side. Writes attend_<gpu>.json. `relative_error` of a row: what
was timed against attention in double precision over the decoded values of some of its sessions, worst query row.

  python3 tests/bench/attend.py [--results FOLDER] [--quick] [ROW...]
"""

import argparse
import ctypes
import math
import re
import statistics
from pathlib import Path

import results
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

LIBRARY = "tests/bench/libattend_cuda_library.so"
ROTATED_BYTES = 300_000_000
# Pattern numbers of eight heads of the Qwen2.5-Coder-1.5B calibration: of its heads in order of size, the middle one
# of each eighth. (K, V)
PATTERNS = {
    "tiny": ([0, 2, 2, 4, 5, 6, 8, 9], [0, 0, 2, 3, 4, 5, 6, 9]),
    "compact": ([0, 4, 5, 7, 6, 8, 12, 11], [0, 2, 3, 4, 7, 8, 6, 11]),
    "balanced": ([4, 7, 8, 11, 10, 14, 14, 14], [3, 5, 7, 7, 10, 7, 10, 13]),
    "fine": ([9, 11, 14, 11, 14, 14, 14, 14], [8, 9, 8, 14, 12, 13, 14, 14]),
    "exact": ([], []),
}
# head_dim 64 has eight patterns of its own.
PATTERNS_64 = ([1, 2, 3, 3, 3, 4, 4, 4], [1, 2, 3, 3, 3, 3, 4, 4])

MIXED = {
    "mixed8": [1024 << i for i in range(8)],
    "mixed64": [round(100 * 1000 ** (i / 63)) for i in range(64)],
}
LONG = [(1, 8192), (1, 32768), (1, 131072), (8, 32768), (32, 8192), (1, 1048576)]
WIDE = [(1, 131072), (8, 32768), (32, 8192)]
# Whatever a length falls on, one token more or less changes nothing.
NEIGHBOURS = [(8191, 8192, 8193), (32767, 32768, 32769)]
NEIGHBOURS_BAR = 1.05
# The reference is computed in pieces of so many tokens, over so many sessions and query tokens of a row.
ERROR_PIECE, ERROR_SESSIONS, ERROR_QUERIES = 32768, 3, 16
PRINTED = ("name", "value", "opponent_value", "ratio", "spread", "relative_error")


def row_name(profile: str, batch: int, length: int, *, ratio=4, head_dim=128, queries=1, tail=-1) -> str:
    name = f"attend/{profile}/b{batch}_l{length}"
    name += f"_g{ratio}" if ratio != 4 else ""
    name += f"_d{head_dim}" if head_dim != 128 else ""
    name += f"_q{queries}" if queries != 1 else ""
    return name + (f"_t{tail}" if tail >= 0 else "")


class Case:
    """A row: sessions of 8 KV heads (32 where the ratio is 1)."""

    def __init__(self, name, profile, lengths, ratio=4, head_dim=128, queries=1, tail=-1):
        self.name, self.profile, self.lengths = name, profile, lengths
        self.kv_heads = 32 if ratio == 1 else 8
        self.query_heads = ratio * self.kv_heads
        self.head_dim, self.queries, self.tail = head_dim, queries, tail

    def bf16_bytes(self) -> int:
        return sum(self.lengths) * 2 * self.kv_heads * self.head_dim * 2


def cases() -> list[Case]:
    def case(profile, batch, length, **options):
        return Case(row_name(profile, batch, length, **options), profile, [length] * batch, **options)

    rows = [case("compact", *shape) for shape in LONG]
    rows += [case("compact", 1, length) for lengths in NEIGHBOURS for length in lengths if (1, length) not in LONG]
    rows += [case("compact", 1, 131072, tail=320)]
    rows += [case(profile, *shape) for profile in ("tiny", "balanced", "fine", "exact") for shape in WIDE]
    rows += [case("tiny", *shape) for shape in LONG if shape[1] >= 32768 and shape not in WIDE]
    for length in (131072, 32768):
        rows += [case("compact", 1, length, ratio=ratio) for ratio in (1, 2, 3, 6, 7, 8, 16)]
        rows += [case("compact", 1, length, head_dim=head_dim) for head_dim in (64, 256)]
        rows += [case("compact", 1, length, queries=queries) for queries in (4, 16)]
        rows += [case("compact", 1, length, ratio=ratio, queries=4) for ratio in (1, 2, 3, 16)]
    rows += [case("compact", 1, 32768, queries=512)]
    for name, lengths in MIXED.items():
        rows.append(Case(f"attend/compact/{name}", "compact", lengths))
        equal = sum(lengths) // len(lengths)
        rows.append(case("compact", len(lengths), equal))
    return rows


def timed(launch, launches: int, replays: int) -> list[float]:
    """Microseconds a launch of each replay of a graph of `launches` of them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(3):
            launch(i, stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(launches):
            launch(i, stream)
    times = []
    for replay in range(replays + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 3:
            times.append(begin.elapsed_time(end) * 1000 / launches)
    return times


def copies_for(size_bytes: float) -> int:
    return max(2, min(64, math.ceil(ROTATED_BYTES / size_bytes)))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def session_error(library: ctypes.CDLL, batch: int, case: Case, session: int) -> float:
    """Of the last launch's output, worst row: |o - o_reference| / |o_reference|."""
    shape = (case.queries, case.query_heads, case.head_dim)
    q = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
    output = torch.empty(shape, dtype=torch.float32, device="cuda")
    assert library.AttendBenchRead(batch, session, pointer(q), pointer(output)) == 0

    length = case.lengths[session]
    chosen = torch.linspace(0, case.queries - 1, min(case.queries, ERROR_QUERIES)).round().long().cuda()
    positions = length - case.queries + chosen

    def by_kv_head(rows: torch.Tensor) -> torch.Tensor:  # [kv_head][query][query head of it][channel]
        return rows[chosen].double().unflatten(1, (case.kv_heads, -1)).transpose(0, 1)

    q, output = by_kv_head(q) / math.sqrt(case.head_dim), by_kv_head(output)
    largest = torch.full(q.shape[:3], -math.inf, dtype=torch.float64, device="cuda")
    weights, weighted = torch.zeros_like(largest), torch.zeros_like(q)
    for first in range(0, length, ERROR_PIECE):
        count = min(ERROR_PIECE, length - first)
        k, v = (torch.empty((count, case.kv_heads, case.head_dim), dtype=torch.float32, device="cuda")
                for _ in range(2))
        library.AttendBenchDecode(batch, session, first, count, pointer(k), pointer(v))
        k, v = (values.double().transpose(0, 1) for values in (k, v))
        scores = torch.einsum("hqgd,htd->hqgt", q, k)
        unseen = torch.arange(first, first + count, device="cuda") > positions[:, None]
        scores.masked_fill_(unseen[None, :, None, :], -math.inf)
        # Finite from the first piece on: every query sees token 0.
        now = torch.maximum(largest, scores.amax(-1))
        p = torch.exp(scores - now[..., None])
        fade = torch.exp(largest - now)
        weights = weights * fade + p.sum(-1)
        weighted = weighted * fade[..., None] + torch.einsum("hqgt,htd->hqgd", p, v)
        largest = now
    expected = weighted / weights[..., None]
    return ((output - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


def relative_error(library: ctypes.CDLL, batch: int, case: Case) -> float:
    """Worst of the shortest, the longest and the middle session of copy 0."""
    torch.cuda.synchronize()
    sorted_sessions = sorted(range(len(case.lengths)), key=lambda session: case.lengths[session])
    last = len(sorted_sessions) - 1
    chosen = {sorted_sessions[round(i * last / (ERROR_SESSIONS - 1))] for i in range(ERROR_SESSIONS)}
    return max(session_error(library, batch, case, session) for session in chosen)


def ours(library: ctypes.CDLL, case: Case, replays: int) -> tuple[list[float], float, float]:
    """Times, bytes of the batch, relative error."""
    k, v = PATTERNS_64 if case.head_dim == 64 and case.profile != "exact" else PATTERNS[case.profile]
    integers = ctypes.c_int * max(1, len(k))
    # Bits a value are about known before the batch is: enough to say how many copies it takes.
    copies = copies_for(case.bf16_bytes() / (1 if case.profile == "exact" else 7))
    batch = library.AttendBenchCreate(
        (ctypes.c_int * len(case.lengths))(*case.lengths), len(case.lengths), case.kv_heads, case.query_heads,
        case.head_dim, case.queries, case.tail, integers(*k), integers(*v), len(k), copies)

    def launch(i, stream):
        error = library.AttendBenchLaunch(batch, i % copies, ctypes.c_void_p(stream.cuda_stream))
        assert error == 0, f"CUDA error {error}"

    times = timed(launch, copies * math.ceil(20 / copies), replays)
    size = library.AttendBenchBytes(batch)
    error = relative_error(library, batch, case)
    library.AttendBenchDestroy(batch)
    torch.cuda.empty_cache()
    return times, size, error


def cudnn(case: Case, replays: int) -> list[float]:
    """Equal lengths only: torch has no ragged form of it."""
    batch, length = len(case.lengths), case.lengths[0]
    copies = copies_for(case.bf16_bytes())

    def random(heads, tokens):
        return torch.randn(batch, heads, tokens, case.head_dim, device="cuda", dtype=torch.bfloat16)

    k, v = ([random(case.kv_heads, length) for _ in range(copies)] for _ in range(2))
    q = random(case.query_heads, case.queries)
    mask = None
    if case.queries > 1:
        # The last queries of the sequence: causal from the end.
        mask = torch.ones(case.queries, length, dtype=torch.bool, device="cuda").tril(length - case.queries)

    def launch(i, _):
        torch.nn.functional.scaled_dot_product_attention(
            q, k[i % copies], v[i % copies], attn_mask=mask, enable_gqa=case.query_heads != case.kv_heads)

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        times = timed(launch, copies * math.ceil(20 / copies), replays)
    del k, v
    torch.cuda.empty_cache()
    return times


def measure(library: ctypes.CDLL, case: Case, replays: int) -> dict:
    times, size, error = ours(library, case, replays)
    value = statistics.median(times)
    row = {
        "name": case.name, "value": value, "unit": "us", "repeats": replays, "spread": results.spread(times),
        "bits_per_value": 16 * size / case.bf16_bytes(), "effective_bytes_per_second": size / value * 1e6,
        "relative_error": error, "shown": ["bits_per_value"],
    }
    if len(set(case.lengths)) == 1:
        try:
            opponent = cudnn(case, replays)
        except RuntimeError as error:
            # cuDNN does not take every shape; then there is nothing to compare with.
            return row | {"opponent_error": str(error).splitlines()[0]}
        row |= {
            "opponent": f"torch {torch.__version__} cuDNN bf16", "opponent_value": statistics.median(opponent),
            "ratio": statistics.median(opponent) / value, "opponent_spread": results.spread(opponent),
        }
    return row


def neighbours_row(rows: list[dict]) -> dict | None:
    """The largest ratio of times of adjacent lengths, once all of them are measured."""
    measured = {row["name"]: row for row in rows}
    pairs = {}
    repeats, spread = 0, 0.0
    for lengths in NEIGHBOURS:
        for shorter, longer in zip(lengths, lengths[1:]):
            names = [row_name("compact", 1, length) for length in (shorter, longer)]
            if any(name not in measured for name in names):
                return None
            times = [measured[name]["value"] for name in names]
            pairs[f"{shorter}, {longer}"] = max(times) / min(times)
            repeats = measured[names[0]]["repeats"]
            spread = max(spread, *(measured[name]["spread"] for name in names))
    largest = max(pairs.values())
    return {
        "name": "attend/compact/neighbours", "value": largest, "unit": "larger over smaller time of adjacent lengths",
        "repeats": repeats, "spread": spread, "bar": NEIGHBOURS_BAR, "met": largest <= NEIGHBOURS_BAR, "pairs": pairs,
    }


def load_library() -> ctypes.CDLL:
    library = ctypes.CDLL(results.program(LIBRARY))
    library.AttendBenchCreate.restype = ctypes.c_void_p
    library.AttendBenchBytes.restype = ctypes.c_double
    address, integer = ctypes.c_void_p, ctypes.c_int
    for function in (library.AttendBenchBytes, library.AttendBenchDestroy):
        function.argtypes = [address]
    library.AttendBenchLaunch.argtypes = [address, integer, address]
    library.AttendBenchRead.argtypes = [address, integer, address, address]
    library.AttendBenchDecode.argtypes = [address, integer, integer, integer, address, address]
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="*", metavar="ROW", help="measure the rows whose names hold one of these")
    parser.add_argument("--quick", action="store_true", help="few repeats, to see that it runs")
    parser.add_argument("--results", type=Path, help="folder to write to")
    options = parser.parse_args()
    library = load_library()
    gpu = torch.cuda.get_device_name()
    rows = []
    for case in cases():
        if options.words and not any(word in case.name for word in options.words):
            continue
        rows.append(measure(library, case, 5 if options.quick else 50))
        print({key: rows[-1].get(key) for key in PRINTED}, flush=True)
        if options.results:
            name = re.search(r"[A-Z]\d+", gpu).group().lower()
            check = neighbours_row(rows)
            results.write(str(options.results / f"attend_{name}.json"), rows + ([check] if check else []), gpu)


if __name__ == "__main__":
    main()
