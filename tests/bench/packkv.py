"""K q and w V over tokens stored by `packkv`, beside cuBLAS on fp16, as the PackKV paper measures them; and the whole
attend, beside the paper's own two kernels and cuDNN.

Our products are launched beside the end of the launch before (programmatic dependent launch) and load what does not
depend on it; ratio_without_overlap is of plain launches, as cuBLAS has them. Results are checked in double precision.

Gaussian data, 8 KV heads, head_dim 128, relative scales .1 and .2, packs of 16 without repacking. CUDA graphs go
through copies that are together larger than any cache; scales, zero points and sums over blocks are part of our
kernels. cuBLAS multiplies fp16 tensors of the same shape by torch.matmul. Writes packkv_<gpu>.json.

  python3 tests/bench/packkv.py [--results FOLDER] [--quick] [ROW...]

The paper's kernels need its extension, packkv_cuda (github.com/BoJiang03/PackKV, built for the GPU's architecture), in
PYTHONPATH; without it attend/b1_l131072 is compared with cuDNN alone.
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
from torch.nn.attention import SDPBackend, sdpa_kernel

LIBRARY = "tests/bench/libpackkv_cuda_library.so"
HEADS, HEAD_DIM = 8, 128
CONTEXTS = [1024 << i for i in range(8)]
SCALES = (0.1, 0.2)
# Together, of what is read in turn: several times the largest cache.
ROTATED_BYTES = 400e6
LAUNCHES_MIN = 64
DTYPE = torch.float16
PRINTED = ("name", "value", "opponent", "opponent_value", "ratio", "spread", "relative_error")


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
    if rows == 1:
        library.PackKvBenchSetOverlap(bench, 0)
        measured |= {f"{product}_alone": timed(launch, launches, replays)
                     for product, launch in (("kq", keys), ("wv", values))}
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
        alone = mine.get(f"{product}_alone")
        made.append({
            "name": f"{product}{group(rows)}/{tokens}", "value": value, "unit": "us", "repeats": replays,
            "spread": results.spread(mine[product]), "opponent": f"torch {torch.__version__} cuBLAS fp16",
            "opponent_value": opponent, "opponent_spread": results.spread(theirs[product]), "ratio": opponent / value,
            "bytes": mine["bytes"], "relative_error": mine[f"{product}_error"], "shown": [],
            **({"ratio_without_overlap": opponent / statistics.median(alone)} if alone else {}),
        })
    return made


def attend_times(library: ctypes.CDLL, tokens: int, rows: int, replays: int) -> tuple[list[float], float]:
    """Of the whole attend, and its relative error."""
    copies = copies_for(2 * HEADS * HEAD_DIM * tokens * 3.1 / 8)
    bench = library.PackKvBenchCreate(tokens, HEADS, rows, *map(ctypes.c_float, SCALES), copies)
    torch.manual_seed(tokens)
    q = torch.randn(HEADS, rows, HEAD_DIM, device="cuda", dtype=DTYPE)
    output = torch.empty(HEADS, rows, HEAD_DIM, device="cuda", dtype=torch.float32)
    log_sum_exp = torch.empty(HEADS, rows, device="cuda", dtype=torch.float32)
    library.PackKvBenchSetQuery(bench, pointer(q), pointer(output), pointer(log_sum_exp))

    def launch(i, stream):
        error = library.PackKvBenchAttend(bench, i % copies, ctypes.c_void_p(stream.cuda_stream))
        assert error == 0, f"CUDA error {error}"

    times = timed(launch, copies * math.ceil(LAUNCHES_MIN / copies), replays)
    k, v = (decoded(library, bench, tokens, is_value) for is_value in (False, True))
    p = torch.softmax(q.double() @ k.transpose(1, 2) / math.sqrt(HEAD_DIM), -1)
    error = relative_error(output, p @ v)
    library.PackKvBenchDestroy(bench)
    return times, error


def cudnn_times(tokens: int, rows: int, replays: int) -> list[float]:
    copies = copies_for(2 * HEADS * HEAD_DIM * tokens * 2)
    k, v = ([torch.randn(1, HEADS, tokens, HEAD_DIM, device="cuda", dtype=DTYPE) for _ in range(copies)]
            for _ in range(2))
    q = torch.randn(1, HEADS * rows, 1, HEAD_DIM, device="cuda", dtype=DTYPE)

    def launch(i, _):
        torch.nn.functional.scaled_dot_product_attention(q, k[i % copies], v[i % copies], enable_gqa=rows > 1)

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return timed(launch, copies * math.ceil(LAUNCHES_MIN / copies), replays)


class Original:
    """The paper's kernels over one copy, which they time themselves: milliseconds a call, epilogues left out."""

    ENCODED_TOKENS = 8192

    def __init__(self, tokens: int):
        import packkv_cuda

        self.kernels, self.tokens = packkv_cuda, tokens
        self.k = self.encode(packkv_cuda.k_encode_cpu, SCALES[0], (64, 128), 4)
        self.v = self.encode(packkv_cuda.v_encode_cpu, SCALES[1], (128, 64), 3)

    def encode(self, encoder, scale: float, tile: tuple[int, int], bits: int):
        values = torch.randn(self.ENCODED_TOKENS, HEADS * HEAD_DIM)
        least, most = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
        step = (most - least) * scale
        codes = (torch.round(values / step) - torch.round(least / step)).to(torch.uint8)
        tiles = codes.numel() // (tile[0] * tile[1])
        packed = torch.zeros(codes.numel(), dtype=torch.uint8)
        directory = torch.zeros(tiles, 2, dtype=torch.uint32)
        size = encoder(codes, packed, directory, self.ENCODED_TOKENS, HEADS * HEAD_DIM, *tile, bits)
        times = self.tokens // self.ENCODED_TOKENS
        offsets = torch.stack([directory[:, 0].long() + i * size for i in range(times)])
        sizes = directory[:, 1].long().expand(times, -1)
        whole = torch.cat([packed[:size]] * times + [torch.zeros(128, dtype=torch.uint8)])
        return whole.cuda(), torch.stack([offsets, sizes], -1).view(-1, 2).to(torch.uint32).cuda(), (*tile, bits)

    def times(self, replays: int) -> list[float]:
        q = torch.randn(HEADS, HEAD_DIM, device="cuda", dtype=DTYPE)
        w = torch.softmax(torch.randn(HEADS, self.tokens, device="cuda"), -1).to(DTYPE)
        scores = torch.empty(HEADS, self.tokens, device="cuda", dtype=DTYPE)
        output = torch.zeros(HEADS, HEAD_DIM, device="cuda", dtype=torch.float32)
        measured = []
        for _ in range(replays + 3):
            (k, k_directory, k_tile), (v, v_directory, v_tile) = self.k, self.v
            kq = self.kernels.kq_mat_vec_mul(k, k_directory, q, scores, self.tokens, HEADS * HEAD_DIM, *k_tile)
            wv = self.kernels.wv_mat_vec_mul(v, v_directory, w, output, self.tokens, HEADS * HEAD_DIM, *v_tile)
            assert kq > 0 and wv > 0
            measured.append(1000 * (kq + wv))
        return measured[3:]


def attend_row(library: ctypes.CDLL, tokens: int, rows: int, replays: int) -> dict:
    times, error = attend_times(library, tokens, rows, replays)
    value, cudnn = statistics.median(times), statistics.median(cudnn_times(tokens, rows, replays))
    torch.cuda.empty_cache()
    row = {"name": f"attend{group(rows)}/b1_l{tokens}", "value": value, "unit": "us", "repeats": replays,
           "spread": results.spread(times), "relative_error": error, "cudnn_us": cudnn, "cudnn_over_ours": cudnn / value,
           "opponent": f"torch {torch.__version__} cuDNN fp16", "opponent_value": cudnn, "ratio": cudnn / value,
           "shown": ["cudnn_us", "cudnn_over_ours"]}
    if rows == 1 and tokens == CONTEXTS[-1]:
        try:
            original = statistics.median(Original(tokens).times(replays))
            row |= {"opponent": "PackKV's two kernels, epilogues left out", "opponent_value": original,
                    "ratio": original / value}
        except ImportError as error:
            row["opponent_error"] = str(error)
    return row


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
        alone = [row["ratio_without_overlap"] for row in of if "ratio_without_overlap" in row]
        means.append({**({"without_overlap": statistics.mean(alone)} if alone else {}),
                      "name": f"{product}/mean", "value": ratio, "unit": "x of cuBLAS, mean of 8 contexts",
                      "repeats": of[0]["repeats"], "spread": max(row["spread"] for row in of),
                      "smallest": min(row["ratio"] for row in of),
                      "shown": ["smallest"] + (["without_overlap"] if alone else [])})
    return means


def load_library() -> ctypes.CDLL:
    library = ctypes.CDLL(results.program(LIBRARY))
    library.PackKvBenchCreate.restype = ctypes.c_void_p
    library.PackKvBenchBytes.restype = ctypes.c_double
    for name in ("Destroy", "Bytes", "SetOverlap", "Keys", "Values", "SetQuery", "Attend", "Decode"):
        function = getattr(library, f"PackKvBench{name}")
        function.argtypes = {
            "Destroy": [ctypes.c_void_p], "Bytes": [ctypes.c_void_p],
            "SetOverlap": [ctypes.c_void_p, ctypes.c_int],
            "Keys": [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
            "Values": [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
            "SetQuery": [ctypes.c_void_p] * 4,
            "Attend": [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p],
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
    for per_head in (1, 4):
        for tokens in (8192, 32768, 131072):
            name = f"attend{group(per_head)}/b1_l{tokens}"
            if options.words and not any(word in name for word in options.words):
                continue
            rows.append(attend_row(library, tokens, per_head, 5 if options.quick else 50))
            print({key: rows[-1].get(key) for key in PRINTED}, flush=True)
    rows += mean_rows(rows)
    print(rows[-4:], flush=True)
    if options.results:
        name = re.search(r"[A-Z]\d+", gpu).group().lower()
        results.write(str(options.results / f"packkv_{name}.json"), rows, gpu)


if __name__ == "__main__":
    main()
