"""Measures what a calibration needs: one forward pass over the calibration text.

    measure.py --out FILE

Writes, per layer and KV head, in original channel order:
    k_variance, v_variance  [layers][kv_heads][segments][head_dim]
    q_second_moment         [layers][kv_heads][head_dim]  mean of q^2 after RoPE
                            over the tokens and the head's query heads
The first 16 tokens, which the product keeps exact, are left out; segments of
1024 are counted from there.
"""

import argparse
from pathlib import Path

import torch

import qwen
import tensor_file
import texts

SINKS = 16
SEGMENT = 1024


class Measurement:
    """Keeps K and V of all layers, and sums q^2."""

    def __init__(self, config, tokens: int):
        head_dim = config.hidden_size // config.num_attention_heads
        heads = (config.num_hidden_layers, config.num_key_value_heads)
        self.k = torch.zeros(*heads, tokens, head_dim)
        self.v = torch.zeros(*heads, tokens, head_dim)
        self.q_square_sum = torch.zeros(*heads, head_dim, dtype=torch.float64)
        self.query_count = (tokens - SINKS) * (config.num_attention_heads // heads[1])

    def __call__(self, seen: qwen.Seen) -> None:
        end = seen.position + seen.k.shape[1]
        self.k[seen.layer, :, seen.position : end] = seen.k
        self.v[seen.layer, :, seen.position : end] = seen.v
        q = seen.q[:, max(SINKS - seen.position, 0) :].double()
        by_kv_head = q.reshape(self.k.shape[1], -1, q.shape[-1])
        self.q_square_sum[seen.layer] += by_kv_head.square().sum(1)

    def results(self) -> dict[str, torch.Tensor]:
        return {
            "k_variance": segment_variance(self.k),
            "v_variance": segment_variance(self.v),
            "q_second_moment": (self.q_square_sum / self.query_count).float(),
        }


def segment_variance(x: torch.Tensor) -> torch.Tensor:
    """Variance of each channel over each segment's tokens, about the segment's mean."""
    segments = x[:, :, SINKS:].unflatten(2, (-1, SEGMENT)).double()
    return segments.var(3, correction=0).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--segments", default=8, type=int)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()

    tokens = qwen.tokens_of(texts.CALIBRATION, SINKS + args.segments * SEGMENT)
    model = qwen.load()
    measurement = Measurement(model.config, tokens.shape[1])
    for _ in qwen.run(model, tokens, measurement):
        pass

    metadata = {
        "model": qwen.NAME,
        "license": qwen.LICENSE,
        "text": texts.CALIBRATION.source(),
        "tokens": str(args.segments * SEGMENT),
    }
    tensor_file.write(args.out, measurement.results(), metadata)


if __name__ == "__main__":
    main()
