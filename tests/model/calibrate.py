"""Writes a calibration file from the statistics and the sensitivities.

    calibrate.py --statistics FILE --out FILE [--layers 2,23]

The file is one kvdepot.v1.Calibration message. With --layers it holds only
those layers, in that order, and its budgets average each profile's mean over
just them: it then fits a dump of the same layers.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import numpy as np
from grpc_tools import protoc
from safetensors import safe_open
from safetensors.numpy import load_file

from budgets import LEVELS, PROFILES, Sensitivity, expected_kl, spend
from importance import channel_order, importance
from places import PROTO


def calibration_messages(proto: Path):
    """The module that protoc makes of calibration.proto."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["protoc", f"--proto_path={proto}", f"--python_out={folder}"]
        if protoc.main([*arguments, "kvdepot/v1/calibration.proto"]) != 0:
            sys.exit(f"protoc failed on {proto}")
        sys.path.insert(0, folder)
        try:
            return importlib.import_module("kvdepot.v1.calibration_pb2")
        finally:
            sys.path.remove(folder)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def all_budgets(sensitivity: Sensitivity) -> np.ndarray:
    """Pattern numbers, [layers][kv_heads][K, V][profiles]; printed as a summary."""
    curves = sensitivity.curves()
    levels = [spend(curves, mean) for mean in PROFILES.values()]
    for name, level in zip(PROFILES, levels):
        bits = LEVELS[level]
        print(
            f"  {name}: mean {bits.mean():.3f} bits, K {bits[..., 0].mean():.2f},"
            f" V {bits[..., 1].mean():.2f}, from {bits.min()} to {bits.max()},"
            f" predicted KL {expected_kl(curves, level):.4f}"
        )
    return np.stack(levels, axis=-1)


def fill(tensor, importance_of_head, patterns, weight=()) -> None:
    tensor.channel_order = bytes(channel_order(importance_of_head).tolist())
    # For head_dim 128 pattern p has the bits of level p.
    tensor.patterns = bytes(patterns.tolist())
    tensor.channel_weights.extend(weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--statistics", required=True, type=Path)
    parser.add_argument("--layers", help="comma-separated layer numbers; default all")
    parser.add_argument("--proto", default=PROTO, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()

    statistics = load_file(args.statistics)
    about = metadata_of(args.statistics)
    weight = statistics["q_second_moment"]
    k_importance = importance(statistics["k_variance"], weight)
    v_importance = importance(statistics["v_variance"])

    sensitivity = Sensitivity.load()
    scope = "All layers."
    layers = list(range(len(weight)))
    if args.layers:
        layers = [int(layer) for layer in args.layers.split(",")]
        scope = f"Of the layers only {args.layers}, budgets averaged over these: fits a dump of the same."
    patterns = all_budgets(sensitivity.of_layers(layers))

    calibration = calibration_messages(args.proto).Calibration(
        version=0,
        model=about["model"],
        license=about["license"],
        description=f"{scope} Statistics over {about['tokens']} tokens of {about['text']}, the first"
        " 16 left out; budgets from measured sensitivities for the profiles"
        f" {', '.join(f'{name} {mean}' for name, mean in PROFILES.items())} bits.",
    )
    for place, layer in enumerate(layers):
        message = calibration.layers.add()
        for head in range(weight.shape[1]):
            pair = message.heads.add()
            fill(pair.k, k_importance[layer, head], patterns[place, head, 0], weight[layer, head])
            fill(pair.v, v_importance[layer, head], patterns[place, head, 1])

    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(calibration.SerializeToString(deterministic=True))
    print(f"wrote {args.out} ({args.out.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
