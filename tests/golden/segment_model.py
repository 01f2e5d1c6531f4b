"""A segment's bytes: header, raw parts, planes parts, a packkv body. See gpu/FORMAT.md.

k and v are [token][head][channel] as the session stores them (floats.py).
"""

import struct

import numpy as np
import xxhash

import floats
import packkv_model
import planes_arithmetic
import plane_bits
from calibration_model import HeadCalibration, LayerCalibration, TensorCalibration
from planes_arithmetic import BLOCK, Fitted, NotRepresentable

MAGIC = b"KVDS"
VERSION = 1
RAW, PLANES, PACKKV = 1, 2, 3
CHECKSUM_AT = 24
CHECKSUM_PIECE = 4096


# Sizes

def header_bytes(heads: int) -> int:
    return -(-(64 + 2 * heads) // 128) * 128


def raw_record_bytes(head_dim: int, dtype: int, tokens: int = BLOCK) -> int:
    return 2 * tokens * head_dim * floats.STORED_AS[dtype].itemsize


def raw_segment_bytes(tokens: int, heads: int, head_dim: int, dtype: int) -> int:
    return header_bytes(heads) + heads * (tokens // BLOCK) * raw_record_bytes(head_dim, dtype)


def record_bytes(head: HeadCalibration) -> int:
    return 128 + 8 * int(head.k.place_widths().sum() + head.v.place_widths().sum())


def planes_part_bytes(tokens: int, head: HeadCalibration) -> int:
    return 8 * len(head.k.order) + (tokens // BLOCK) * record_bytes(head)


def planes_segment_bytes(tokens: int, calibration: LayerCalibration) -> int:
    parts = sum(planes_part_bytes(tokens, head) for head in calibration.heads)
    return header_bytes(len(calibration.heads)) + parts


# Tables and records

def table_places(kind: str, head_dim: int) -> np.ndarray:
    """[g][i] -> place."""
    places = np.zeros((8, head_dim // 8), np.int64)
    for g in range(8):
        for i in range(head_dim // 8):
            offset = 2 * g + i % 2 if kind == "k" else 8 * (i % 2) + g
            places[g, i] = 16 * (i // 2) + offset
    return places


def encode_table(calibration: TensorCalibration, fitted: Fitted) -> bytes:
    channels = calibration.order[table_places(calibration.kind, len(calibration.order))]
    rows = np.concatenate([fitted.stored[channels], fitted.centre[channels]], axis=1)
    return rows.astype("<f2").tobytes()


def decode_table(calibration: TensorCalibration, table: bytes) -> tuple:
    """-> stored scales and centres, fp16, by channel."""
    head_dim = len(calibration.order)
    channels = calibration.order[table_places(calibration.kind, head_dim)]
    rows = np.frombuffer(table, "<f2").reshape(8, 2, head_dim // 8)
    stored, centre = np.zeros(head_dim, np.float16), np.zeros(head_dim, np.float16)
    stored[channels] = rows[:, 0]
    centre[channels] = rows[:, 1]
    return stored, centre


def encode_token_scales(k_codes: np.ndarray, v_codes: np.ndarray) -> bytes:
    """The codes of the 64 tokens of a block."""
    out = bytearray(128)
    for token in range(BLOCK):
        x, s, g = token // 16, token // 8 % 2, token % 8
        out[16 * g + 2 * x + s] = k_codes[token]
        out[16 * g + 8 + 2 * x + s] = v_codes[token]
    return bytes(out)


def decode_token_scales(rows: bytes) -> tuple[np.ndarray, np.ndarray]:
    codes = np.frombuffer(rows, np.uint8).reshape(8, 2, 4, 2)  # [g][K, V][x][s]
    by_token = codes.transpose(1, 2, 3, 0).reshape(2, BLOCK)  # token 16 x + 8 s + g
    return by_token[0], by_token[1]


def encode_planes_of_block(calibration: TensorCalibration, codes: np.ndarray) -> bytes:
    """codes[token][channel] of one block."""
    by_place = codes[:, calibration.order]
    out = b""
    for first in range(0, len(calibration.order), 32):
        width = int(calibration.place_widths()[first])
        if width > 0:
            out += plane_bits.pack_group(calibration.kind, width, by_place[:, first : first + 32])
    return out


def decode_planes_of_block(calibration: TensorCalibration, planes: bytes) -> np.ndarray:
    codes = np.zeros((BLOCK, len(calibration.order)), np.int64)
    at = 0
    for first in range(0, len(calibration.order), 32):
        width = int(calibration.place_widths()[first])
        if width > 0:
            group = plane_bits.unpack_group(calibration.kind, width, planes[at : at + 256 * width])
            codes[:, calibration.order[first : first + 32]] = group
        at += 256 * width
    assert at == len(planes)
    return codes


# Segments

def encode_raw(k: np.ndarray, v: np.ndarray, dtype: int) -> bytes:
    tokens, heads, head_dim = k.shape
    parts = b""
    for head in range(heads):
        for first in range(0, tokens, BLOCK):
            for tensor in (k, v):
                block = tensor[first : first + BLOCK, head]
                parts += block.astype(floats.STORED_AS[dtype]).tobytes()
    return _with_header(RAW, dtype, k.shape, bytes(16), bytes(2 * heads), parts)


def encode_planes(k: np.ndarray, v: np.ndarray, dtype: int, calibration: LayerCalibration) -> bytes:
    """Raises NotRepresentable where the segment must be raw."""
    pattern_numbers, parts = b"", b""
    for number, head in enumerate(calibration.heads):
        k_fit = planes_arithmetic.fit(floats.to_fp32(k[:, number], dtype), head.k.channel_widths())
        v_fit = planes_arithmetic.fit(floats.to_fp32(v[:, number], dtype), head.v.channel_widths())
        pattern_numbers += bytes([head.k.pattern, head.v.pattern])
        parts += encode_table(head.k, k_fit) + encode_table(head.v, v_fit)
        for first in range(0, len(k), BLOCK):
            block = slice(first, first + BLOCK)
            parts += encode_token_scales(k_fit.token_codes[block], v_fit.token_codes[block])
            parts += encode_planes_of_block(head.k, k_fit.codes[block])
            parts += encode_planes_of_block(head.v, v_fit.codes[block])
    return _with_header(PLANES, dtype, k.shape, calibration.hash16, pattern_numbers, parts)


def encode(k: np.ndarray, v: np.ndarray, dtype: int, calibration: LayerCalibration) -> bytes:
    """planes where the numbers allow it, else raw."""
    try:
        return encode_planes(k, v, dtype, calibration)
    except NotRepresentable:
        return encode_raw(k, v, dtype)


def encode_packkv(k: np.ndarray, v: np.ndarray, dtype: int, *options) -> bytes:
    """Options as those of packkv_model.Layer."""
    layer = packkv_model.Layer(floats.to_fp32(k, dtype), floats.to_fp32(v, dtype), *options)
    return _with_header(PACKKV, dtype, k.shape, bytes(16), bytes(2 * k.shape[1]), layer.body())


def codec_of(segment: bytes) -> int:
    return segment[6]


def decode(segment: bytes, heads: list[HeadCalibration] | None = None) -> tuple:
    """-> fp32 K, V [token][head][channel]. Planes need the calibration's channel orders."""
    _check(segment)
    codec, dtype = segment[6], segment[7]
    tokens, count, head_dim = struct.unpack_from("<IHH", segment, 8)
    parts = segment[header_bytes(count) :]
    if codec == RAW:
        stored = np.frombuffer(parts, floats.STORED_AS[dtype])
        by_head = stored.reshape(count, tokens // BLOCK, 2, BLOCK, head_dim)
        kv = by_head.transpose(2, 1, 3, 0, 4).reshape(2, tokens, count, head_dim)
        return floats.to_fp32(kv[0], dtype), floats.to_fp32(kv[1], dtype)
    if codec == PACKKV:
        return packkv_model.read_body(parts, tokens // BLOCK, count, head_dim)

    k = np.zeros((tokens, count, head_dim), np.float32)
    v = np.zeros_like(k)
    at = 0
    for number, head in enumerate(heads):
        assert segment[64 + 2 * number : 66 + 2 * number] == bytes([head.k.pattern, head.v.pattern])
        size = planes_part_bytes(tokens, head)
        k[:, number], v[:, number] = _decode_part(parts[at : at + size], head)
        at += size
    assert at == len(parts)
    return k, v


def _decode_part(part: bytes, head: HeadCalibration) -> tuple[np.ndarray, np.ndarray]:
    head_dim = len(head.k.order)
    k_stored, k_centre = decode_table(head.k, part[: 4 * head_dim])
    v_stored, v_centre = decode_table(head.v, part[4 * head_dim : 8 * head_dim])
    k_end = 128 + 8 * int(head.k.place_widths().sum())
    k_codes, v_codes, k_scales, v_scales = [], [], [], []
    for at in range(8 * head_dim, len(part), record_bytes(head)):
        record = part[at : at + record_bytes(head)]
        k_of_tokens, v_of_tokens = decode_token_scales(record[:128])
        k_scales.append(k_of_tokens)
        v_scales.append(v_of_tokens)
        k_codes.append(decode_planes_of_block(head.k, record[128:k_end]))
        v_codes.append(decode_planes_of_block(head.v, record[k_end:]))
    k_fit = Fitted(k_centre, k_stored, np.concatenate(k_scales), np.concatenate(k_codes))
    v_fit = Fitted(v_centre, v_stored, np.concatenate(v_scales), np.concatenate(v_codes))
    return (
        planes_arithmetic.values(k_fit, head.k.channel_widths()),
        planes_arithmetic.values(v_fit, head.v.channel_widths()),
    )


def _with_header(
    codec: int, dtype: int, shape: tuple, hash16: bytes, pattern_numbers: bytes, parts: bytes
) -> bytes:
    tokens, heads, head_dim = shape
    size = header_bytes(heads) + len(parts)
    header = struct.pack(
        "<4sHBBIHHQQ16s16x", MAGIC, VERSION, codec, dtype, tokens, heads, head_dim, size, 0, hash16
    )
    segment = (header + pattern_numbers).ljust(header_bytes(heads), b"\0") + parts
    return _with_checksum(segment, checksum(segment))


def checksum(segment: bytes) -> int:
    """Whatever the checksum field holds."""
    zeroed = _with_checksum(segment, 0)
    hashes = b""
    for at in range(0, len(zeroed), CHECKSUM_PIECE):
        hashes += struct.pack("<Q", xxhash.xxh3_64_intdigest(zeroed[at : at + CHECKSUM_PIECE]))
    return xxhash.xxh3_64_intdigest(hashes)


def _with_checksum(segment: bytes, value: int) -> bytes:
    return segment[:CHECKSUM_AT] + struct.pack("<Q", value) + segment[CHECKSUM_AT + 8 :]


def _check(segment: bytes) -> None:
    assert segment[:4] == MAGIC and struct.unpack_from("<H", segment, 4) == (VERSION,)
    size, stored = struct.unpack_from("<QQ", segment, 16)
    assert size == len(segment)
    assert stored == checksum(segment)
