"""The arithmetic of FORMAT.md: steps 1 to 7, keys or values of one head.

Every line of numpy float32 below is one fp32 step; numpy's own sums are not used, because they
reassociate. Token by token and block by block in loops, channels (and blocks) side by side.
"""

from dataclasses import dataclass

import numpy as np

BLOCK = 64
CLIP = {1: "1.6", 2: "2.0", 3: "2.4", 4: "2.9"}


class NotRepresentable(Exception):
    """The segment must be written as raw."""


@dataclass
class Moments:
    """Steps 1 and 2, which a session's own calibration needs as well."""

    centre: np.ndarray  # fp16, [channel]
    deviation: np.ndarray  # d, fp32, [token][channel]
    variance: np.ndarray  # SUM(d * d) / n, fp32, [channel]


@dataclass
class Fitted:
    centre: np.ndarray  # fp16, [channel]
    stored: np.ndarray  # fp16, [channel]
    token_codes: np.ndarray  # uint8, [token]
    codes: np.ndarray  # u, int64, [token][channel]; 0 where the width is 0


def sum_over_tokens(f: np.ndarray) -> np.ndarray:
    """SUM: f[token][channel] -> [channel]."""
    blocks = f.reshape(-1, BLOCK, f.shape[1])
    partial = np.zeros((len(blocks), f.shape[1]), np.float32)
    for token in range(BLOCK):
        partial = partial + blocks[:, token]
    total = np.zeros(f.shape[1], np.float32)
    for block_sum in partial:
        total = total + block_sum
    return total


def tree_over_channels(f: np.ndarray) -> np.ndarray:
    """TREE: f[token][channel] -> [token]."""
    half = f.shape[1] // 2
    while half >= 1:
        f = f[:, :half] + f[:, half:]
        half //= 2
    return f[:, 0]


def require_finite(*arrays: np.ndarray) -> None:
    if not all(np.isfinite(a).all() for a in arrays):
        raise NotRepresentable


def step_factor(widths: np.ndarray) -> np.ndarray:
    """k of step 6; 0 for width 0."""
    k = np.zeros(len(widths), np.float32)
    for width, clip in CLIP.items():
        k[widths == width] = np.float32(clip) / np.float32(8)
    return k


def token_code(rms: np.ndarray) -> np.ndarray:
    """Step 4."""
    bits = rms.view(np.uint32).astype(np.int64)
    b = (bits + 0x7FFFF + (bits >> 20 & 1)) >> 20
    exponent = b.max() >> 3
    return np.maximum(0, b - 8 * exponent + 248).astype(np.uint8)


def token_scale(code: np.ndarray) -> np.ndarray:
    """fp32 value of 8-bit token codes."""
    return ((code.astype(np.uint32) << np.uint32(20)) + np.uint32(96 << 23)).view(np.float32)


def moments(x: np.ndarray) -> Moments:
    """Steps 1 and 2 without the root. Overflow shows as values that are not finite."""
    n = np.float32(len(x))
    with np.errstate(all="ignore"):
        centre = (sum_over_tokens(x) / n).astype(np.float16)
        deviation = x - centre.astype(np.float32)
        variance = sum_over_tokens(deviation * deviation) / n
    return Moments(centre, deviation, variance)


def fit(x: np.ndarray, widths: np.ndarray) -> Fitted:
    """Steps 1 to 7. x is fp32 [token][channel], widths has one entry a channel, both in original order."""
    assert x.dtype == np.float32
    with np.errstate(all="ignore"):
        return _fit(x, widths)


def _fit(x: np.ndarray, widths: np.ndarray) -> Fitted:
    n = np.float32(len(x))
    head_dim = np.float32(x.shape[1])

    m = moments(x)
    require_finite(m.centre, m.variance)
    d = m.deviation
    sd = np.maximum(np.sqrt(m.variance), np.float32(1e-12))

    r = d / sd
    rms = np.maximum(np.sqrt(tree_over_channels(r * r) / head_dim), np.float32(1e-6))
    require_finite(sd, rms)

    token_codes = token_code(rms)
    s = token_scale(token_codes)

    z = d / s[:, None]
    sd2 = np.sqrt(sum_over_tokens(z * z) / n)
    require_finite(z, sd2)

    scale = (step_factor(widths) * sd2).astype(np.float16)
    require_finite(scale)
    if (sd2 > 0).any() and scale[widths > 0].max() < np.float16(2.0**-14):
        raise NotRepresentable
    stored = np.where(widths > 0, np.maximum(scale, np.float16(2.0**-24)), np.float16(0))

    return Fitted(m.centre, stored, token_codes, quantise(z, stored, widths))


def quantise(z: np.ndarray, stored: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Step 7; codes of channels of width 0 are 0."""
    coded = widths > 0
    levels = np.ldexp(np.float32(1), widths).astype(np.float32)
    half = (levels - np.float32(1)) / np.float32(2)
    step = np.where(coded, step_of(stored, widths), np.float32(1))
    quotient = z / step
    shifted = quotient + half
    codes = np.minimum(np.maximum(np.rint(shifted), np.float32(0)), levels - np.float32(1))
    return np.where(coded, codes, np.float32(0)).astype(np.int64)


def step_of(stored: np.ndarray, widths: np.ndarray) -> np.ndarray:
    return np.ldexp(stored.astype(np.float32), 4 - widths).astype(np.float32)


def values(fitted: Fitted, widths: np.ndarray) -> np.ndarray:
    """Decoded fp32 values [token][channel]."""
    half = np.ldexp(np.float32(1), widths - 1).astype(np.float32) - np.float32(0.5)
    level = fitted.codes.astype(np.float32) - half
    scale = token_scale(fitted.token_codes)[:, None] * step_of(fitted.stored, widths)
    centre = fitted.centre.astype(np.float32)
    return np.where(widths > 0, centre + scale * level, centre)
