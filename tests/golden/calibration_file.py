"""Reads calibration files (proto/kvdepot/v1/calibration.proto)."""

import functools
import hashlib
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from calibration_model import HeadCalibration, LayerCalibration, TensorCalibration

PROTO = Path(__file__).absolute().parents[2] / "proto"


@functools.cache
def message_class():
    """Calibration of stubs that protoc makes now: the repository holds no generated code."""
    with tempfile.TemporaryDirectory() as folder:
        source = "kvdepot/v1/calibration.proto"
        subprocess.run(["protoc", f"-I{PROTO}", f"--python_out={folder}", source], check=True)
        sys.path.insert(0, folder)
        try:
            return importlib.import_module("kvdepot.v1.calibration_pb2").Calibration
        finally:
            sys.path.remove(folder)


def read(path: Path):
    """-> the message, and the first 16 bytes of its hash."""
    data = path.read_bytes()
    return message_class().FromString(data), hashlib.sha256(data).digest()[:16]


def layer_calibration(message, hash16: bytes, layer: int, profile: int) -> LayerCalibration:
    def tensor(kind: str, stored) -> TensorCalibration:
        order = np.frombuffer(stored.channel_order, np.uint8).astype(np.int64)
        assert sorted(order) == list(range(len(order)))
        return TensorCalibration(kind, order, stored.patterns[profile])

    heads = [
        HeadCalibration(tensor("k", head.k), tensor("v", head.v))
        for head in message.layers[layer].heads
    ]
    return LayerCalibration(heads, hash16)
