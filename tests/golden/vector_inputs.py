"""Inputs of the golden vectors: functions (rng, shape) -> float64 [token][head][channel]."""

import numpy as np

Rng = np.random.Generator


def normal(rng: Rng, shape: tuple) -> np.ndarray:
    return rng.normal(size=shape)


def lognormal_channels(rng: Rng, shape: tuple) -> np.ndarray:
    """Channel scales over three decades and centres far from 0, as in the keys of Qwen."""
    _, heads, head_dim = shape
    scale = np.exp(1.5 * rng.normal(size=(heads, head_dim)))
    centre = 30 * rng.normal(size=(heads, head_dim)) * (rng.random((heads, head_dim)) < 0.3)
    return centre + scale * rng.normal(size=shape)


def constant_channels(rng: Rng, shape: tuple) -> np.ndarray:
    """Every third channel is constant, some at 0, some halfway between two fp16 numbers."""
    x = rng.normal(size=shape)
    x[:, :, 0::3] = 1 + 2.0**-11
    x[:, :, 3::9] = 0
    x[:, :, 6::9] = -3.25
    return x


def constant_head(rng: Rng, shape: tuple) -> np.ndarray:
    """The first head is constant, the others are not."""
    x = rng.normal(size=shape)
    x[:, 0] = rng.normal(size=shape[2])
    return x


def zero_head(rng: Rng, shape: tuple) -> np.ndarray:
    x = rng.normal(size=shape)
    x[:, 0] = 0
    return x


def negative_zeros(rng: Rng, shape: tuple) -> np.ndarray:
    """Means so small and negative that the fp16 centre is -0, and inputs of -0."""
    pairs = rng.choice([-1.0, 1.0], size=(shape[0] // 2 - 1, *shape[1:]))
    x = np.concatenate([pairs, -pairs, np.zeros((1, *shape[1:])), np.full((1, *shape[1:]), -1e-9)])
    x[:, :, 5::8] = -0.0
    return x


def outliers(rng: Rng, shape: tuple) -> np.ndarray:
    """A few elements and a few tokens tower over the rest."""
    x = rng.normal(size=shape)
    x[rng.random(shape) < 0.003] *= 3000
    x[rng.integers(shape[0], size=3)] *= 100
    return x


def spread_tokens(rng: Rng, shape: tuple) -> np.ndarray:
    """Token scales spread over a factor of 1e4.

    Tokens come in opposite pairs, lest the deviation from the centre hide the small ones.
    """
    size = 10 ** rng.permutation(np.linspace(-3, 1, shape[0] // 2))
    half = rng.normal(size=(shape[0] // 2, *shape[1:])) * size[:, None, None]
    return np.stack([half, -half], axis=1).reshape(shape)


def vanishing_tokens(rng: Rng, shape: tuple) -> np.ndarray:
    """Most tokens equal the centre, so that their scale is below the smallest code."""
    relative = np.zeros(shape)
    relative[:2] = rng.integers(-8, 9, size=(2, *shape[1:])) / 16
    relative[2:4] = -relative[:2]
    return (1 + relative) * 2.0 ** np.arange(-2, 6)[np.arange(shape[2]) % 8]


def small(rng: Rng, shape: tuple) -> np.ndarray:
    """Stored scales and centres become fp16 subnormals, except for one channel's, just above 2^-14."""
    x = 2e-5 * rng.normal(size=shape)
    x[:, :, 7] *= 15.5
    x[:, :, 8] *= 1e-3  # its scale is held at 2^-24
    return x


def denormals(rng: Rng, shape: tuple) -> np.ndarray:
    """Beside ordinary channels some of fp32 and bf16 subnormals, and some whose squares are subnormal."""
    x = rng.normal(size=shape)
    x[:, :, 1::4] *= 2.0**-128
    x[:, :, 3::4] *= 2.0**-66
    return x


def too_small(rng: Rng, shape: tuple) -> np.ndarray:
    """No scale reaches 2^-14, but nearly: raw."""
    return 2.55e-4 * rng.normal(size=shape)


def too_large_centre(rng: Rng, shape: tuple) -> np.ndarray:
    """One centre of the last head rounds to infinity in fp16: raw."""
    x = rng.normal(size=shape)
    x[:, -1, 3] += 66000
    return x


def overflowing_square(rng: Rng, shape: tuple) -> np.ndarray:
    """The mean fits fp16, the squares overflow fp32: raw."""
    x = rng.normal(size=shape)
    x[0::2, 0, 9] = 3e19
    x[1::2, 0, 9] = -3e19
    return x


def wide_ties(rng: Rng, shape: tuple) -> np.ndarray:
    """For K pattern 43 of head_dim 64 with channels in order; see tie_group."""
    wide = tie_group(2.9, 4, [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 7])
    narrow = tie_group(2.4, 3, [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3])
    return _blocks_of(wide, narrow, shape)


def narrow_ties(rng: Rng, shape: tuple) -> np.ndarray:
    """For V pattern 21 of head_dim 64 with channels in order; see tie_group."""
    wide = tie_group(2.0, 2, [1] * 15)
    narrow = tie_group(1.6, 1, [0] * 10 + [1] * 5)
    return _blocks_of(wide, narrow, shape)


def tie_group(clip: float, width: int, whole: list[int]) -> np.ndarray:
    """[32 tokens][32 channels] of which nearly every z / step is a whole number: u is a tie.

    Each token and each channel holds the same numbers, 15 whole ones and a last one, each with both signs;
    so every token scale is 1. The last one brings the standard deviation to where the step is 1.
    """
    deviation = 2**width / (2 * clip)
    last = np.sqrt(16 * deviation**2 - sum(number**2 for number in whole))
    row = np.array([*whole, last])
    row = np.concatenate([row, -row])
    token, channel = np.indices((32, 32))
    return row[(token + channel) % 32]


def _blocks_of(wide: np.ndarray, narrow: np.ndarray, shape: tuple) -> np.ndarray:
    half_block = np.concatenate([wide, narrow], axis=1)
    assert shape[1:] == (1, 64)
    return np.tile(half_block, (shape[0] // 32, 1))[:, None, :]


def token_ties(rng: Rng, shape: tuple) -> np.ndarray:
    """Token scales of exactly 17/16 and 19/16, halfway between two codes: down to 1, up to 5/4."""
    return _tokens_of_size([17] * 7 + [19] * 4 + [15] * 21, rng, shape)


def carrying_ties(rng: Rng, shape: tuple) -> np.ndarray:
    """The largest token scale is 31/16 and rounds up to the next power of two."""
    return _tokens_of_size([31] * 2 + [17] * 3 + [15] * 15 + [13] * 12, rng, shape)


def _tokens_of_size(sixteenths: list[int], rng: Rng, shape: tuple) -> np.ndarray:
    """Elements of one token are plus or minus its size; pairs of tokens are opposite.

    Each channel's mean is 0 and its standard deviation 1, without any rounding.
    """
    assert shape[0] == 64 and len(sixteenths) == 32
    assert sum(size**2 for size in sixteenths) == 32 * 16**2
    size = rng.permutation(sixteenths) / 16
    half = size[:, None, None] * rng.choice([-1.0, 1.0], size=(32, *shape[1:]))
    return np.concatenate([half, -half])
