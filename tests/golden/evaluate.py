"""How far attention over a compressed cache is from attention over the exact one.

    evaluate.py --dump FILE.safetensors [--calibration FILE.binpb] [--json FILE]

error = mean over layers, query heads and 64 seeded queries of |o - o_exact| / |o_exact|, both in double
precision, with 16 sinks and the tail that a prompt of this length leaves exact. The queries are those of the
tokens that follow the dump, so each sees all of it. Bits a value are all-in.

Rows: calibrated = as the file says; calibrated_no_weights = the same budgets and V, but K's channels ordered by
the variance of the dump's own sealed tokens alone, without the weights q^2; own = a session's own calibration;
own_q2 = with the dump's query second moments sent along.
"""

import argparse
import datetime
import json
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import attention_model
import calibration_file
import calibration_model
import floats
import kivi_model
import patterns
import planes_arithmetic
import safetensors_file
import segment_model
import session_model
from calibration_model import LayerCalibration
from floats import BF16

QUERIES = 64
SEED = 0


@dataclass
class Layer:
    number: int
    k: np.ndarray  # bf16 bits, [token][head][channel]
    v: np.ndarray
    q: np.ndarray  # fp32, [query][query head][channel], all queries of the dump

    def __post_init__(self):
        self.session = session_model.prompt(len(self.k))
        chosen = np.random.default_rng(SEED).permutation(len(self.q))[:QUERIES]
        self.asked = self.q[np.sort(chosen)]
        self.exact = self.attend(floats.fp32_from_bf16(self.k), floats.fp32_from_bf16(self.v))

    def attend(self, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        sees_all = np.full(len(self.asked), len(k) - 1)
        scale = k.shape[2] ** -0.5
        return attention_model.attend(self.asked, k, v, scale, positions=sees_all)[0]

    def errors(self, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """[query][query head]"""
        difference = np.linalg.norm(self.attend(k, v) - self.exact, axis=2)
        return difference / np.linalg.norm(self.exact, axis=2)

    def query_second_moments(self) -> np.ndarray:
        """Mean of q^2 over the dump's queries and the query heads of each KV head: [KV head][channel]."""
        kv_heads = self.k.shape[1]
        squares = self.q.reshape(len(self.q), kv_heads, -1, self.q.shape[2]).astype(np.float64) ** 2
        return squares.mean(axis=(0, 2)).astype(np.float32)


@dataclass
class Result:
    name: str
    errors: np.ndarray
    bits: float
    raw_segments: int = 0

    @property
    def error(self) -> float:
        return float(self.errors.mean())


def read_dump(path: Path) -> list[Layer]:
    tensors = safetensors_file.read_bf16(path)
    numbers = sorted(int(match[1]) for name in tensors if (match := re.fullmatch(r"layers\.(\d+)\.k", name)))
    return [
        Layer(
            number,
            tensors[f"layers.{number}.k"],
            tensors[f"layers.{number}.v"],
            floats.fp32_from_bf16(tensors[f"layers.{number}.q"]),
        )
        for number in numbers
    ]


def evaluate_planes(name: str, layers: list[Layer], calibrations: list) -> Result:
    errors, bits, raw = [], [], 0
    for layer, calibration in zip(layers, calibrations, strict=True):
        k, v = floats.fp32_from_bf16(layer.k), floats.fp32_from_bf16(layer.v)
        segment_bytes = 0
        for begin, end in layer.session.segment_ranges():
            segment = segment_model.encode(layer.k[begin:end], layer.v[begin:end], BF16, calibration)
            k[begin:end], v[begin:end] = segment_model.decode(segment, calibration.heads)
            segment_bytes += len(segment)
            raw += segment_model.codec_of(segment) == segment_model.RAW
        errors.append(layer.errors(k, v))
        bits.append(session_model.bits_per_value(layer.session, segment_bytes, *k.shape[1:], BF16))
    return Result(name, np.array(errors), float(np.mean(bits)), raw)


def evaluate_kivi(layers: list[Layer], kivi_bits: int) -> Result:
    errors, bits = [], []
    for layer in layers:
        k, v = floats.fp32_from_bf16(layer.k), floats.fp32_from_bf16(layer.v)
        sealed = slice(session_model.SINKS, layer.session.sealed_end)
        k[sealed] = kivi_model.quantised_keys(k[sealed], kivi_bits)
        v[sealed] = kivi_model.quantised_values(v[sealed], kivi_bits)
        errors.append(layer.errors(k, v))
        sealed_bytes = (k[sealed].size + v[sealed].size) * kivi_model.bits_per_value(kivi_bits) / 8
        bits.append(session_model.bits_per_value(layer.session, sealed_bytes, *k.shape[1:], BF16))
    return Result(f"kivi{kivi_bits}_g32", np.array(errors), float(np.mean(bits)))


def own_calibrations(layers: list[Layer], profile: int, with_q2: bool) -> list:
    """Each layer's, from its first segment."""
    calibrations = []
    for layer in layers:
        begin, end = layer.session.segment_ranges()[0]
        q2 = layer.query_second_moments() if with_q2 else None
        calibrations.append(
            calibration_model.derive_own(layer.k[begin:end], layer.v[begin:end], BF16, profile, q2)
        )
    return calibrations


def given_calibrations(layers: list[Layer], path: Path, profile: int) -> list:
    """The file has the dump's layers in order, or all layers of the model."""
    message, hash16 = calibration_file.read(path)
    numbers = range(len(layers))
    if len(message.layers) != len(layers):
        numbers = [layer.number for layer in layers]
        if max(numbers) >= len(message.layers):
            sys.exit(f"{path} has {len(message.layers)} layers, the dump holds layers {numbers}")
    return [
        calibration_file.layer_calibration(message, hash16, number, profile) for number in numbers
    ]


def without_k_weights(layers: list[Layer], calibrations: list) -> list:
    """The same, with K's channels by variance alone: of all sealed tokens, more than a session could know."""
    changed = []
    for layer, calibration in zip(layers, calibrations, strict=True):
        sealed = floats.fp32_from_bf16(layer.k[session_model.SINKS : layer.session.sealed_end])
        heads = []
        for number, head in enumerate(calibration.heads):
            variance = planes_arithmetic.moments(sealed[:, number]).variance
            k = replace(head.k, order=calibration_model.descending(variance))
            heads.append(replace(head, k=k))
        changed.append(LayerCalibration(heads, calibration.hash16))
    return changed


def evaluate_all(layers: list[Layer], calibration: Path | None) -> list[Result]:
    """The opponent comes last."""
    results = []
    for profile, name in enumerate(patterns.PROFILE_NAMES):
        ways = {
            "own": own_calibrations(layers, profile, with_q2=False),
            "own_q2": own_calibrations(layers, profile, with_q2=True),
        }
        if calibration is not None:
            given = given_calibrations(layers, calibration, profile)
            unweighted = without_k_weights(layers, given)
            ways = {"calibrated": given, "calibrated_no_weights": unweighted, **ways}
        results += [evaluate_planes(f"{name}_{way}", layers, made) for way, made in ways.items()]
    return [*results, evaluate_kivi(layers, 2)]


def table(results: list[Result], layers: list[Layer]) -> str:
    opponent = results[-1]
    per_layer = "".join(f"  layer {layer.number:>3}" for layer in layers)
    lines = [f"{'what':<31}{'bits':>7}{'error':>9}{'kivi2/it':>10}{per_layer}"]
    for result in results:
        by_layer = "".join(f"  {errors.mean():9.4f}" for errors in result.errors)
        ratio = opponent.error / result.error
        raw = f"  {result.raw_segments} raw segments" if result.raw_segments else ""
        lines.append(
            f"{result.name:<31}{result.bits:7.3f}{result.error:9.4f}{ratio:10.2f}{by_layer}{raw}"
        )
    return "\n".join(lines)


def bench_rows(results: list[Result], layers: list[Layer]) -> list[dict]:
    """Nothing here is timed: one repeat, no spread."""
    *ours, opponent = results
    tokens = len(layers[0].k)
    return [
        {
            "name": f"attention_error_{result.name}_{tokens}",
            "value": result.error,
            "unit": "mean |o - o_exact| / |o_exact|",
            "opponent": "KIVI 2 bit, groups of 32",
            "opponent_value": opponent.error,
            "ratio": opponent.error / result.error,
            "repeats": 1,
            "spread": 0.0,
            "all_in_bits": result.bits,
            "opponent_all_in_bits": opponent.bits,
            "p95": float(np.quantile(result.errors, 0.95)),
            "samples": int(result.errors.size),
            "raw_segments": result.raw_segments,
        }
        for result in ours
    ]


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() or "none"


def write_json(path: Path, rows: list[dict]) -> None:
    about = {
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, numpy {np.__version__}",
        "command": shlex.join(["python3", *sys.argv]),
    }
    path.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dump", required=True, type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    layers = read_dump(args.dump)
    results = evaluate_all(layers, args.calibration)
    print(table(results, layers))
    if args.json:
        write_json(args.json, bench_rows(results, layers))


if __name__ == "__main__":
    main()
