"""Derives the width patterns of FORMAT.md from a model's statistics.

    patterns.py --statistics FILE

A head's channels, in descending importance, form groups of 32; a pattern gives
each group a width of 0..4 bits, never increasing. One pattern per bit budget
for K and one for V: the one with the least sum of D(width) x importance of the
group over all heads, each normalised to 1. (K's importance is far more peaked
than V's; with common patterns the expected KL of `compact` is 19 % higher.)
D is convex, so adding one bit at a time to the group that gains most finds the
minimum, and each pattern contains the one before. FORMAT.md fixed the result
for ever; this script is where it came from.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from importance import importance

DISTORTION = np.array([1.0, 0.3634, 0.1188, 0.0374, 0.0115])  # of width 0..4
MAX_WIDTH = len(DISTORTION) - 1
# head_dim -> bits a channel between two patterns; the first has 0.5, the last 4.0.
STEP = {64: 0.5, 128: 0.25, 256: 0.25}
GROUP = 32


def mean_profile(importances: np.ndarray) -> np.ndarray:
    """Share of importance by rank of the channel, averaged over heads, each normalised to 1."""
    heads = importances.reshape(-1, importances.shape[-1]).astype(float)
    ranked = -np.sort(-heads, axis=1)
    return (ranked / ranked.sum(1, keepdims=True)).mean(0)


def group_shares(profile: np.ndarray, head_dim: int) -> np.ndarray:
    """The profile's share in each group, were the head `head_dim` wide: merged or split by rank."""
    return profile.reshape(head_dim // GROUP, -1).sum(1)


def cost(pattern: tuple[int, ...], shares: np.ndarray) -> float:
    return float(DISTORTION[list(pattern)] @ shares)


def greedy_patterns(shares: np.ndarray, head_dim: int) -> list[tuple[int, ...]]:
    groups = len(shares)
    widths = np.zeros(groups, dtype=int)
    wanted = [round(groups * bits) for bits in np.arange(0.5, MAX_WIDTH + 0.01, STEP[head_dim])]
    patterns = []
    while len(patterns) < len(wanted):
        gain = [
            share * (DISTORTION[w] - DISTORTION[w + 1]) if w < MAX_WIDTH else -1.0
            for share, w in zip(shares, widths)
        ]
        widths[int(np.argmax(gain))] += 1
        if widths.sum() == wanted[len(patterns)]:
            patterns.append(tuple(int(w) for w in widths))
    return patterns


def ranked_patterns(total: int, shares: np.ndarray) -> list[tuple[int, ...]]:
    """All non-increasing patterns of `total` bits, best first."""
    every = itertools.combinations_with_replacement(range(MAX_WIDTH, -1, -1), len(shares))
    return sorted((p for p in every if sum(p) == total), key=lambda p: cost(p, shares))


def text(pattern: tuple[int, ...]) -> str:
    return "".join(map(str, pattern))


def print_table(title: str, profile: np.ndarray, head_dim: int) -> None:
    shares = group_shares(profile, head_dim)
    print(f"\n## {title}\n")
    print("group shares of importance:", " ".join(f"{share:.4f}" for share in shares), "\n")
    print("| number | bits | widths | distortion | second best | its excess |")
    print("|---|---|---|---|---|---|")
    for number, pattern in enumerate(greedy_patterns(shares, head_dim)):
        ranking = ranked_patterns(sum(pattern), shares)
        best = cost(pattern, shares)
        assert cost(ranking[0], shares) > best - 1e-12
        second, excess = "-", "-"
        if len(ranking) > 1:
            second = text(ranking[1])
            excess = f"{100 * (cost(ranking[1], shares) / best - 1):.1f} %"
        bits = sum(pattern) / len(pattern)
        print(f"| {number} | {bits:.2f} | {text(pattern)} | {best:.4f} | {second} | {excess} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--statistics", required=True, type=Path)
    args = parser.parse_args()

    statistics = load_file(args.statistics)
    k = importance(statistics["k_variance"], statistics["q_second_moment"])
    v = importance(statistics["v_variance"])
    profiles = {"K": mean_profile(k), "V": mean_profile(v)}
    for head_dim, (name, profile) in itertools.product(STEP, profiles.items()):
        print_table(f"head_dim {head_dim}, {name}", profile, head_dim)


if __name__ == "__main__":
    main()
