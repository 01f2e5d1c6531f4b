"""Golden vector files; make_vectors.py describes them."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import floats
import segment_model
from calibration_model import HeadCalibration, LayerCalibration, TensorCalibration

MAGIC = b"KVDGOLD1"


@dataclass
class Vector:
    dtype: int
    own: bool
    profile: int
    calibration: LayerCalibration
    q2: np.ndarray | None  # fp32 [head][channel]
    k: np.ndarray  # [token][head][channel], as stored
    v: np.ndarray
    segment: bytes
    k_values: np.ndarray  # fp32, what the segment decodes to
    v_values: np.ndarray


def to_bytes(vector: Vector) -> bytes:
    tokens, heads, head_dim = vector.k.shape
    codec = segment_model.codec_of(vector.segment)
    has_q2 = vector.q2 is not None
    out = MAGIC + struct.pack(
        "<8I", heads, head_dim, vector.dtype, tokens, codec, vector.own, vector.profile, has_q2
    )
    for head in vector.calibration.heads:
        for tensor in (head.k, head.v):
            out += tensor.order.astype(np.uint8).tobytes() + bytes([tensor.pattern])
    out += vector.calibration.hash16
    if has_q2:
        out += vector.q2.astype("<f4").tobytes()
    for tensor in (vector.k, vector.v):
        out += tensor.astype(floats.STORED_AS[vector.dtype]).tobytes()
    out += struct.pack("<Q", len(vector.segment)) + vector.segment
    for values in (vector.k_values, vector.v_values):
        out += values.astype("<f4").tobytes()
    return out


def read(path: Path) -> Vector:
    reader = _Reader(path.read_bytes())
    assert reader.take(8) == MAGIC
    heads, head_dim, dtype, tokens, _codec, own, profile, has_q2 = struct.unpack("<8I", reader.take(32))

    def tensor(kind: str) -> TensorCalibration:
        order = np.frombuffer(reader.take(head_dim), np.uint8).astype(np.int64)
        return TensorCalibration(kind, order, reader.take(1)[0])

    calibrated = [HeadCalibration(tensor("k"), tensor("v")) for _ in range(heads)]
    calibration = LayerCalibration(calibrated, reader.take(16))
    q2 = reader.array(np.dtype("<f4"), (heads, head_dim)) if has_q2 else None
    k = reader.array(floats.STORED_AS[dtype], (tokens, heads, head_dim))
    v = reader.array(floats.STORED_AS[dtype], (tokens, heads, head_dim))
    (size,) = struct.unpack("<Q", reader.take(8))
    segment = reader.take(size)
    k_values = reader.array(np.dtype("<f4"), k.shape)
    v_values = reader.array(np.dtype("<f4"), v.shape)
    assert reader.at == len(reader.data)
    return Vector(dtype, bool(own), profile, calibration, q2, k, v, segment, k_values, v_values)


class _Reader:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.at += size
        assert self.at <= len(self.data)
        return self.data[self.at - size : self.at]

    def array(self, dtype: np.dtype, shape: tuple) -> np.ndarray:
        return np.frombuffer(self.take(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
