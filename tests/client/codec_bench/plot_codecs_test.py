"""The picture of a report that was made by hand."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

_SCRIPT = "client/cli/plot_codecs.py"


def _row(codec: str, profile: str, bits: float, error: float) -> dict:
    return {
        "codec": codec, "profile": profile, "bits": bits, "k_bits": bits, "v_bits": bits,
        "attention_error": error, "k_attention_error": error, "v_attention_error": error,
    }


_REPORT = {
    "model": "M", "backend": "cpu", "tokens": 4096.0, "layers": [2.0, 23.0],
    "rows": [
        _row("raw", "exact", 16, 1e-7),
        _row("planes", "tiny", 1.6, 0.3), _row("planes", "fine", 3.6, 0.1),
        _row("kivi", "2-bit", 3, 0.25),
    ],
}


@unittest.skipUnless(importlib.util.find_spec("matplotlib"), "python3-matplotlib is not installed")
class PlotCodecs(unittest.TestCase):
    def draw(self, report: str, *arguments: str):
        return subprocess.run(
            [sys.executable, _SCRIPT, *arguments], input=report, capture_output=True, text=True
        )

    def test_draws_a_png(self):
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "codecs.png"
            result = self.draw(json.dumps(_REPORT), str(picture))
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(picture.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
            self.assertGreater(picture.stat().st_size, 10_000)

    def test_a_disk_that_is_full_is_named_in_one_line(self):
        result = self.draw(json.dumps(_REPORT), "/dev/full")
        self.assertEqual(result.returncode, 1)
        self.assertTrue(result.stderr.endswith("/dev/full: No space left on device\n"), result.stderr)
        self.assertNotIn("Traceback", result.stderr)

    def test_exact_rows_alone_draw_empty_panels(self):
        report = {**_REPORT, "rows": [_row("raw", "exact", 16, 1e-7)]}
        result = self.draw(json.dumps(report), "/dev/null")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("legend", result.stderr)

    def test_fails_without_a_report_or_a_name(self):
        self.assertNotEqual(self.draw("{}", "/tmp/unused.png").returncode, 0)
        self.assertNotEqual(self.draw(json.dumps(_REPORT)).returncode, 0)


if __name__ == "__main__":
    unittest.main()
