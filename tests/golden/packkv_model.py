"""`packkv` in numpy, written from the paper's description and gpu/FORMAT.md alone: codes, orders and sizes.

Values are float32 [token][kv_head][channel], a whole number of blocks.
"""

import struct
from dataclasses import dataclass

import numpy as np

BLOCK = 64
NONE, MEDIAN, GREEDY = 1, 2, 3


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bf16, half to even, as float32."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def quantize(values: np.ndarray, relative_scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [token][kv_head][channel], zero points and steps of tokens."""
    rows = values.reshape(len(values), -1)
    least, most = rows.min(1), rows.max(1)
    magnitude = np.maximum(np.abs(least), np.abs(most))
    wanted = np.maximum((most - least) * np.float32(relative_scale), magnitude * np.float32(1 / 32000))
    step = to_bf16(np.maximum(wanted, np.float32(2.0 ** -126)))
    zero = np.rint(least / step).astype(np.int64)
    codes = np.rint(rows / step[:, None]).astype(np.int64) - zero[:, None]
    return codes.reshape(values.shape), zero, step


def _sum_over_tokens(terms: np.ndarray) -> np.ndarray:
    """In fp32: token after token within a block, then block after block."""
    total = np.zeros(terms.shape[1:], np.float32)
    for block in terms.reshape(-1, BLOCK, *terms.shape[1:]):
        part = np.zeros_like(total)
        for token in block:
            part = part + token
        total = total + part
    return total


def channel_table(values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Centres and scales [kv_head][channel] of a segment, as bf16 in float32."""
    tokens = np.float32(len(values))
    centre = to_bf16(_sum_over_tokens(values) / tokens)
    distance = values - centre
    scale = np.sqrt(_sum_over_tokens(distance * distance) / tokens)
    if weights is not None:
        least = weights.max(1, keepdims=True) * np.float32(1e-6)
        scale = np.sqrt(scale / np.where(least > 0, np.sqrt(np.maximum(weights, least)), np.float32(1)))
    return centre, to_bf16(np.maximum(scale, np.float32(2.0 ** -126)))


def quantize_normalized(values: np.ndarray, relative_scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [token][kv_head][channel], zero points and steps [token][kv_head] of normalised values."""
    squares = values * values
    while squares.shape[2] > 1:
        half = squares.shape[2] // 2
        squares = squares[:, :, :half] + squares[:, :, half:]
    head_dim = values.shape[2]
    least, most = values.min(2), values.max(2)
    extent = np.maximum(np.sqrt(squares[:, :, 0] / np.float32(head_dim)), (most - least) / np.sqrt(np.float32(2 * head_dim)))
    magnitude = np.maximum(np.abs(least), np.abs(most))
    wanted = np.maximum(extent * np.float32(relative_scale), magnitude * np.float32(1 / 32000))
    step = to_bf16(np.maximum(wanted, np.float32(2.0 ** -126)))
    zero = np.rint(least / step).astype(np.int64)
    codes = np.rint(values / step[:, :, None]).astype(np.int64) - zero[:, :, None]
    return codes, zero, step


def bit_length(values: np.ndarray) -> np.ndarray:
    return np.ceil(np.log2(np.asarray(values, np.float64) + 1)).astype(np.int64)


def order_of(repacking: int, pack: int, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Of one block's codes: the token at each place."""
    if repacking == NONE:
        return np.arange(BLOCK)
    k, v = k.reshape(BLOCK, -1), v.reshape(BLOCK, -1)
    if repacking == MEDIAN:
        return np.argsort(-np.sort(v, 1)[:, (v.shape[1] - 1) // 2], kind="stable")
    rows = np.concatenate([k, v], 1)
    left, order = list(range(BLOCK)), []
    while left:
        # Half up, in integers; cosines compare as dot^2 / norm^2, exactly, as Python's integers.
        mean = (2 * rows[left].sum(0) + len(left)) // (2 * len(left))
        best, best_dot, best_norm = 0, 0, 1
        for place, token in enumerate(left):
            dot, norm = int(rows[token] @ mean), int(rows[token] @ rows[token])
            if norm > 0 and dot * dot * best_norm > best_dot * best_dot * norm:
                best, best_dot, best_norm = place, dot, norm
        order.append(left.pop(best))
        least = most = rows[order[-1]]
        for _ in range(pack - 1):
            bits = bit_length(np.maximum(most, rows[left]) - np.minimum(least, rows[left])).sum(1)
            order.append(left.pop(int(np.argmin(bits))))
            least, most = np.minimum(least, rows[order[-1]]), np.maximum(most, rows[order[-1]])
    return np.array(order)


@dataclass
class Quantized:
    """K or V: codes, and what makes values of them again."""

    codes: np.ndarray  # [token][kv_head][channel]
    zero: np.ndarray  # [token][kv_head], or [token][1] where all heads share a step
    step: np.ndarray
    centre: np.ndarray | None = None  # [kv_head][channel]
    scale: np.ndarray | None = None

    @staticmethod
    def of(values: np.ndarray, relative_scale: float) -> "Quantized":
        codes, zero, step = quantize(values, relative_scale)
        return Quantized(codes, zero[:, None], step[:, None])

    @staticmethod
    def normalized(values: np.ndarray, relative_scale: float, weights: np.ndarray | None) -> "Quantized":
        centre, scale = channel_table(values, weights)
        codes, zero, step = quantize_normalized((values - centre) / scale, relative_scale)
        return Quantized(codes, zero, step, centre, scale)

    def values(self) -> np.ndarray:
        rows = (self.codes + self.zero[:, :, None]).astype(np.float32) * self.step[:, :, None]
        return rows if self.centre is None else rows * self.scale + self.centre


class Tensor:
    """K or V of some blocks, quantised and in its packs."""

    def __init__(self, codes: np.ndarray, orders: list[np.ndarray], pack: int):
        self.pack, self.head_dim = pack, codes.shape[2]
        self.bits = int(bit_length(codes.max()))
        blocks = codes.reshape(-1, BLOCK, *codes.shape[1:])
        packed = np.stack([block[order] for block, order in zip(blocks, orders)])
        # [block][round][place of a pack][kv_head][channel]
        self.packs = packed.reshape(len(blocks), BLOCK // pack, pack, *codes.shape[1:])
        # [block][round][kv_head][channel]
        self.widths = bit_length(self.packs.max(2) - self.packs.min(2))

    def width_code_bits(self) -> int:
        return int(bit_length(self.bits))

    def paper_bits(self) -> float:
        return self.widths.mean() + (self.bits + self.width_code_bits()) / self.pack

    def round_bytes(self) -> np.ndarray:
        """[block][round][kv_head]"""
        header = -(-self.head_dim * self.bits // 8) + -(-self.head_dim * self.width_code_bits() // 8)
        parts = -(-self.widths.sum(3) * self.pack // 8)
        return -(-header // 16) * 16 + -(-parts // 16) * 16


class Layer:
    def __init__(self, k: np.ndarray, v: np.ndarray, pack: int, repacking: int, k_scale: float, v_scale: float,
                 normalize: bool = False, k_weights: np.ndarray | None = None):
        self.pack, self.repacking, self.scales = pack, repacking, (k_scale, v_scale)
        self.quantized = (
            (Quantized.normalized(k, k_scale, k_weights), Quantized.normalized(v, v_scale, None))
            if normalize else (Quantized.of(k, k_scale), Quantized.of(v, v_scale)))
        self.decoded_k, self.decoded_v = (tensor.values() for tensor in self.quantized)
        blocks = len(k) // BLOCK
        k_codes, v_codes = (tensor.codes for tensor in self.quantized)
        self.orders = [order_of(repacking, pack, k_codes[b * BLOCK:(b + 1) * BLOCK], v_codes[b * BLOCK:(b + 1) * BLOCK])
                       for b in range(blocks)]
        self.k, self.v = (Tensor(codes, self.orders, pack) for codes in (k_codes, v_codes))
        heads, rounds = k.shape[1], BLOCK // pack
        tables = 8 * heads * k.shape[2] + blocks * (512 * heads + 64) if normalize else 576 * blocks
        directory = 64 + tables + blocks * heads * (8 + 4 * rounds)
        self.body_bytes = -(-directory // 16) * 16 + int(self.k.round_bytes().sum() + self.v.round_bytes().sum())

    def body(self) -> bytes:
        """All that is behind a segment's header."""
        normalized = self.quantized[0].centre is not None
        header = struct.pack("<2f5B51x", *self.scales, self.pack, self.repacking, self.k.bits, self.v.bits, normalized)
        heads = self.quantized[0].codes.shape[1]
        channels = b"".join(
            _bf16_bytes(part[head])
            for head in range(heads if normalized else 0)
            for tensor in self.quantized
            for part in (tensor.centre, tensor.scale))
        tables = b"".join(self._table(block) for block in range(len(self.orders)))
        entry_bytes = 8 + 4 * (BLOCK // self.pack)
        before = header + channels + tables
        entries, tiles = b"", b""
        tiles_at = -(-(len(before) + len(self.orders) * heads * entry_bytes) // 16) * 16
        for block in range(len(self.orders)):
            for head in range(heads):
                begins, units = [], []
                for tensor in (self.k, self.v):
                    begins.append((tiles_at + len(tiles)) // 16)
                    for codes in tensor.packs[block, :, :, head]:
                        written = _write_round(codes, tensor.bits)
                        units.append(len(written) // 16)
                        tiles += written
                entries += struct.pack(f"<2I{len(units)}H", *begins, *units)
        return (before + entries).ljust(tiles_at, b"\0") + tiles

    def _table(self, block: int) -> bytes:
        order = self.orders[block]
        tokens = block * BLOCK + order
        k, v = self.quantized
        out = b""
        for head in range(k.step.shape[1]):
            for tensor in (k, v):
                out += _bf16_bytes(tensor.step[tokens, head])
            for tensor in (k, v):
                out += tensor.zero[tokens, head].astype("<i2").tobytes()
        return out + order.astype(np.uint8).tobytes()


def _bf16_bytes(values: np.ndarray) -> bytes:
    """Of values that are bf16."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()


def _bits(numbers: np.ndarray, below: int, count: int) -> np.ndarray:
    """[number][bit], the lowest first."""
    return numbers[:, None] >> np.arange(below, below + count) & 1


def _unit_bytes(streams: list[np.ndarray]) -> bytes:
    """Bits, the lowest of a byte first, up to whole units of 16 bytes."""
    bits = np.concatenate([np.zeros(0, np.int64), *(stream.ravel() for stream in streams)])
    data = np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()
    return data.ljust(-(-len(data) // 16) * 16, b"\0")


def _write_round(codes: np.ndarray, code_bits: int) -> bytes:
    """Of codes [place][channel]."""
    pack, head_dim = codes.shape
    least = codes.min(0)
    above = codes - least
    widths = bit_length(above.max(0))
    # A multiple of 8 channels, so that the widths begin with a byte.
    header = _unit_bytes([_bits(least, 0, code_bits), _bits(widths, 0, code_bits.bit_length()).T])
    pairs = [_bits(above[:, c], below, 2) for c in range(head_dim) for below in range(0, widths[c] - 1, 2)]
    singles = []
    for c in np.flatnonzero(widths % 2):
        part = np.zeros(pack, np.int64)
        part[_single_places(pack)] = above[:, c] >> (widths[c] - 1) & 1
        singles.append(part)
    return header + _unit_bytes(pairs + singles)


def _single_places(pack: int) -> np.ndarray:
    """Where the bit of each place of a pack lies in a part of single bits."""
    place = np.arange(pack)
    return 2 * (place % 8) + place // 8 if pack == 16 else place


def read_body(body: bytes, blocks: int, heads: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of K and of V [token][kv_head][channel], read from the bytes as gpu/FORMAT.md lays them out."""
    pack, code_bits, normalized = body[8], body[10:12], body[12] == 1
    rounds = BLOCK // pack
    channels = np.frombuffer(body, np.uint16, 4 * heads * head_dim if normalized else 0, 64).astype(np.uint32)
    channels = (channels << 16).view(np.float32).reshape(-1, 2, 2, head_dim)
    tables, table_bytes = 64 + 2 * channels.size, 512 * (heads if normalized else 1) + 64
    values = np.zeros((2, blocks * BLOCK, heads, head_dim), np.float32)
    for block in range(blocks):
        order = np.frombuffer(body, np.uint8, BLOCK, tables + table_bytes * (block + 1) - BLOCK)
        for head in range(heads):
            table = tables + table_bytes * block + (512 * head if normalized else 0)
            entry = tables + table_bytes * blocks + (block * heads + head) * (8 + 4 * rounds)
            for tensor in range(2):
                step = (np.frombuffer(body, np.uint16, BLOCK, table + 128 * tensor).astype(np.uint32) << 16).view(np.float32)
                zero = np.frombuffer(body, np.int16, BLOCK, table + 256 + 128 * tensor).astype(np.int64)
                at = 16 * int(np.frombuffer(body, np.uint32, 2, entry)[tensor])
                for r, units in enumerate(np.frombuffer(body, np.uint16, rounds, entry + 8 + 2 * rounds * tensor)):
                    codes = _read_round(body[at:at + 16 * int(units)], pack, head_dim, code_bits[tensor])
                    at += 16 * int(units)
                    for i in range(pack):
                        place = r * pack + i
                        row = (codes[i] + zero[place]).astype(np.float32) * step[place]
                        if normalized:
                            row = row * channels[head, tensor, 1] + channels[head, tensor, 0]
                        values[tensor, block * BLOCK + order[place], head] = row
    return values[0], values[1]


def _read_round(data: bytes, pack: int, head_dim: int, code_bits: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").astype(np.int64)
    least = bits[:head_dim * code_bits].reshape(head_dim, code_bits) @ (1 << np.arange(code_bits))
    width_bits = code_bits.bit_length()
    at = 8 * -(-head_dim * code_bits // 8)
    widths = (1 << np.arange(width_bits)) @ bits[at:at + width_bits * head_dim].reshape(width_bits, head_dim)
    at = 128 * -(-(at + width_bits * head_dim) // 128)

    codes = np.tile(least, (pack, 1))
    for c in range(head_dim):
        for below in range(0, widths[c] - 1, 2):
            codes[:, c] += (bits[at:at + 2 * pack:2] + 2 * bits[at + 1:at + 2 * pack:2]) << below
            at += 2 * pack
    for c in np.flatnonzero(widths % 2):
        codes[:, c] += bits[at + _single_places(pack)] << (widths[c] - 1)
        at += pack
    return codes
