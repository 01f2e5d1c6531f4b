"""Writes safetensors files, whole or not at all, the same bytes for the same content."""

import json
from pathlib import Path

import torch
from safetensors.torch import save


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(_sorted_header(save(tensors, metadata)))
    partial.rename(path)
    print(f"wrote {path} ({path.stat().st_size} bytes)", flush=True)


def _sorted_header(file: bytes) -> bytes:
    """safetensors writes its metadata in random order."""
    size = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + size]), sort_keys=True, separators=(",", ":"))
    padded = header.encode().ljust(size)
    assert len(padded) == size
    return file[:8] + padded + file[8 + size :]
