"""Where the bits of the codes lie: packing of one group of 32 places, 64 tokens."""

import functools

import numpy as np

TOKENS = 64
PLACES = 32


def nibble_bit(width: int, x: int, k: int) -> tuple[int, int]:
    """Word number and bit of the nibble that hold bit k of the code of chunk x."""
    if width == 4:
        return x, k
    if width == 3:
        return (x, k + 1) if x < 3 else (k, 0)
    if width == 2:
        return (x // 2, k + 2) if x % 2 == 0 else (x // 2, k)
    return 0, 3 - x


def k_bit(width: int, token: int, place: int, k: int) -> int:
    """Bit number, inside a K group, of bit k of one code."""
    x, s, g = token // 16, token // 8 % 2, token % 8
    h, t, e = place // 16, place % 16 // 4, place % 4
    j, bit = nibble_bit(width, x, k)
    lane = 4 * g + t
    f = 2 * j + h
    if f < 4 * (width // 2):
        word_at = 512 * (f // 4) + 16 * lane + 4 * (f % 4)
    else:
        word_at = 512 * (width // 2) + 8 * lane + 4 * (f % 2)
    return 8 * (word_at + e) + 4 * s + bit


def v_bit(width: int, token: int, place: int, k: int) -> int:
    """Bit number, inside a V group, of bit k of one code."""
    x = token // 16
    e = 2 * (token % 2) + token // 8 % 2
    t = token % 8 // 2
    tile, s, g = place // 16, place // 8 % 2, place % 8
    j, bit = nibble_bit(width, x, k)
    lane = 4 * g + t
    word_at = {
        1: 4 * lane,
        2: 8 * lane + 4 * j,
        3: 8 * lane + 4 * j if j < 2 else 256 + 4 * lane,
        4: 16 * lane + 4 * j,
    }[width]
    return 8 * (128 * width * tile + word_at + e) + 4 * s + bit


@functools.cache
def bit_numbers(kind: str, width: int) -> np.ndarray:
    """[bit of the code][token][place] -> bit number inside the group."""
    bit_of = {"k": k_bit, "v": v_bit}[kind]
    return np.array(
        [
            [[bit_of(width, token, place, k) for place in range(PLACES)] for token in range(TOKENS)]
            for k in range(width)
        ]
    )


def pack_group(kind: str, width: int, codes: np.ndarray) -> bytes:
    """codes[token][place] of one block and one group -> 256 * width bytes."""
    bits = np.zeros(8 * 256 * width, np.uint8)
    for k in range(width):
        bits[bit_numbers(kind, width)[k]] = codes >> k & 1
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_group(kind: str, width: int, group: bytes) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(group, np.uint8), bitorder="little").astype(np.int64)
    codes = np.zeros((TOKENS, PLACES), np.int64)
    for k in range(width):
        codes += bits[bit_numbers(kind, width)[k]] << k
    return codes
