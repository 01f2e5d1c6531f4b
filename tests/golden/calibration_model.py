"""A layer's calibration, and how a session derives its own."""

from dataclasses import dataclass

import numpy as np
import xxhash

import floats
import patterns
import planes_arithmetic


@dataclass
class TensorCalibration:
    """Keys or values of one head."""

    kind: str  # "k" or "v"
    order: np.ndarray  # place -> channel
    pattern: int

    def place_widths(self) -> np.ndarray:
        widths = patterns.group_widths(self.kind, len(self.order), self.pattern)
        return np.repeat(widths, patterns.GROUP)

    def channel_widths(self) -> np.ndarray:
        widths = np.empty(len(self.order), np.int64)
        widths[self.order] = self.place_widths()
        return widths


@dataclass
class HeadCalibration:
    k: TensorCalibration
    v: TensorCalibration


@dataclass
class LayerCalibration:
    heads: list[HeadCalibration]
    hash16: bytes


def own_hash(heads: list[HeadCalibration]) -> bytes:
    message = b""
    for head in heads:
        for tensor in (head.k, head.v):
            message += tensor.order.astype(np.uint8).tobytes() + bytes([tensor.pattern])
    return xxhash.xxh3_128_digest(message)  # the canonical form, big-endian


def descending(importance: np.ndarray) -> np.ndarray:
    """Channels by descending importance, then ascending number."""
    return np.array(sorted(range(len(importance)), key=lambda j: (-importance[j], j)))


def derive_own(
    k: np.ndarray, v: np.ndarray, dtype: int, profile: int, q2: np.ndarray | None = None
) -> LayerCalibration:
    """From the first segment's k, v [token][head][channel]; q2 is fp32 [head][channel]."""
    head_dim = k.shape[2]
    mean = patterns.PROFILE_MEANS[profile]
    heads = []
    for head in range(k.shape[1]):
        k_importance = planes_arithmetic.moments(floats.to_fp32(k[:, head], dtype)).variance
        v_importance = planes_arithmetic.moments(floats.to_fp32(v[:, head], dtype)).variance
        if q2 is not None:
            k_importance = k_importance * q2[head]
        heads.append(
            HeadCalibration(
                TensorCalibration(
                    "k", descending(k_importance), patterns.next_above("k", head_dim, mean)
                ),
                TensorCalibration(
                    "v", descending(v_importance), patterns.next_below("v", head_dim, mean)
                ),
            )
        )
    return LayerCalibration(heads, own_hash(heads))
