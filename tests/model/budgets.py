"""Bit budgets of every head's K and V, from measured sensitivities.

sensitivity.json holds, per [layer][kv_head] and for K and V, the KL divergence
of the model's output when that head alone is quantised at .5, 1, 2 and 3 bits.
The logarithm is taken as linear between those points and on to 4 bits. A greedy
search then spends a profile's mean: each time on the head where 1, 2 or 4
quarter bits lower the KL most per bit.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from places import HERE

PROFILES = {"tiny": 1.5, "compact": 2.0, "balanced": 2.75, "fine": 3.5}
MIN_BITS, MAX_BITS, STEP = 0.5, 4.0, 0.25
LEVELS = np.arange(MIN_BITS, MAX_BITS + STEP / 2, STEP)  # pattern p of head_dim 128 has LEVELS[p]
JUMPS = (1, 2, 4)


@dataclass(frozen=True)
class Sensitivity:
    bits: list[float]
    kl: np.ndarray  # [layers][kv_heads][K, V][len(bits)]

    @staticmethod
    def load(path: Path = HERE / "sensitivity.json") -> "Sensitivity":
        data = json.loads(path.read_text())
        return Sensitivity(data["bits"], np.stack([data["k"], data["v"]], axis=2))

    def of_layers(self, layers: list[int]) -> "Sensitivity":
        return Sensitivity(self.bits, self.kl[layers])

    def curves(self) -> np.ndarray:
        """KL at every level: [layers][kv_heads][K, V][levels]."""
        log_kl = np.log(self.kl)
        result = np.empty((*self.kl.shape[:-1], len(LEVELS)))
        for index in np.ndindex(self.kl.shape[:-1]):
            result[index] = np.interp(LEVELS, self.bits, log_kl[index])
        slope = (log_kl[..., -1] - log_kl[..., -2]) / (self.bits[-1] - self.bits[-2])
        beyond = LEVELS > self.bits[-1]
        distance = LEVELS[beyond] - self.bits[-1]
        result[..., beyond] = log_kl[..., -1:] + slope[..., None] * distance
        return np.exp(result)


def spend(curves: np.ndarray, mean_bits: float) -> np.ndarray:
    """Level numbers, shaped like the curves without their last axis."""
    flat = curves.reshape(-1, len(LEVELS))
    level = np.zeros(len(flat), dtype=int)
    left = round((mean_bits - MIN_BITS) / STEP * len(flat))
    while left > 0:
        moves = [
            (head, jump)
            for head in range(len(flat))
            for jump in JUMPS
            if jump <= left and level[head] + jump < len(LEVELS)
        ]
        head, jump = max(
            moves, key=lambda m: (flat[m[0], level[m[0]]] - flat[m[0], level[m[0]] + m[1]]) / m[1]
        )
        level[head] += jump
        left -= jump
    return level.reshape(curves.shape[:-1])


def expected_kl(curves: np.ndarray, levels: np.ndarray) -> float:
    """Sum over heads: how the study predicts a profile's KL."""
    return float(np.take_along_axis(curves, levels[..., None], -1).sum())
