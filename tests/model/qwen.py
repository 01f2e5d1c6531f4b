"""Runs the model over a text and shows an observer every layer's q, k and v.

Used by dump_kv.py and measure.py. fp32 on the CPU (these CPUs have no bf16
arithmetic), in chunks over a KV cache, so memory is bounded by the cache:
57 KB a token for all layers. Layers that nobody observes are cut off.
"""

import time
from dataclasses import dataclass
from typing import Callable, Iterator

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from places import GGUF_NAME, MODEL_DIR
from texts import Text

NAME = "Qwen2.5-Coder-1.5B"
LICENSE = "Apache-2.0"
CHUNK = 512


@dataclass(frozen=True)
class Seen:
    """One layer's attention inputs for one chunk, after RoPE: [heads][chunk][head_dim]."""

    layer: int
    position: int  # of the chunk's first token
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


Observer = Callable[[Seen], None]


def tokens_of(text: Text, count: int) -> torch.Tensor:
    """The text's first `count` tokens, as [1][count]."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, gguf_file=GGUF_NAME)
    ids = tokenizer(text.read(), return_tensors="pt").input_ids
    if ids.shape[1] < count:
        raise ValueError(f"{text.path} has {ids.shape[1]} tokens, {count} are needed")
    return ids[:, :count]


def load(layers: int | None = None, device: str = "cpu"):
    """The model without its output head, or only its first `layers` layers."""
    model = AutoModelForCausalLM.from_pretrained(
        MODEL_DIR, gguf_file=GGUF_NAME, dtype=torch.float32
    ).model
    if layers is not None:
        model.layers = model.layers[:layers]
        model.config.num_hidden_layers = layers
    return model.eval().to(device)


def _observe_attention(observer: Observer) -> str:
    """Registers plain SDPA that shows its inputs to the observer; returns its name."""

    def attention(module, query, key, value, attention_mask, **options):
        count = query.shape[2]
        observer(
            Seen(
                layer=module.layer_idx,
                position=key.shape[2] - count,
                q=query[0],
                k=key[0, :, -count:],
                v=value[0, :, -count:],
            )
        )
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    AttentionInterface.register("observed", attention)
    AttentionMaskInterface.register("observed", sdpa_mask)
    return "observed"


@torch.no_grad()
def run(model, tokens: torch.Tensor, observer: Observer) -> Iterator[int]:
    """Yields the number of tokens done after each chunk."""
    model.config._attn_implementation = _observe_attention(observer)
    cache = DynamicCache()
    total = tokens.shape[1]
    start = time.monotonic()
    for position in range(0, total, CHUNK):
        chunk = tokens[:, position : position + CHUNK].to(model.device)
        model(input_ids=chunk, past_key_values=cache, use_cache=True)
        done = position + chunk.shape[1]
        print(f"  {done}/{total} tokens, {time.monotonic() - start:.0f} s", flush=True)
        yield done
