"""The three dtypes of a session. bf16 is held as uint16 bit patterns."""

import numpy as np

BF16, FP16, FP32 = 1, 2, 3
NAMES = {BF16: "bf16", FP16: "fp16", FP32: "fp32"}
STORED_AS = {BF16: np.dtype("<u2"), FP16: np.dtype("<f2"), FP32: np.dtype("<f4")}


def bf16_from_fp32(values: np.ndarray) -> np.ndarray:
    """Finite fp32 to bf16 bits, to nearest even."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))
    return (rounded >> np.uint64(16)).astype(np.uint16)


def fp32_from_bf16(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_fp32(values: np.ndarray, dtype: int) -> np.ndarray:
    """fp32 values as a session of this dtype stores them."""
    if dtype == BF16:
        return bf16_from_fp32(values)
    return np.asarray(values, np.float32).astype(STORED_AS[dtype])


def to_fp32(stored: np.ndarray, dtype: int) -> np.ndarray:
    """Exact for every dtype."""
    if dtype == BF16:
        return fp32_from_bf16(stored)
    return stored.astype(np.float32)
