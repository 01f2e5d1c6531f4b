"""The two texts, both installed by Debian packages.

The dump is made from Python source, the calibration from a manual in prose:
a calibration must serve texts that it has not seen.
"""

import gzip
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Text:
    package: str
    path: str
    starts_at: str = ""  # what precedes the last line that reads so is left out

    def read(self) -> str:
        data = Path(self.path).read_bytes()
        if self.path.endswith(".gz"):
            data = gzip.decompress(data)
        text = data.decode()
        if self.starts_at:
            text = text[text.rindex(f"\n{self.starts_at}\n") + 1 :]
        return text

    def source(self) -> str:
        """Names the text: file, package and installed version."""
        version = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${Version}", self.package],
            check=True, capture_output=True, text=True,
        ).stdout
        return f"{self.path} of Debian package {self.package} {version}"


DUMP = Text("libpython3.11-stdlib", "/usr/lib/python3.11/turtle.py")
# Without its table of contents.
CALIBRATION = Text(
    "debian-policy", "/usr/share/doc/debian-policy/policy.txt.gz", starts_at="1. About this manual"
)
