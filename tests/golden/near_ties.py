"""Inputs beside the ties of every rounding, so that one fp32 step in another order shows in the bytes.

Ordinary inputs hide it: what a segment holds is rounded to 16 bits and less, and a sum in another order
is the same to seven digits. Here numbers are moved, round after round, until the model is about to decide
the other way. For fp32, head_dim 64, one head, patterns 43 (keys and values) with channels in order.
"""

import numpy as np

import planes_arithmetic
from planes_arithmetic import Fitted

WIDTHS = np.repeat([4, 3], 32)
ROUNDS = 100
Rng = np.random.Generator


def token_scales(rng: Rng, shape: tuple) -> np.ndarray:
    """Three of four tokens have an rms beside the middle of two 8-bit codes (the mean of rms^2 is always 1).

    Tokens come in opposite pairs: c = 0.
    """
    half = rng.normal(size=(shape[0] // 2, shape[2]))
    middle = nearest_middle_of_codes(rms(half))
    chosen = np.arange(len(half)) % 4 > 0
    for _ in range(ROUNDS):
        half *= np.where(chosen, middle / rms(half), 1)[:, None]
    return np.stack([half, -half], axis=1).reshape(shape)


def rms(x: np.ndarray) -> np.ndarray:
    """Steps 2 and 3 in double precision, where c = 0."""
    sd = np.sqrt((x * x).mean(axis=0))
    return np.sqrt(((x / sd) ** 2).mean(axis=1))


def nearest_middle_of_codes(value: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(value)  # [.5, 1): codes are whole sixteenths
    return np.ldexp((np.floor(16 * mantissa) + 0.5) / 16, exponent)


def tables(rng: Rng, shape: tuple) -> np.ndarray:
    """Every centre and every stored scale lies beside the middle of two fp16 numbers."""
    x = (5 * rng.normal(size=shape[2]) + rng.normal(size=shape)[:, 0]).astype(np.float64)
    for _ in range(ROUNDS):
        mean = x.mean(axis=0)
        x += nearest_middle_of_fp16(mean) - mean
        centre = planes_arithmetic.moments(x.astype(np.float32)).centre.astype(np.float64)
        d = x - centre
        scale = planes_arithmetic.step_factor(WIDTHS) * np.sqrt(((d / scales_of(x)) ** 2).mean(axis=0))
        x = x.mean(axis=0) + (x - x.mean(axis=0)) * (nearest_middle_of_fp16(scale) / scale)
    return x[:, None]


def scales_of(x: np.ndarray) -> np.ndarray:
    codes = fit(x).token_codes
    return planes_arithmetic.token_scale(codes).astype(np.float64)[:, None]


def nearest_middle_of_fp16(value: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(value)  # [.5, 1): fp16 numbers are whole 2048ths
    return np.ldexp((np.floor(2048 * mantissa) + 0.5) / 2048, exponent)


def codes(rng: Rng, shape: tuple) -> np.ndarray:
    """Half of the elements lie beside the middle of two codes, many of them between the lowest two:

    there z / step + half is small, and the addition does not round the last bits of the quotient away.
    """
    x = rng.normal(size=shape)[:, 0]
    kind = rng.random(x.shape)
    chosen, outermost = kind < 0.5, kind < 0.04
    sign = rng.choice([-1, 1], size=x.shape)
    for _ in range(ROUNDS):
        fitted = fit(x)
        scale = scales_of(x) * planes_arithmetic.step_of(fitted.stored, WIDTHS)
        levels = 2.0**WIDTHS
        level = (x - fitted.centre) / scale
        end = levels / 2 - 1
        middle = np.where(outermost, sign * end, np.clip(np.rint(level), -end, end))
        x = np.where(chosen, fitted.centre + scale * middle, x)
    return x[:, None]


def fit(x: np.ndarray) -> Fitted:
    return planes_arithmetic.fit(x.astype(np.float32), WIDTHS)
