import json
import struct
import tempfile
import unittest
from pathlib import Path

import numpy as np

import calibration_file
import evaluate
import floats
import patterns

TOKENS, KV_HEADS, QUERY_HEADS, HEAD_DIM, QUERIES = 600, 2, 4, 64, 80


def write_dump(path: Path, layers: list[int]) -> None:
    rng = np.random.default_rng(1)
    header, data = {"__metadata__": {"text": "none"}}, b""
    for layer in layers:
        for name, shape in (
            ("k", (TOKENS, KV_HEADS, HEAD_DIM)),
            ("v", (TOKENS, KV_HEADS, HEAD_DIM)),
            ("q", (QUERIES, QUERY_HEADS, HEAD_DIM)),
        ):
            bits = floats.bf16_from_fp32(rng.normal(size=shape))
            offsets = [len(data), len(data) + 2 * bits.size]
            header[f"layers.{layer}.{name}"] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
            data += bits.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_calibration(path: Path, layers: int) -> None:
    """In layer l channels are rotated by l."""
    message = calibration_file.message_class()()
    for layer in range(layers):
        stored = message.layers.add()
        for _ in range(KV_HEADS):
            head = stored.heads.add()
            for tensor in (head.k, head.v):
                tensor.channel_order = bytes(np.roll(np.arange(HEAD_DIM), layer).tolist())
                tensor.patterns = bytes([0, 2, 4, 6])
    path.write_bytes(message.SerializeToString())


class Evaluate(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        write_dump(cls.folder / "dump", [2, 5])
        cls.layers = evaluate.read_dump(cls.folder / "dump")

    def test_layers_and_queries(self):
        self.assertEqual([layer.number for layer in self.layers], [2, 5])
        layer = self.layers[0]
        self.assertEqual(layer.asked.shape, (evaluate.QUERIES, QUERY_HEADS, HEAD_DIM))
        exact = layer.errors(floats.fp32_from_bf16(layer.k), floats.fp32_from_bf16(layer.v))
        self.assertEqual(exact.max(), 0)
        second_heads = layer.q[:, 2:].astype(float) ** 2  # query heads 2 and 3 read KV head 1
        np.testing.assert_allclose(layer.query_second_moments()[1], second_heads.mean(axis=(0, 1)), rtol=1e-6)

    def test_calibration_by_number_or_in_order(self):
        path = self.folder / "calibration"
        for layers, first_channels in ((2, [0, 63]), (7, [62, 59])):
            write_calibration(path, layers)
            found = evaluate.given_calibrations(self.layers, path, patterns.COMPACT)
            self.assertEqual([c.heads[1].k.order[0] for c in found], first_channels)
            self.assertEqual(found[0].heads[0].v.pattern, 2)

    def test_without_k_weights_only_the_order_of_keys_differs(self):
        path = self.folder / "calibration"
        write_calibration(path, 2)
        given = evaluate.given_calibrations(self.layers, path, patterns.COMPACT)
        for layer, before, after in zip(
            self.layers, given, evaluate.without_k_weights(self.layers, given), strict=True
        ):
            sealed = floats.fp32_from_bf16(layer.k[16 : 16 + 512]).astype(float)
            for head in range(KV_HEADS):
                variance = sealed[:, head].var(axis=0)[after.heads[head].k.order]
                self.assertLess(np.diff(variance).max(), 1e-5)
                self.assertEqual(after.heads[head].k.pattern, before.heads[head].k.pattern)
                self.assertIs(after.heads[head].v, before.heads[head].v)

    def test_table_and_rows(self):
        path = self.folder / "calibration"
        write_calibration(path, 2)
        results = evaluate.evaluate_all(self.layers, path)
        names = [result.name for result in results]
        self.assertEqual(
            names[:4], ["tiny_calibrated", "tiny_calibrated_no_weights", "tiny_own", "tiny_own_q2"]
        )
        self.assertEqual(names[-1], "kivi2_g32")
        self.assertEqual(evaluate.table(results, self.layers).count("\n"), 17)
        rows = evaluate.bench_rows(results, self.layers)
        self.assertEqual(len(rows), 16)
        compact, fine = rows[4], rows[12]
        self.assertGreater(compact["value"], fine["value"])
        self.assertAlmostEqual(compact["ratio"], compact["opponent_value"] / compact["value"])
        # 16 sinks, one segment of 512 tokens, and 72 tokens of tail in two extents, of two heads.
        segment = 128 + 2 * (8 * HEAD_DIM + 8 * (128 + 8 * HEAD_DIM * (1.5 + 1.5)))
        exact = 2 * (16 + 128) * 2 * HEAD_DIM * 2
        self.assertEqual(compact["all_in_bits"], 8 * (segment + exact) / (2 * 600 * 2 * HEAD_DIM))


if __name__ == "__main__":
    unittest.main()
