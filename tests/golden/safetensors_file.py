"""Reads bf16 tensors of a safetensors file by hand."""

import json
import struct
from pathlib import Path

import numpy as np


def read_bf16(path: Path) -> dict[str, np.ndarray]:
    """Tensor name -> bf16 bits (uint16) in its shape."""
    data = path.read_bytes()
    (header_size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        assert about["dtype"] == "BF16", f"{name} is {about['dtype']}, not BF16"
        begin, end = (8 + header_size + offset for offset in about["data_offsets"])
        tensors[name] = np.frombuffer(data[begin:end], "<u2").reshape(about["shape"])
    return tensors
