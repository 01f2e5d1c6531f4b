"""The numbered width patterns of FORMAT.md, of keys ("k") and of values ("v"), and the profiles."""

PATTERNS = {
    64: {
        "k": "10 20 30 31 41 42 43 44".split(),
        "v": "10 11 21 22 32 33 43 44".split(),
    },
    128: {
        "k": (
            "2000 3000 3100 3200 3210 4210 4211 4221 4321 4322 4332 4432 4433 4443 4444"
        ).split(),
        "v": (
            "1100 1110 1111 2111 2211 2221 2222 3222 3322 3332 3333 4333 4433 4443 4444"
        ).split(),
    },
    256: {
        "k": (
            "31000000 32100000 42110000 42211000 43211100 43221110 43322110 44322111 44332211 "
            "44333221 44433222 44443322 44444332 44444433 44444444"
        ).split(),
        "v": (
            "11110000 11111100 21111110 22111111 22221111 22222211 22222222 33222222 33332222 "
            "33333322 33333333 44333333 44443333 44444433 44444444"
        ).split(),
    },
}

GROUP = 32  # places that share a width

TINY, COMPACT, BALANCED, FINE = range(4)
PROFILE_NAMES = ("tiny", "compact", "balanced", "fine")
PROFILE_MEANS = (1.5, 2.0, 2.75, 3.5)


def numbers(head_dim: int) -> range:
    return range(len(PATTERNS[head_dim]["k"]))


def group_widths(kind: str, head_dim: int, number: int) -> list[int]:
    return [int(width) for width in PATTERNS[head_dim][kind][number]]


def mean_width(kind: str, head_dim: int, number: int) -> float:
    """The same for both kinds."""
    widths = group_widths(kind, head_dim, number)
    return sum(widths) / len(widths)


def next_above(kind: str, head_dim: int, mean: float) -> int:
    """The pattern with the smallest mean width above `mean`."""
    return min(p for p in numbers(head_dim) if mean_width(kind, head_dim, p) > mean)


def next_below(kind: str, head_dim: int, mean: float) -> int:
    """The pattern with the largest mean width below `mean`."""
    return max(p for p in numbers(head_dim) if mean_width(kind, head_dim, p) < mean)
