"""`kvdepot bench codec` on a small dump, against the numpy models of the codecs and of attention."""

import json
import os
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np

import calibration_file
import evaluate
import floats
import kivi_model
import packkv_model
import patterns
import segment_model
from floats import BF16

_CLI = "client/cli/kvdepot"
# 16 sinks, segments of 1024 and 64 tokens, 81 exact ones. Fewer queries than are asked: all are.
TOKENS, KV_HEADS, QUERY_HEADS, HEAD_DIM, QUERIES = 1185, 2, 4, 64, 6
LAYERS = [3, 5]


def _write_dump(path: Path) -> None:
    """Channels of unlike spread and mean, as keys have."""
    rng = np.random.default_rng(5)
    header, data = {"__metadata__": {"model": "M"}}, b""
    for layer in LAYERS:
        for name, shape in (
            ("k", (TOKENS, KV_HEADS, HEAD_DIM)),
            ("v", (TOKENS, KV_HEADS, HEAD_DIM)),
            ("q", (QUERIES, QUERY_HEADS, HEAD_DIM)),
        ):
            values = rng.normal(size=shape) * np.exp(0.5 * rng.normal(size=shape[1:]))
            if name != "q":
                values += rng.normal(size=shape[1:])
            bits = floats.bf16_from_fp32(values)
            offsets = [len(data), len(data) + 2 * bits.size]
            header[f"layers.{layer}.{name}"] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
            data += bits.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _rms(values: np.ndarray, exact: np.ndarray) -> float:
    exact = exact.astype(np.float64)
    return float(np.sqrt(((values - exact) ** 2).sum() / (exact**2).sum()))


class Expected:
    """Figures of one layer whose sealed tokens decode to k and v."""

    def __init__(self, layer: evaluate.Layer, k: np.ndarray, v: np.ndarray):
        sealed = slice(16, layer.session.sealed_end)
        exact_k, exact_v = (floats.fp32_from_bf16(bits) for bits in (layer.k, layer.v))
        all_k, all_v = exact_k.copy(), exact_v.copy()
        all_k[sealed], all_v[sealed] = k, v
        self.figures = {
            "k_error": _rms(k, exact_k[sealed]),
            "v_error": _rms(v, exact_v[sealed]),
            "attention_error": _rms(layer.attend(all_k, all_v), layer.exact),
            "k_attention_error": _rms(layer.attend(all_k, exact_v), layer.exact),
            "v_attention_error": _rms(layer.attend(exact_k, all_v), layer.exact),
            "attention_error_mean": float(layer.errors(all_k, all_v).mean()),
        }


class BenchCodec(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.dump = cls.folder / "dump.safetensors"
        _write_dump(cls.dump)
        cls.layers = evaluate.read_dump(cls.dump)
        result = cls.run_cli(f"--dump={cls.dump}", "--json")
        assert result.returncode == 0, result.stderr
        cls.report = json.loads(result.stdout)
        cls.progress = result.stderr

    @classmethod
    def run_cli(cls, *arguments, env=None):
        return subprocess.run(
            [_CLI, "bench", "codec", *arguments],
            capture_output=True, text=True, timeout=300, env=env,
        )

    def row(self, codec: str, profile: str) -> dict:
        (row,) = [r for r in self.report["rows"] if (r["codec"], r["profile"]) == (codec, profile)]
        return row

    def check(self, row: dict, index: int, expected: dict, tolerance: float) -> None:
        found = row["by_layer"][index]
        self.assertEqual(found["layer"], LAYERS[index])
        for name, value in expected.items():
            about = f"{row['codec']} {row['profile']}, layer {LAYERS[index]}, {name}"
            self.assertAlmostEqual(found[name] / value, 1, delta=tolerance, msg=about)

    def test_planes_is_what_the_model_of_the_format_says(self):
        for profile, name in enumerate(patterns.PROFILE_NAMES):
            for codec, with_q2 in (("planes", False), ("planes-queries", True)):
                made = evaluate.own_calibrations(self.layers, profile, with_q2)
                for index, (layer, calibration) in enumerate(zip(self.layers, made)):
                    parts, size = [], 0
                    for begin, end in layer.session.segment_ranges():
                        segment = segment_model.encode(
                            layer.k[begin:end], layer.v[begin:end], BF16, calibration
                        )
                        parts.append(segment_model.decode(segment, calibration.heads))
                        size += len(segment)
                    k, v = (np.concatenate(values) for values in zip(*parts))
                    expected = Expected(layer, k, v).figures
                    expected["bits"] = 8 * size / (k.size + v.size)
                    self.check(self.row(codec, name), index, expected, 1e-4)
                result = evaluate.evaluate_planes(name, self.layers, made)
                row = self.row(codec, name)
                self.assertAlmostEqual(row["session_bits"], result.bits, places=6)
                self.assertAlmostEqual(row["attention_error_mean"], result.error, places=5)
                self.assertAlmostEqual(row["bits"], (row["k_bits"] + row["v_bits"]) / 2, places=9)

    def test_packkv_is_what_the_model_of_the_paper_says(self):
        for repacking, name in enumerate(("none", "median", "greedy"), start=1):
            self.check_packkv(self.row(f"packkv-{name}", "0.1/0.2"), repacking, 0.1, 0.2)
        self.check_packkv(self.row("packkv-normalize", "0.8"), packkv_model.GREEDY, 0.8, 0.8, True)

    def test_packkv_weighs_channels_by_the_calibration(self):
        rng = np.random.default_rng(6)
        weights = np.exp(rng.normal(size=(len(LAYERS), KV_HEADS, HEAD_DIM))).astype(np.float32)
        message = calibration_file.message_class()()
        for layer in weights:
            stored = message.layers.add()
            for head_weights in layer:
                head = stored.heads.add()
                head.k.channel_weights.extend(head_weights.tolist())
                for tensor in (head.k, head.v):
                    tensor.channel_order = bytes(range(HEAD_DIM))
                    tensor.patterns = bytes([0, 2, 4, 6])
        path = self.folder / "calibration"
        path.write_bytes(message.SerializeToString())
        result = self.run_cli(
            f"--dump={self.dump}", f"--calibration={path}", "--json",
            "--codecs=packkv-normalize-calibrated,planes-calibrated",
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = {(row["codec"], row["profile"]): row for row in json.loads(result.stdout)["rows"]}
        row = rows["packkv-normalize-calibrated", "0.8"]
        self.check_packkv(row, packkv_model.GREEDY, 0.8, 0.8, True, weights)
        for profile, number in zip(patterns.PROFILE_NAMES, [0, 2, 4, 6]):
            width = patterns.mean_width("k", HEAD_DIM, number)
            self.assertEqual(rows["planes-calibrated", profile]["k_paper_bits"], width)

    def check_packkv(self, row, repacking, k_scale, v_scale, normalize=False, weights=None):
        for index, layer in enumerate(self.layers):
            made = []
            k_weights = None if weights is None else weights[index]
            for begin, end in layer.session.segment_ranges():
                k, v = (floats.fp32_from_bf16(bits[begin:end]) for bits in (layer.k, layer.v))
                segment = packkv_model.Layer(
                    k, v, 16, repacking, k_scale, v_scale, normalize, k_weights
                )
                made.append((segment, end - begin))
            k = np.concatenate([segment.decoded_k for segment, _ in made])
            v = np.concatenate([segment.decoded_v for segment, _ in made])
            expected = Expected(layer, k, v).figures
            tokens = layer.session.sealed_end - 16
            for tensor in ("k", "v"):
                expected[f"{tensor}_paper_bits"] = (
                    sum(getattr(segment, tensor).paper_bits() * count for segment, count in made) / tokens
                )
            self.check(row, index, expected, 1e-4)
            # A header of 128 bytes comes before each body.
            size = sum(segment.body_bytes + 128 for segment, _ in made)
            bits = 8 * size / (k.size + v.size)
            self.assertAlmostEqual(row["by_layer"][index]["bits"], bits, places=6)

    def test_kivi_is_what_its_model_says(self):
        for bits in (2, 4):
            row = self.row("kivi", f"{bits}-bit")
            self.assertEqual(row["bits"], bits + 1)
            for index, layer in enumerate(self.layers):
                sealed = slice(16, layer.session.sealed_end)
                k, v = (floats.fp32_from_bf16(stored[sealed]) for stored in (layer.k, layer.v))
                expected = Expected(
                    layer, kivi_model.quantised_keys(k, bits), kivi_model.quantised_values(v, bits)
                ).figures
                # The two round a group's scale in another order.
                self.check(row, index, expected, 2e-2)

    def test_exact_blocks_are_exact(self):
        row = self.row("raw", "exact")
        self.assertEqual((row["k_error"], row["v_error"], row["k_paper_bits"]), (0, 0, 16))
        self.assertLess(row["attention_error"], 1e-5)

    def test_shape_of_the_report(self):
        report = self.report
        self.assertEqual((report["model"], report["tokens"], report["layers"]), ("M", TOKENS, LAYERS))
        self.assertEqual((report["sealed_tokens"], report["queries"]), (1088, QUERIES))
        self.assertFalse(report["queries_are_drawn"])
        for row in report["rows"]:
            measured = row["codec"] != "kivi"
            self.assertEqual(row.get("encode_bytes_per_second", 0) > 0, measured, row["codec"])
            self.assertEqual(row.get("decode_bytes_per_second", 0) > 0, measured, row["codec"])
        baselines = {(r["codec"], r["baseline"]) for r in report["equal_error"]}
        self.assertIn(("planes", "kivi 2-bit"), baselines)
        self.assertIn("bench codec: layer 5: planes compact", self.progress)

    def test_table(self):
        result = self.run_cli(f"--dump={self.dump}", "--layers=5", "--tokens=200", "--codecs=planes,kivi")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("M, layer 5: 200 tokens, 64 of them sealed", result.stdout)
        self.assertEqual(result.stdout.count("\nplanes  tiny"), 1)
        self.assertNotIn("packkv", result.stdout)

    def test_synthetic_numbers_and_a_flag_of_the_plain_bench(self):
        result = self.run_cli("--synthetic", "--tokens", "300", "--codecs", "raw", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(json.loads(result.stdout)["model"], "synthetic")
        self.assertEqual(self.run_cli("--synthetic", "--clients=3").returncode, 2)

    def test_command_lines_that_make_no_sense(self):
        dump = f"--dump={self.dump}"
        for arguments, message in (
            ((), "needs either --dump or --synthetic"),
            ((dump, "--synthetic"), "needs either --dump or --synthetic"),
            (("--synthetic", "--layers=1"), "--layers: there is one synthetic layer"),
            (("--synthetic", "--tokens=100"), "--tokens: 100, must be 0 or at least 144"),
            ((dump, "--queries=0"), "--queries: 0, must be 1..4096"),
            ((dump, "--layers=x"), "--layers: 'x', must be numbers"),
            ((dump, "--device=tpu"), "--device: 'tpu', must be"),
            ((dump, "--codecs=planes,zip"), "--codecs: 'zip', must be of"),
        ):
            result = self.run_cli(*arguments)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertIn(message, result.stderr)

    def test_what_is_not_there(self):
        dump = f"--dump={self.dump}"
        for arguments, message in (
            (("--dump=/no/such/file",), "NOT_FOUND: /no/such/file: No such file or directory"),
            ((dump, "--layers=4"), "NOT_FOUND: layers: 4, "),
            ((dump, "--tokens=1186"), "OUT_OF_RANGE: "),
            ((dump, f"--calibration={self.dump}"), "INVALID_ARGUMENT: calibration"),
            ((dump, "--plot=/no/such/folder/a.png"), "INVALID_ARGUMENT: plot: cannot write"),
        ):
            result = self.run_cli(*arguments)
            self.assertEqual(result.returncode, 1, arguments)
            self.assertIn(message, result.stderr)
            self.assertEqual(result.stdout, "")

    def test_plot_without_matplotlib_fails_before_it_measures(self):
        """A module of that name that cannot be imported stands in for one that is missing."""
        modules = self.folder / "modules"
        modules.mkdir()
        (modules / "matplotlib.py").write_text("raise ImportError\n")
        result = self.run_cli(
            f"--dump={self.dump}", f"--plot={self.folder}/a.png",
            env={**os.environ, "PYTHONPATH": str(modules)},
        )
        self.assertEqual(result.returncode, 1)
        self.assertIn("FAILED_PRECONDITION: plot: needs python3 with matplotlib", result.stderr)
        self.assertNotIn("exact attention", result.stderr)
        self.assertFalse((self.folder / "a.png").exists())


if __name__ == "__main__":
    unittest.main()
