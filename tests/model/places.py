"""Where things lie. Everything heavy is under .tools/, which git ignores."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]

MODEL_DIR = REPO / ".tools" / "model"
GGUF_NAME = "qwen2.5-coder-1.5b-q4_k_m.gguf"
LARGE_DATA = REPO / ".tools" / "data"

COMMITTED_DATA = REPO / "tests" / "data"
PROTO = REPO / "proto"
