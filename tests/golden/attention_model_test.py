import math
import unittest

import numpy as np

import attention_model
import kivi_model


class Attention(unittest.TestCase):
    def setUp(self):
        rng = np.random.default_rng(1)
        self.q = rng.normal(size=(3, 4, 8))
        self.k, self.v = rng.normal(size=(2, 20, 2, 8))

    def test_by_hand(self):
        """Logits 0 and ln 3: weights 1/4 and 3/4."""
        q = np.array([[[1.0, 0]]])
        k = np.array([[[0.0, 5]], [[2 * math.log(3), 5]]])
        v = np.array([[[8.0, 0]], [[0, 4.0]]])
        out, lse = attention_model.attend(q, k, v, scale=0.5)
        np.testing.assert_allclose(out[0, 0], [2, 3])
        self.assertAlmostEqual(lse[0, 0], math.log(4))

    def test_grouped_queries_and_causal_rule(self):
        out, lse = attention_model.attend(self.q, self.k, self.v, 0.3)
        for query in range(3):
            seen = 18 + query
            for head in range(4):
                weights = np.exp(0.3 * self.k[:seen, head // 2] @ self.q[query, head])
                expected = weights @ self.v[:seen, head // 2] / weights.sum()
                np.testing.assert_allclose(out[query, head], expected)
                self.assertAlmostEqual(lse[query, head], math.log(weights.sum()))

    def test_window_is_attention_over_the_newest(self):
        out, lse = attention_model.attend(self.q, self.k, self.v, 0.3, window=5)
        for query in range(3):
            newest = slice(13 + query, 18 + query)
            alone = attention_model.attend(
                self.q[query : query + 1], self.k[newest], self.v[newest], 0.3
            )
            np.testing.assert_allclose(out[query], alone[0][0])
            np.testing.assert_allclose(lse[query], alone[1][0])

    def test_soft_cap(self):
        capped, _ = attention_model.attend(self.q, self.k, self.v, 0.3, soft_cap=1e-9)
        np.testing.assert_allclose(capped[2, 3], self.v[:, 1].mean(axis=0), atol=1e-6)
        loose, _ = attention_model.attend(self.q, self.k, self.v, 0.3, soft_cap=1e6)
        np.testing.assert_allclose(loose, attention_model.attend(self.q, self.k, self.v, 0.3)[0])

    def test_parts_merge_by_log_sum_exp(self):
        last = np.full(3, 19)
        parts = [
            attention_model.attend(self.q, self.k[part], self.v[part], 0.3, positions=last)
            for part in (slice(0, 7), slice(7, 20))
        ]
        whole = attention_model.attend(self.q, self.k, self.v, 0.3, positions=last)
        for merged, expected in zip(attention_model.merge(parts), whole, strict=True):
            np.testing.assert_allclose(merged, expected)

    def test_nothing_seen(self):
        out, lse = attention_model.attend(self.q, self.k, self.v, 0.3, positions=np.full(3, -1))
        self.assertTrue((out == 0).all() and (lse == -np.inf).all())


class Kivi(unittest.TestCase):
    def test_whole_levels_are_exact(self):
        codes = np.random.default_rng(2).integers(4, size=(64, 2, 64))
        codes[0::32], codes[1::32] = 0, 3
        codes[:, :, 0::32], codes[:, :, 1::32] = 0, 3
        codes[0::32, :, 1::32], codes[1::32, :, 0::32] = 0, 3  # each group of either kind has both ends
        x = (0.25 * codes - 1).astype(np.float32)
        np.testing.assert_array_equal(kivi_model.quantised_values(x), x)

    def test_groups(self):
        """A key's outlier harms its channel's 32 tokens, a value's its token's 32 channels."""
        x = np.random.default_rng(3).normal(size=(64, 1, 64)).astype(np.float32)
        spoilt = x.copy()
        spoilt[40, 0, 5] = 1000
        changed = kivi_model.quantised_keys(spoilt) != kivi_model.quantised_keys(x)
        self.assertFalse(changed[:32].any() or np.delete(changed, 5, axis=2).any())
        self.assertGreater(changed[32:, 0, 5].mean(), 0.9)
        changed = kivi_model.quantised_values(spoilt) != kivi_model.quantised_values(x)
        self.assertFalse(np.delete(changed, 40, axis=0).any() or changed[:, :, 32:].any())

    def test_error_and_cost(self):
        x = np.random.default_rng(4).normal(size=(256, 1, 64)).astype(np.float32)
        for quantised in (kivi_model.quantised_keys, kivi_model.quantised_values):
            step = 4.1 / 3  # the range of 32 normal numbers is about 4.1
            error = np.sqrt(((quantised(x) - x) ** 2).mean())
            self.assertAlmostEqual(error, step / math.sqrt(12), delta=0.04)
        self.assertEqual(kivi_model.bits_per_value(2), 3.0)


if __name__ == "__main__":
    unittest.main()
