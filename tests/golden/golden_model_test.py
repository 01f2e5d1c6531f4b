"""The model of the segment format against itself, against plain Python, and against the vectors on disk."""

import math
import struct
import unittest
from unittest import mock

import numpy as np
import xxhash

import calibration_model
import floats
import make_vectors
import packkv_model
import patterns
import plane_bits
import planes_arithmetic
import segment_model
import vector_file
from calibration_model import HeadCalibration, LayerCalibration, TensorCalibration
from floats import BF16, FP32


def in_order(head_dim: int, k_pattern: int, v_pattern: int) -> HeadCalibration:
    order = np.arange(head_dim)
    return HeadCalibration(
        TensorCalibration("k", order, k_pattern), TensorCalibration("v", order, v_pattern)
    )


class HandWorkedExample(unittest.TestCase):
    """One block, one head of 64 channels, patterns 10 and 10: one bit for channels 0..31, none for 32..63.

    Keys of channels 0..31 are 1 in tokens 0..31 and -1 after; values are 1 in even tokens and -1 in odd ones;
    the rest is 0. Then c = 0, sd = 1, rms = sqrt(32 / 64) = .7071 = 1.4142 / 2, which rounds to 1.375 / 2:
    code 31 * 8 + 3 = 0xFB, s = 1.375. z = +-1 / 1.375, sd2 = .72727, .2 sd2 = .145454, in fp16 0x30A8.
    """

    def setUp(self):
        token = np.arange(64)[:, None, None]
        self.k = np.zeros((64, 1, 64))
        self.v = np.zeros((64, 1, 64))
        self.k[:, :, :32] = np.where(token < 32, 1, -1)
        self.v[:, :, :32] = np.where(token % 2 == 0, 1, -1)
        self.calibration = LayerCalibration([in_order(64, 0, 0)], bytes(range(16)))
        stored = [floats.from_fp32(x, BF16) for x in (self.k, self.v)]
        self.segment = segment_model.encode(*stored, BF16, self.calibration)

    def test_bytes(self):
        row = b"\xa8\x30" * 4 + bytes(8) + bytes(16)  # four scales, four zeros, eight centres
        expected = (
            b"KVDS" + b"\1\0" + b"\2" + b"\1" + b"\x40\0\0\0" + b"\1\0" + b"\x40\0"
            + b"\0\5\0\0\0\0\0\0"  # 1280 bytes
            + bytes(8)
            + bytes(range(16)) + bytes(16)
            + bytes(64)  # patterns 0 and 0
            + row * 8 + row * 8
            + b"\xfb" * 128
            + b"\xcc" * 256  # chunks 0 and 1 are set: bits 3 and 2 of each nibble
            + b"\xff\xff\0\0" * 64  # bytes 0 and 1 of a word are even tokens
        )
        piece = struct.pack("<Q", xxhash.xxh3_64_intdigest(expected))  # there is one only
        checksum = xxhash.xxh3_64_intdigest(piece)
        expected = expected[:24] + struct.pack("<Q", checksum) + expected[32:]
        self.assertEqual(self.segment, expected)

    def test_values(self):
        k, v = segment_model.decode(self.segment, self.calibration.heads)
        level = 1.375 * (0.1455078125 * 8) * 0.5
        np.testing.assert_array_equal(k, level * self.k)
        np.testing.assert_array_equal(v, level * self.v)


class Packing(unittest.TestCase):
    """Codes read back the way a kernel reads them: lane, word, byte, nibble."""

    def codes_of_nibble(self, width: int, nibbles: list[int]) -> list[int]:
        """nibbles[word] of one place or token -> the code of each chunk."""
        if width == 4:
            return nibbles
        if width == 3:
            last = sum((nibble & 1) << k for k, nibble in enumerate(nibbles))
            return [nibble >> 1 for nibble in nibbles] + [last]
        if width == 2:
            return [nibbles[0] >> 2, nibbles[0] & 3, nibbles[1] >> 2, nibbles[1] & 3]
        return [nibbles[0] >> 3, nibbles[0] >> 2 & 1, nibbles[0] >> 1 & 1, nibbles[0] & 1]

    def k_words(self, width: int, group: bytes, lane: int) -> list[bytes]:
        words = []
        for whole in range(width // 2):  # 16 bytes a lane: four words
            words += [group[512 * whole + 16 * lane + 4 * i :][:4] for i in range(4)]
        if width % 2:  # 8 bytes a lane: two words
            words += [group[512 * (width // 2) + 8 * lane + 4 * i :][:4] for i in range(2)]
        return words

    def v_words(self, width: int, tile: bytes, lane: int) -> list[bytes]:
        a_lane = {1: 4, 2: 8, 3: 8, 4: 16}[width]
        words = [tile[a_lane * lane + 4 * i :][:4] for i in range(a_lane // 4)]
        if width == 3:
            words.append(tile[256 + 4 * lane :][:4])
        return words

    def test_keys(self):
        for width in (1, 2, 3, 4):
            codes = np.random.default_rng(width).integers(2**width, size=(64, 32))
            group = plane_bits.pack_group("k", width, codes)
            self.assertEqual(len(group), 256 * width)
            for lane in range(32):
                g, t = divmod(lane, 4)
                words = self.k_words(width, group, lane)
                for h in range(2):
                    for e in range(4):
                        for s in range(2):
                            nibbles = [word[e] >> 4 * s & 15 for word in words[h::2]]
                            expected = codes[[8 * s + g + 16 * x for x in range(4)], 16 * h + 4 * t + e]
                            self.assertEqual(self.codes_of_nibble(width, nibbles), expected.tolist())

    def test_values(self):
        for width in (1, 2, 3, 4):
            codes = np.random.default_rng(width).integers(2**width, size=(64, 32))
            group = plane_bits.pack_group("v", width, codes)
            self.assertEqual(len(group), 256 * width)
            for i in range(2):
                tile = group[128 * width * i :][: 128 * width]
                for lane in range(32):
                    g, t = divmod(lane, 4)
                    words = self.v_words(width, tile, lane)
                    for e in range(4):
                        token = 8 * (e % 2) + 2 * t + e // 2
                        for s in range(2):
                            nibbles = [word[e] >> 4 * s & 15 for word in words]
                            expected = codes[[token + 16 * x for x in range(4)], 16 * i + 8 * s + g]
                            self.assertEqual(self.codes_of_nibble(width, nibbles), expected.tolist())

    def test_unpacking_is_the_inverse(self):
        for kind in "kv":
            for width in (1, 2, 3, 4):
                codes = np.random.default_rng(width).integers(2**width, size=(64, 32))
                group = plane_bits.pack_group(kind, width, codes)
                np.testing.assert_array_equal(plane_bits.unpack_group(kind, width, group), codes)

    def test_tables_and_token_scales_hold_each_place_once(self):
        for kind in "kv":
            for head_dim in patterns.PATTERNS:
                places = segment_model.table_places(kind, head_dim)
                self.assertEqual(sorted(places.flat), list(range(head_dim)))
        self.assertEqual(segment_model.table_places("k", 64)[1].tolist(), [2, 3, 18, 19, 34, 35, 50, 51])
        self.assertEqual(segment_model.table_places("v", 64)[1].tolist(), [1, 9, 17, 25, 33, 41, 49, 57])
        k, v = np.arange(64), np.arange(64, 128)
        rows = segment_model.encode_token_scales(k, v)
        self.assertEqual(list(rows[16:32]), [1, 9, 17, 25, 33, 41, 49, 57, 65, 73, 81, 89, 97, 105, 113, 121])
        for half, codes in zip(segment_model.decode_token_scales(rows), (k, v), strict=True):
            np.testing.assert_array_equal(half, codes)


class PlainPython(unittest.TestCase):
    """Steps 1 to 7 again, number by number: a double rounded to fp32 is the correctly rounded fp32 step."""

    def fp32(self, value: float) -> float:
        return struct.unpack("f", struct.pack("f", value))[0]

    def fp16(self, value: float) -> float:
        return struct.unpack("e", struct.pack("e", value))[0]

    def sum_over_tokens(self, numbers: list[float]) -> float:
        total = 0.0
        for first in range(0, len(numbers), 64):
            block = 0.0
            for number in numbers[first : first + 64]:
                block = self.fp32(block + number)
            total = self.fp32(total + block)
        return total

    def tree(self, numbers: list[float]) -> float:
        if len(numbers) == 1:
            return numbers[0]
        half = len(numbers) // 2
        return self.tree([self.fp32(a + b) for a, b in zip(numbers[:half], numbers[half:])])

    def rms(self, total: float, count: int, floor: float) -> float:
        return max(self.fp32(math.sqrt(self.fp32(total / count))), self.fp32(floor))

    def square(self, value: float) -> float:
        return self.fp32(value * value)

    def test_same_as_numpy(self):
        rng = np.random.default_rng(5)
        x = 3 + rng.normal(size=(128, 64)) * np.exp(rng.normal(size=64)) * np.exp(rng.normal(size=(128, 1)))
        x = x.astype(np.float32)
        widths = np.repeat([4, 3, 2, 1], 16)
        fitted = planes_arithmetic.fit(x, widths)

        n, channels = len(x), range(64)
        column = [x[:, j].tolist() for j in channels]
        c = [self.fp16(self.fp32(self.sum_over_tokens(column[j]) / n)) for j in channels]
        self.assertEqual(fitted.centre.tolist(), c)
        d = [[self.fp32(number - c[j]) for number in column[j]] for j in channels]
        sd = [self.rms(self.sum_over_tokens([self.square(a) for a in d[j]]), n, 1e-12) for j in channels]
        s = []
        for t in range(n):
            r = [self.fp32(d[j][t] / sd[j]) for j in channels]
            s.append(self.rms(self.tree([self.square(a) for a in r]), 64, 1e-6))
        exponent = math.floor(math.log2(max(s)))
        for t in range(n):  # round to 3 bits of mantissa; no token comes near a carry of the largest
            mantissa, power = math.frexp(s[t])
            s[t] = math.ldexp(round(mantissa * 16), power - 4 - exponent)
        self.assertLess(max(s), 2)
        self.assertEqual(planes_arithmetic.token_scale(fitted.token_codes).tolist(), s)
        for j in channels:
            z = [self.fp32(a / b) for a, b in zip(d[j], s)]
            sd2 = self.fp32(math.sqrt(self.fp32(self.sum_over_tokens([self.square(a) for a in z]) / n)))
            width = int(widths[j])
            k = self.fp32({1: 1.6, 2: 2.0, 3: 2.4, 4: 2.9}[width]) / 8
            stored = self.fp16(self.fp32(k * sd2))
            self.assertEqual(fitted.stored[j], stored)
            step, half = stored * 2 ** (4 - width), (2**width - 1) / 2
            u = [round(self.fp32(self.fp32(a / step) + half)) for a in z]
            u = [min(max(code, 0), 2**width - 1) for code in u]
            self.assertEqual(fitted.codes[:, j].tolist(), u)


class Quality(unittest.TestCase):
    def test_distortion_of_each_width(self):
        """Of normal data, about what DESIGN 4 says."""
        x = np.random.default_rng(3).normal(size=(1024, 128)).astype(np.float32)
        widths = np.repeat([0, 1, 2, 4], 32)
        decoded = planes_arithmetic.values(planes_arithmetic.fit(x, widths), widths)
        distortion = ((decoded - x) ** 2).mean(axis=0) / x.var(axis=0)
        for width, expected in ((0, 1.0), (1, 0.3634), (2, 0.1188), (4, 0.0115)):
            self.assertAlmostEqual(distortion[widths == width].mean() / expected, 1, delta=0.05)

    def test_more_bits_are_better(self):
        rng = np.random.default_rng(4)
        for head_dim in patterns.PATTERNS:
            k, v = (floats.from_fp32(rng.normal(size=(64, 1, head_dim)), BF16) for _ in range(2))
            last = [math.inf, math.inf]
            for pattern in patterns.numbers(head_dim):
                calibration = LayerCalibration([in_order(head_dim, pattern, pattern)], bytes(16))
                decoded = segment_model.decode(
                    segment_model.encode(k, v, BF16, calibration), calibration.heads
                )
                errors = [
                    np.linalg.norm(values - floats.to_fp32(stored, BF16))
                    for values, stored in zip(decoded, (k, v), strict=True)
                ]
                self.assertLess(errors[0], last[0])
                self.assertLess(errors[1], last[1])
                last = errors


class Sizes(unittest.TestCase):
    def test_sizes_of_the_page(self):
        self.assertEqual([segment_model.header_bytes(heads) for heads in (1, 32, 33, 64, 65)],
                         [128, 128, 256, 256, 256])
        head = in_order(128, 7, 5)
        self.assertEqual(segment_model.record_bytes(head), 128 + 8 * 128 * (2.25 + 1.75))
        self.assertEqual(segment_model.planes_part_bytes(1024, head), 1024 + 16 * 4224)

    def test_patterns(self):
        for head_dim, kinds in patterns.PATTERNS.items():
            self.assertEqual(len(kinds["k"]), len(kinds["v"]))
            for kind, listed in kinds.items():
                for number, widths in enumerate(listed):
                    self.assertEqual(len(widths), head_dim // 32)
                    self.assertEqual(list(widths), sorted(widths, reverse=True))
                    mean = (number + 1) / 2 if head_dim == 64 else (number + 2) / 4
                    self.assertEqual(patterns.mean_width(kind, head_dim, number), mean)

    def test_neighbours_of_the_profiles(self):
        for head_dim, expected in (
            (64, [(3, 1), (4, 2), (5, 4), (7, 5)]),
            (128, [(5, 3), (7, 5), (10, 8), (13, 11)]),
            (256, [(5, 3), (7, 5), (10, 8), (13, 11)]),
        ):
            found = [
                (
                    patterns.next_above("k", head_dim, mean),
                    patterns.next_below("v", head_dim, mean),
                )
                for mean in patterns.PROFILE_MEANS
            ]
            self.assertEqual(found, expected)


class Floats(unittest.TestCase):
    def test_bf16_rounds_to_nearest_even(self):
        for bits, rounded in (
            (0x3F808000, 0x3F80),
            (0x3F818000, 0x3F82),
            (0x3F808001, 0x3F81),
            (0x80000001, 0x8000),
        ):
            value = np.array([bits], np.uint32).view(np.float32)
            self.assertEqual(floats.bf16_from_fp32(value)[0], rounded)

    def test_raw_segments_are_exact(self):
        for dtype in floats.NAMES:
            rng = np.random.default_rng(dtype)
            k, v = (floats.from_fp32(rng.normal(size=(128, 3, 64)), dtype) for _ in range(2))
            segment = segment_model.encode_raw(k, v, dtype)
            self.assertEqual(len(segment), segment_model.raw_segment_bytes(128, 3, 64, dtype))
            for decoded, x in zip(segment_model.decode(segment), (k, v), strict=True):
                np.testing.assert_array_equal(decoded, floats.to_fp32(x, dtype))


class Vectors(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.vectors = {name: make_vectors.make(name) for name in make_vectors.CASES}

    def fitted(self, name: str, tensor: str) -> planes_arithmetic.Fitted:
        vector = self.vectors[name]
        x = floats.to_fp32(getattr(vector, tensor)[:, 0], vector.dtype)
        return planes_arithmetic.fit(x, getattr(vector.calibration.heads[0], tensor).channel_widths())

    def test_files_are_what_the_model_makes(self):
        files = {path.stem for path in make_vectors.FOLDER.glob("*.bin")}
        self.assertEqual(files, set(make_vectors.CASES))
        for name, vector in self.vectors.items():
            with self.subTest(name):
                path = make_vectors.FOLDER / f"{name}.bin"
                self.assertEqual(path.read_bytes(), vector_file.to_bytes(vector))
        self.assertEqual((make_vectors.FOLDER / "patterns.txt").read_text(), make_vectors.pattern_lines())
        self.assertLess(sum(path.stat().st_size for path in make_vectors.FOLDER.iterdir()), 3.5 * 2**20)

    def test_files_are_those_that_were_committed(self):
        for folder in make_vectors.FOLDER.parent.iterdir():
            sums = (folder / make_vectors.SUMS).read_text()
            self.assertEqual(sums, make_vectors.sum_lines(folder), folder.name)

    def test_files_read_back(self):
        for name, vector in self.vectors.items():
            with self.subTest(name):
                read = vector_file.read(make_vectors.FOLDER / f"{name}.bin")
                options = make_vectors.CASES[name].packkv
                if options is not None:
                    encoded = segment_model.encode_packkv(read.k, read.v, read.dtype, *options)
                else:
                    encoded = segment_model.encode(read.k, read.v, read.dtype, read.calibration)
                self.assertEqual(encoded, vector.segment)
                for stored, values in ((read.k_values, vector.k_values), (read.v_values, vector.v_values)):
                    self.assertEqual(stored.tobytes(), values.tobytes())

    def test_decoding(self):
        for name, vector in self.vectors.items():
            with self.subTest(name):
                for values, stored in ((vector.k_values, vector.k), (vector.v_values, vector.v)):
                    x = floats.to_fp32(stored, vector.dtype)
                    spread = np.linalg.norm(x - x.mean(axis=0))
                    self.assertLess(np.linalg.norm(values - x), 0.9 * spread)

    def test_codecs_and_sizes(self):
        for name, vector in self.vectors.items():
            with self.subTest(name):
                codec = segment_model.codec_of(vector.segment)
                size = segment_model.planes_segment_bytes(len(vector.k), vector.calibration)
                if "_raw_" in name:
                    self.assertEqual(codec, segment_model.RAW)
                    size = segment_model.raw_segment_bytes(*vector.k.shape, vector.dtype)
                elif "_packkv_" in name:
                    self.assertEqual(codec, segment_model.PACKKV)
                    k, v = (floats.to_fp32(stored, vector.dtype) for stored in (vector.k, vector.v))
                    layer = packkv_model.Layer(k, v, *make_vectors.CASES[name].packkv)
                    size = segment_model.header_bytes(vector.k.shape[1]) + layer.body_bytes
                else:
                    self.assertEqual(codec, segment_model.PLANES)
                self.assertEqual(len(vector.segment), size)

    def test_packkv_bytes_hold_what_was_quantised(self):
        for name, case in make_vectors.CASES.items():
            if case.packkv is None:
                continue
            with self.subTest(name):
                vector = self.vectors[name]
                k, v = (floats.to_fp32(stored, vector.dtype) for stored in (vector.k, vector.v))
                layer = packkv_model.Layer(k, v, *case.packkv)
                np.testing.assert_array_equal(vector.k_values, layer.decoded_k)
                np.testing.assert_array_equal(vector.v_values, layer.decoded_v)
        self.assertEqual({case.packkv[:2] for case in make_vectors.CASES.values() if case.packkv},
                         {(16, packkv_model.NONE), (16, packkv_model.MEDIAN), (4, packkv_model.GREEDY), (8, packkv_model.NONE)})

    def test_patterns_are_covered(self):
        used = {(len(tensor.order), tensor.kind, tensor.pattern)
                for vector in self.vectors.values()
                if segment_model.codec_of(vector.segment) == segment_model.PLANES
                for head in vector.calibration.heads
                for tensor in (head.k, head.v)}
        for head_dim in (64, 128):
            for kind in "kv":
                for pattern in patterns.numbers(head_dim):
                    self.assertIn((head_dim, kind, pattern), used)

    def test_odd_inputs_are_what_they_claim(self):
        for tensor in ("k", "v"):
            fitted = self.fitted("d64_fp16_ties", tensor)
            vector = self.vectors["d64_fp16_ties"]
            widths = getattr(vector.calibration.heads[0], tensor).channel_widths()
            self.assertEqual(set(fitted.token_codes), {248})
            self.assertEqual(set(planes_arithmetic.step_of(fitted.stored, widths)), {1.0})
        self.assertEqual(set(self.fitted("d64_bf16_token_ties", "k").token_codes), {247, 248, 250})
        # 13/16 and 15/16, 17/16 and 31/16, all over 2.
        carried = self.fitted("d64_bf16_token_ties", "v").token_codes
        self.assertEqual(set(carried), {237, 239, 240, 248})
        centre = self.fitted("d64_bf16_vanishing_negative_zeros", "v").centre
        self.assertTrue((np.signbit(centre) & (centre == 0)).any())
        self.assertLess(self.fitted("d64_bf16_vanishing_negative_zeros", "k").token_codes.min(), 80)
        for tensor in ("k", "v"):
            self.assertIn(2.0**-24, self.fitted("d64_bf16_small_denormals", tensor).stored)
        spread = planes_arithmetic.token_scale(self.fitted("d128_bf16_spread_tokens", "v").token_codes)
        self.assertGreater(spread.max() / spread.min(), 5e3)

    def test_another_order_of_a_sum_shows(self):
        def whole_segment(f):
            return np.add.accumulate(f, axis=0, dtype=np.float32)[-1]

        def neighbours_first(f):
            while f.shape[1] > 1:
                f = f[:, 0::2] + f[:, 1::2]
            return f[:, 0]

        for name, function, other in (
            ("d64_bf16_own_640", "sum_over_tokens", whole_segment),
            ("d64_bf16_own_192_tiny", "sum_over_tokens", whole_segment),
            ("d64_fp32_near_ties", "tree_over_channels", neighbours_first),
        ):
            vector = self.vectors[name]
            with mock.patch.object(planes_arithmetic, function, other):
                segment = segment_model.encode(vector.k, vector.v, vector.dtype, vector.calibration)
            self.assertNotEqual(segment, vector.segment)

    def test_width_zero_counts_in_the_raw_rule(self):
        """A spread anywhere while no coded channel has a scale of at least 2^-14."""
        x = np.zeros((64, 1, 64))
        x[:, :, 40] = np.where(np.arange(64) % 2, 1, -1)[:, None]
        x = floats.from_fp32(x, FP32)
        calibration = LayerCalibration([in_order(64, 0, 0)], bytes(16))
        segment = segment_model.encode(x, np.zeros_like(x), FP32, calibration)
        self.assertEqual(segment_model.codec_of(segment), segment_model.RAW)


class OwnCalibration(unittest.TestCase):
    def test_order_and_hash(self):
        scale = np.array([1, 4, 2, 2] + [1] * 60)
        sign = np.where(np.arange(64) % 2, 1, -1)[:, None, None]
        x = floats.from_fp32(sign * scale, BF16)
        q2 = np.ones((1, 64), np.float32)
        q2[0, 0] = 5  # 5 against 16, 4, 4, 1, ...
        made = calibration_model.derive_own(x, x, BF16, patterns.COMPACT, q2)
        self.assertEqual(made.heads[0].k.order.tolist(), [1, 0, 2, 3, *range(4, 64)])
        self.assertEqual(made.heads[0].v.order.tolist(), [1, 2, 3, 0, *range(4, 64)])
        self.assertEqual((made.heads[0].k.pattern, made.heads[0].v.pattern), (4, 2))
        message = bytes([1, 0, *range(2, 64), 4, 1, 2, 3, 0, *range(4, 64), 2])
        self.assertEqual(made.hash16, xxhash.xxh3_128_intdigest(message).to_bytes(16, "big"))


if __name__ == "__main__":
    unittest.main()
