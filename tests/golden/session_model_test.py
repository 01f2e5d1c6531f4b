import unittest

import session_model
from calibration_model import LayerCalibration
from floats import BF16
from golden_model_test import in_order


class Sealing(unittest.TestCase):
    def test_prompts(self):
        for tokens, segments, tail in (
            (0, [], 0),
            (10, [], 10),
            (16, [], 0),
            (255, [], 239),
            (256, [128], 112),
            (16 + 64 + 1024, [1024], 64),
            (16 + 64 + 1024 + 63, [1024], 127),
            (16 + 64 + 1024 + 64, [1024, 64], 64),
            (4096, [1024] * 3 + [896], 112),
            (8192, [1024] * 7 + [896], 112),
        ):
            layer = session_model.prompt(tokens)
            self.assertEqual((layer.segments, layer.tail), (segments, tail), tokens)

    def test_decoding(self):
        for tokens, segments, tail in (
            (16, [], 0),
            (16 + 319, [], 319),
            (16 + 320, [256], 64),
            (16 + 320 + 255, [256], 319),
            (16 + 320 + 256, [256, 256], 64),
        ):
            layer = session_model.decoded(tokens)
            self.assertEqual((layer.segments, layer.tail), (segments, tail), tokens)

    def test_a_second_turn(self):
        layer = session_model.prompt(16 + 64 + 1000)  # 15 blocks and 104 tokens of tail
        self.assertEqual((layer.segments, layer.tail), ([960], 104))
        for _ in range(10):
            layer.add(1)
        layer.add(1024)
        self.assertEqual((layer.segments, layer.tail), ([960, 1024], 114))
        self.assertEqual(layer.segment_ranges(), [(16, 976), (976, 2000)])
        layer.add(255)  # not a prompt: one segment of decoding
        self.assertEqual((layer.segments, layer.tail), ([960, 1024, 256], 113))


class Cost(unittest.TestCase):
    def test_all_in(self):
        """One head of 128, patterns 4211 and 2111 (2 and 1.25 bits)."""
        layer = session_model.prompt(16 + 1024 + 70)
        calibration = LayerCalibration([in_order(128, 6, 3)], bytes(16))
        sealed = 128 + 1024 + 16 * (128 + 8 * 128 * 3.25)
        exact = (16 + 128) * 128 * 2 * 2  # 70 tokens of tail take two extents
        expected = 8 * (sealed + exact) / (2 * 1110 * 128)
        self.assertEqual(session_model.planes_bits_per_value(layer, calibration, 128, BF16), expected)

    def test_below_16_tokens_all_is_tail(self):
        self.assertEqual(session_model.exact_bytes(session_model.prompt(10), 1, 64, BF16), 64 * 64 * 4)
        self.assertEqual(session_model.exact_bytes(session_model.prompt(16), 1, 64, BF16), 16 * 64 * 4)
        self.assertEqual(session_model.exact_bytes(session_model.prompt(17), 1, 64, BF16), 80 * 64 * 4)


if __name__ == "__main__":
    unittest.main()
