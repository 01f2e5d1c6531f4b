"""Dumps real K, V and queries of some layers as a safetensors file.

    dump_kv.py --layers 2,23 --dump 8192 FILE --dump 32768 FILE

Several dumps come out of one run: the longer ones begin with the shorter ones.
Each file is written as soon as it is complete. Tensors, bf16, q and k after RoPE:
    layers.<L>.k, layers.<L>.v   [tokens][kv_heads][head_dim]
    layers.<L>.q                 [queries][query_heads][head_dim]
The queries belong to the tokens that follow the dumped ones (positions
tokens .. tokens + queries - 1): what a cache of those tokens is asked next.
"""

import argparse
from pathlib import Path

import torch

import qwen
import tensor_file
import texts

QUERIES = 512


class Dump:
    """Collects the tensors of the chosen layers from the chunks it sees."""

    def __init__(self, config, layers: list[int], tokens: int, path: Path):
        self.tokens = tokens
        self.path = path
        self.metadata = metadata(config, layers, tokens)
        head_dim = config.hidden_size // config.num_attention_heads
        kv_shape = (tokens, config.num_key_value_heads, head_dim)
        q_shape = (QUERIES, config.num_attention_heads, head_dim)
        self.tensors = {}
        for layer in layers:
            for name, shape in (("k", kv_shape), ("v", kv_shape), ("q", q_shape)):
                self.tensors[f"layers.{layer}.{name}"] = torch.zeros(shape, dtype=torch.bfloat16)

    def __call__(self, seen: qwen.Seen) -> None:
        if f"layers.{seen.layer}.k" not in self.tensors:
            return
        self._put(seen, "k", 0)
        self._put(seen, "v", 0)
        self._put(seen, "q", self.tokens)

    def _put(self, seen: qwen.Seen, name: str, begin: int) -> None:
        """Copies what the chunk has of the tensor, whose first row is position `begin`."""
        stored = self.tensors[f"layers.{seen.layer}.{name}"]
        rows = getattr(seen, name).transpose(0, 1)  # [chunk][heads][head_dim]
        first = max(begin, seen.position)
        last = min(begin + len(stored), seen.position + len(rows))
        if first < last:
            stored[first - begin : last - begin] = rows[first - seen.position : last - seen.position]


def metadata(config, layers: list[int], tokens: int) -> dict[str, str]:
    head_dim = config.hidden_size // config.num_attention_heads
    return {
        "model": qwen.NAME,
        "license": qwen.LICENSE,
        "text": texts.DUMP.source(),
        "layers": ",".join(map(str, layers)),
        "tokens": str(tokens),
        "queries": str(QUERIES),
        "query_heads": str(config.num_attention_heads),
        "kv_heads": str(config.num_key_value_heads),
        "head_dim": str(head_dim),
        "rope": f"applied to q and k; theta {config.rope_theta:.0f}, halves rotated, position 0 first",
        "softmax_scale": repr(head_dim**-0.5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", required=True, help="comma-separated layer numbers")
    parser.add_argument(
        "--dump", required=True, nargs=2, action="append", metavar=("TOKENS", "FILE")
    )
    parser.add_argument("--device", default="cpu", help="cuda rounds a little differently")
    args = parser.parse_args()
    layers = [int(layer) for layer in args.layers.split(",")]

    longest = max(int(tokens) for tokens, _ in args.dump)
    tokens = qwen.tokens_of(texts.DUMP, longest + QUERIES)
    model = qwen.load(max(layers) + 1, args.device)
    unfinished = [Dump(model.config, layers, int(tokens), Path(path)) for tokens, path in args.dump]

    def observe(seen: qwen.Seen) -> None:
        for dump in unfinished:
            dump(seen)

    for end in qwen.run(model, tokens, observe):
        for dump in [dump for dump in unfinished if dump.tokens + QUERIES <= end]:
            tensor_file.write(dump.path, dump.tensors, dump.metadata)
            unfinished.remove(dump)


if __name__ == "__main__":
    main()
