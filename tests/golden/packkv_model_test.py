"""The packkv codec against the numpy model: sizes to the byte, values to the bit, and the paper's figures."""

import subprocess
import unittest

import numpy as np

import packkv_model
from packkv_model import BLOCK, GREEDY, MEDIAN, NONE

TOOL = "tests/gpu/packkv/encode_tool"


def encode(k: np.ndarray, v: np.ndarray, pack: int, repacking: int, k_scale: float, v_scale: float,
           normalize: bool = False, k_weights: np.ndarray | None = None) -> dict:
    tokens, heads, head_dim = k.shape
    form = 0 if not normalize else 1 if k_weights is None else 2
    words = [tokens // BLOCK, heads, head_dim, pack, repacking, k_scale, v_scale, form]
    weights = b"" if k_weights is None else k_weights.tobytes()
    output = subprocess.run([TOOL, *map(str, words)], input=np.stack([k, v]).tobytes() + weights, check=True,
                            stdout=subprocess.PIPE).stdout
    body_bytes = int(np.frombuffer(output, np.uint64, 1)[0])
    k_bits, v_bits = np.frombuffer(output, np.float64, 2, 8 + body_bytes)
    values = np.frombuffer(output, np.float32, offset=24 + body_bytes).reshape(2, heads, tokens, head_dim)
    decoded_k, decoded_v = values.transpose(0, 2, 1, 3)
    return {"body": output[8:8 + body_bytes], "body_bytes": body_bytes, "k_bits": k_bits, "v_bits": v_bits, "k": decoded_k, "v": decoded_v}


def inputs(seed: int, tokens: int, heads: int, head_dim: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    shape = (tokens, heads, head_dim)

    def normal() -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    means = 3 * random.standard_normal((1, heads, head_dim), np.float32)
    topics = np.repeat(random.standard_normal((tokens // 16, heads, head_dim), np.float32), 16, 0)
    spiked = normal()
    spiked[:, :, ::17] *= 20
    constant = normal()
    constant[::3] = 0
    constant[1::3] = -7.25
    return {
        "gaussian": (normal(), normal()),
        "channel means": (means + 0.3 * normal(), normal()),
        "shuffled topics": (normal(), random.permutation(topics, axis=0) + 0.3 * normal()),
        "outlier channels": (spiked, spiked[::-1].copy()),
        "constant tokens": (constant, constant),
        "tiny": (np.float32(1e-38) * normal(), np.float32(1e-44) * normal()),
    }


class PackKvTest(unittest.TestCase):
    def test_sizes_and_values_are_the_models(self):
        for heads, head_dim, tokens in ((1, 64, 128), (3, 128, 64), (2, 256, 64)):
            for name, (k, v) in inputs(heads, tokens, heads, head_dim).items():
                for pack, repacking, scales in ((16, NONE, (0.1, 0.2)), (8, MEDIAN, (0.03, 0.1)), (4, GREEDY, (0.5, 1.0)),
                                                (16, GREEDY, (0.004, 0.01))):
                    with self.subTest(name=name, head_dim=head_dim, pack=pack, repacking=repacking):
                        got = encode(k, v, pack, repacking, *scales)
                        model = packkv_model.Layer(k, v, pack, repacking, *scales)
                        self.assertEqual(got["k_bits"], model.k.paper_bits())
                        self.assertEqual(got["v_bits"], model.v.paper_bits())
                        self.assertEqual(got["body_bytes"], model.body_bytes)
                        np.testing.assert_array_equal(got["k"], model.decoded_k)
                        np.testing.assert_array_equal(got["v"], model.decoded_v)

    def test_normalised_sizes_and_values_are_the_models(self):
        for heads, head_dim, tokens in ((1, 64, 128), (3, 128, 64), (1, 256, 64)):
            random = np.random.default_rng(head_dim)
            weights = random.standard_normal((heads, head_dim), np.float32) ** 2
            weights[0, :5] = 0
            for name, (k, v) in inputs(heads, tokens, heads, head_dim).items():
                for pack, repacking, scales, given in ((16, NONE, (0.8, 0.8), None), (8, MEDIAN, (0.1, 2.0), weights),
                                                       (16, GREEDY, (0.5, 0.1), weights), (4, NONE, (1.2, 0.3), 0 * weights)):
                    with self.subTest(name=name, head_dim=head_dim, pack=pack, weighted=given is not None):
                        got = encode(k, v, pack, repacking, *scales, True, given)
                        model = packkv_model.Layer(k, v, pack, repacking, *scales, True, given)
                        self.assertEqual(got["k_bits"], model.k.paper_bits())
                        self.assertEqual(got["v_bits"], model.v.paper_bits())
                        self.assertEqual(got["body_bytes"], model.body_bytes)
                        np.testing.assert_array_equal(got["k"], model.decoded_k)
                        np.testing.assert_array_equal(got["v"], model.decoded_v)
                        read_k, read_v = packkv_model.read_body(got["body"], tokens // BLOCK, heads, head_dim)
                        np.testing.assert_array_equal(read_k, got["k"])
                        np.testing.assert_array_equal(read_v, got["v"])

    def test_normalising_takes_channel_means_off(self):
        k, v = inputs(9, 512, 4, 128)["gaussian"]
        biased = k + np.float32(64) * (np.arange(128) % 7 == 0)
        expected, got = (encode(keys, v, 16, NONE, 0.8, 0.8, True) for keys in (k, biased))
        self.assertAlmostEqual(got["k_bits"], expected["k_bits"], delta=0.01)
        error = np.abs(got["k"] - biased).mean()
        self.assertAlmostEqual(error / np.abs(expected["k"] - k).mean(), 1, delta=0.01)
        self.assertGreater(np.abs(encode(biased, v, 16, NONE, 0.1, 0.2)["k"] - biased).mean(), 2 * error)

    def test_bytes_lie_where_the_format_says(self):
        for heads, head_dim, pack, scales in ((2, 64, 16, (0.1, 0.2)), (1, 128, 8, (0.01, 0.05)), (1, 64, 4, (0.004, 1.0))):
            for name, (k, v) in inputs(heads, 128, heads, head_dim).items():
                with self.subTest(name=name, pack=pack):
                    got = encode(k, v, pack, MEDIAN, *scales)
                    read_k, read_v = packkv_model.read_body(got["body"], 2, heads, head_dim)
                    np.testing.assert_array_equal(read_k, got["k"])
                    np.testing.assert_array_equal(read_v, got["v"])

    def test_gaussian_data_takes_the_papers_bits(self):
        k, v = inputs(7, 512, 8, 128)["gaussian"]
        got = encode(k, v, 16, NONE, 0.1, 0.2)
        self.assertAlmostEqual(got["k_bits"], 3.49, delta=0.0349)
        self.assertAlmostEqual(got["v_bits"], 2.62, delta=0.0262)

    def test_repacking_never_makes_values_larger(self):
        for name, (k, v) in inputs(8, 256, 4, 64).items():
            for pack in (4, 8, 16):
                bits = [encode(k, v, pack, repacking, 0.1, 0.2)["v_bits"] for repacking in (NONE, MEDIAN, GREEDY)]
                with self.subTest(name=name, pack=pack, bits=bits):
                    self.assertLessEqual(bits[1], bits[0])
                    self.assertLessEqual(bits[2], bits[0])


if __name__ == "__main__":
    unittest.main()
