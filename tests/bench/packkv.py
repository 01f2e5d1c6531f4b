"""K q and w V over tokens stored by `packkv`, beside cuBLAS on fp16, as the PackKV paper measures them.

Gaussian data, 8 KV heads, head_dim 128, relative scales .1 and .2, packs of 16 without repacking. CUDA graphs go
through copies that are together larger than any cache; scales, zero points and sums over blocks are part of our
kernels. cuBLAS multiplies fp16 tensors of the same values by torch.matmul. Writes packkv_<gpu>.json.

  python3 tests/bench/packkv.py [--results FOLDER] [--quick] [ROW...]
"""

import argparse
import ctypes
import math
import re
import statistics
from pathlib import Path

import results
import torch
from attend import pointer, timed

LIBRARY = "tests/bench/libpackkv_cuda_library.so"
HEADS, HEAD_DIM = 8, 128
CONTEXTS = [1024 << i for i in range(8)]
SCALES = (0.1, 0.2)
# Together, of what is read in turn: several times the largest cache.
ROTATED_BYTES = 400e6
LAUNCHES_MIN = 64
CHECKED_TOKENS_MAX = 8192
DTYPE = torch.float16
PRINTED = ("name", "value", "opponent_value", "ratio", "spread", "relative_error")


def copies_for(size_bytes: float) -> int:
    return max(2, min(1024, math.ceil(ROTATED_BYTES / size_bytes)))


def decoded(library: ctypes.CDLL, bench: int, tokens: int, is_value: bool) -> torch.Tensor:
    """[kv_head][token][channel]."""
    values = torch.empty((HEADS, tokens, HEAD_DIM), dtype=torch.float32)
    library.PackKvBenchDecode(bench, int(is_value), pointer(values))
    return values.double().cuda()


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


def ours(library: ctypes.CDLL, tokens: int, rows: int, replays: int) -> dict:
    """Times, bytes and errors of both products."""
    # 3.1 bits a value, about.
    copies = copies_for(2 * HEADS * HEAD_DIM * tokens * 3.1 / 8 / 2)
    bench = library.PackKvBenchCreate(tokens, HEADS, rows, *map(ctypes.c_float, SCALES), copies)
    torch.manual_seed(tokens)
    q = torch.randn(HEADS, rows, HEAD_DIM, device="cuda", dtype=DTYPE)
    w = torch.softmax(torch.randn(HEADS, rows, tokens, device="cuda"), -1).to(DTYPE)
    scores = torch.empty(HEADS, rows, tokens, device="cuda", dtype=DTYPE)
    output = torch.empty(HEADS, rows, HEAD_DIM, device="cuda", dtype=torch.float32)

    def checked(error: int) -> None:
        assert error == 0, f"CUDA error {error}"

    def keys(i, stream):
        checked(library.PackKvBenchKeys(bench, i % copies, pointer(q), pointer(scores),
                                        ctypes.c_void_p(stream.cuda_stream)))

    def values(i, stream):
        checked(library.PackKvBenchValues(bench, i % copies, pointer(w), pointer(output),
                                          ctypes.c_void_p(stream.cuda_stream)))

    launches = copies * math.ceil(LAUNCHES_MIN / copies)
    measured = {"kq": timed(keys, launches, replays), "wv": timed(values, launches, replays),
                "bytes": library.PackKvBenchBytes(bench)}
    if tokens <= CHECKED_TOKENS_MAX:
        k, v = (decoded(library, bench, tokens, is_value) for is_value in (False, True))
        measured["kq_error"] = relative_error(scores, q.double() @ k.transpose(1, 2))
        measured["wv_error"] = relative_error(output, w.double() @ v)
    library.PackKvBenchDestroy(bench)
    return measured


def cublas(tokens: int, rows: int, replays: int) -> dict:
    copies = copies_for(HEADS * HEAD_DIM * tokens * 2)
    tensors = [torch.randn(HEADS, tokens, HEAD_DIM, device="cuda", dtype=DTYPE) for _ in range(copies)]
    q = torch.randn(HEADS, rows, HEAD_DIM, device="cuda", dtype=DTYPE)
    w = torch.softmax(torch.randn(HEADS, rows, tokens, device="cuda"), -1).to(DTYPE)
    scores = torch.empty(HEADS, rows, tokens, device="cuda", dtype=DTYPE)
    output = torch.empty(HEADS, rows, HEAD_DIM, device="cuda", dtype=DTYPE)

    def keys(i, _):
        torch.matmul(q, tensors[i % copies].transpose(1, 2), out=scores)

    def values(i, _):
        torch.matmul(w, tensors[i % copies], out=output)

    launches = copies * math.ceil(LAUNCHES_MIN / copies)
    return {"kq": timed(keys, launches, replays), "wv": timed(values, launches, replays)}


def measure(library: ctypes.CDLL, tokens: int, rows: int, replays: int) -> list[dict]:
    mine, theirs = ours(library, tokens, rows, replays), cublas(tokens, rows, replays)
    torch.cuda.empty_cache()
    made = []
    for product in ("kq", "wv"):
        value, opponent = statistics.median(mine[product]), statistics.median(theirs[product])
        made.append({
            "name": f"{product}{group(rows)}/{tokens}", "value": value, "unit": "us", "repeats": replays,
            "spread": results.spread(mine[product]), "opponent": f"torch {torch.__version__} cuBLAS fp16",
            "opponent_value": opponent, "opponent_spread": results.spread(theirs[product]), "ratio": opponent / value,
            "bytes": mine["bytes"], "relative_error": mine.get(f"{product}_error"), "shown": [],
        })
    return made


def group(rows: int) -> str:
    return "" if rows == 1 else f"_g{rows}"


def mean_rows(rows: list[dict]) -> list[dict]:
    """Of products that were measured at every context."""
    by_name = {row["name"]: row for row in rows}
    means = []
    for product in ("kq", "wv", "kq_g4", "wv_g4"):
        of = [by_name.get(f"{product}/{tokens}") for tokens in CONTEXTS]
        if None in of:
            continue
        ratio = statistics.mean(row["ratio"] for row in of)
        means.append({"name": f"{product}/mean", "value": ratio, "unit": "x of cuBLAS, mean of 8 contexts",
                      "repeats": of[0]["repeats"], "spread": max(row["spread"] for row in of),
                      "smallest": min(row["ratio"] for row in of), "shown": ["smallest"]})
    return means


def load_library() -> ctypes.CDLL:
    library = ctypes.CDLL(results.program(LIBRARY))
    library.PackKvBenchCreate.restype = ctypes.c_void_p
    library.PackKvBenchBytes.restype = ctypes.c_double
    for name in ("Destroy", "Bytes", "Keys", "Values", "Decode"):
        function = getattr(library, f"PackKvBench{name}")
        function.argtypes = {
            "Destroy": [ctypes.c_void_p], "Bytes": [ctypes.c_void_p],
            "Keys": [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
            "Values": [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
            "Decode": [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p],
        }[name]
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="*", metavar="ROW", help="measure the contexts of rows whose names hold one of these")
    parser.add_argument("--quick", action="store_true", help="few repeats, to see that it runs")
    parser.add_argument("--results", type=Path, help="folder to write to")
    options = parser.parse_args()
    library = load_library()
    gpu = torch.cuda.get_device_name()
    rows = []
    for per_head in (1, 4):
        for tokens in CONTEXTS:
            names = [f"{product}{group(per_head)}/{tokens}" for product in ("kq", "wv")]
            if options.words and not any(word in name for word in options.words for name in names):
                continue
            for row in measure(library, tokens, per_head, 5 if options.quick else 50):
                rows.append(row)
                print({key: row[key] for key in PRINTED}, flush=True)
    rows += mean_rows(rows)
    print(rows[-4:], flush=True)
    if options.results:
        name = re.search(r"[A-Z]\d+", gpu).group().lower()
        results.write(str(options.results / f"packkv_{name}.json"), rows, gpu)


if __name__ == "__main__":
    main()
