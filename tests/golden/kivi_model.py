"""The opponent: KIVI's quantiser with groups of 32, asymmetric, fp16 scale and zero point.

Keys per channel (32 tokens share a scale), values per token (32 channels share one).
"""

import numpy as np

GROUP = 32


def bits_per_value(bits: int) -> float:
    return bits + (16 + 16) / GROUP


def quantised(x: np.ndarray, bits: int) -> np.ndarray:
    """x[..., 32] -> the values that its codes stand for; groups along the last axis."""
    zero = x.min(axis=-1, keepdims=True).astype(np.float16).astype(np.float32)
    largest = x.max(axis=-1, keepdims=True)
    levels = 2**bits - 1
    scale = ((largest - zero) / np.float32(levels)).astype(np.float16).astype(np.float32)
    divisor = np.where(scale > 0, scale, np.float32(1))
    codes = np.clip(np.rint((x - zero) / divisor), 0, levels)
    return zero + scale * codes


def quantised_keys(k: np.ndarray, bits: int = 2) -> np.ndarray:
    """fp32 [token][head][channel]; tokens a multiple of 32."""
    tokens, heads, head_dim = k.shape
    groups = k.reshape(tokens // GROUP, GROUP, heads, head_dim).transpose(0, 2, 3, 1)
    return quantised(groups, bits).transpose(0, 3, 1, 2).reshape(k.shape)


def quantised_values(v: np.ndarray, bits: int = 2) -> np.ndarray:
    tokens, heads, head_dim = v.shape
    return quantised(v.reshape(tokens, heads, head_dim // GROUP, GROUP), bits).reshape(v.shape)
