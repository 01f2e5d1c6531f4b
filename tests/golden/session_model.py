"""Which tokens of a layer are sinks, segments and tail, and what they cost (DESIGN 3)."""

from dataclasses import dataclass, field

import segment_model
from calibration_model import LayerCalibration

SINKS = 16
WINDOW = 64
BLOCK = 64
SEGMENT = 1024
PROMPT = 256  # an addition of so many tokens is a prompt
DECODING_SEGMENT = 256


@dataclass
class Layer:
    tokens: int = 0
    segments: list[int] = field(default_factory=list)  # tokens of each, from SINKS on

    @property
    def sealed_end(self) -> int:
        """Where the tail starts: below 16 tokens everything is tail."""
        return SINKS + sum(self.segments) if self.tokens >= SINKS else 0

    @property
    def tail(self) -> int:
        return self.tokens - self.sealed_end

    @property
    def tail_extents(self) -> int:
        return -(-self.tail // BLOCK)

    def add(self, tokens: int) -> None:
        """One addition: a prompt, or a few tokens while decoding."""
        self.tokens += tokens
        if tokens >= PROMPT:
            sealable = (self.tail - WINDOW) // BLOCK * BLOCK
            while sealable > 0:
                self.segments.append(min(sealable, SEGMENT))
                sealable -= self.segments[-1]
        else:
            while self.tail >= WINDOW + DECODING_SEGMENT:
                self.segments.append(DECODING_SEGMENT)

    def segment_ranges(self) -> list[tuple[int, int]]:
        begin, ranges = SINKS, []
        for tokens in self.segments:
            ranges.append((begin, begin + tokens))
            begin += tokens
        return ranges


def prompt(tokens: int) -> Layer:
    layer = Layer()
    layer.add(tokens)
    return layer


def decoded(tokens: int) -> Layer:
    """Appended one by one."""
    layer = Layer()
    for _ in range(tokens):
        layer.add(1)
    return layer


def exact_bytes(layer: Layer, heads: int, head_dim: int, dtype: int) -> int:
    """Sinks and tail, whole extents."""
    sinks = SINKS if layer.tokens >= SINKS else 0
    held = sinks + layer.tail_extents * BLOCK
    return heads * segment_model.raw_record_bytes(head_dim, dtype, held)


def bits_per_value(layer: Layer, segment_bytes: float, heads: int, head_dim: int, dtype: int) -> float:
    """All-in cost of one layer whose segments take segment_bytes together."""
    total = segment_bytes + exact_bytes(layer, heads, head_dim, dtype)
    return 8 * total / (2 * layer.tokens * heads * head_dim)


def planes_bits_per_value(
    layer: Layer, calibration: LayerCalibration, head_dim: int, dtype: int
) -> float:
    """Known before anything is encoded, as long as nothing falls back to raw."""
    sealed = sum(segment_model.planes_segment_bytes(tokens, calibration) for tokens in layer.segments)
    return bits_per_value(layer, sealed, len(calibration.heads), head_dim, dtype)
