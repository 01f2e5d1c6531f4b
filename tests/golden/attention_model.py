"""Attention in double precision: what every attend test is measured against."""

import numpy as np


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    positions: np.ndarray | None = None,
    soft_cap: float | None = None,
    window: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """q [query][query head][channel]; k, v [token][KV head][channel]
    -> output [query][query head][channel], natural log-sum-exp [query][query head].

    A query at position p sees tokens 0..p, with a sliding window the newest `window` of them. By default the
    queries are those of the newest tokens, in order. Query head h reads KV head h / (query heads / KV heads).
    A query that sees nothing has output 0 and log-sum-exp -inf.
    """
    queries, query_heads, head_dim = q.shape
    tokens, kv_heads, _ = k.shape
    if positions is None:
        positions = np.arange(tokens - queries, tokens)
    seen = visible(tokens, positions, window)

    out = np.zeros((queries, query_heads, head_dim))
    lse = np.full((queries, query_heads), -np.inf)
    for query_head in range(query_heads):
        kv_head = query_head // (query_heads // kv_heads)
        keys, values = k[:, kv_head].astype(np.float64), v[:, kv_head].astype(np.float64)
        logits = scale * (q[:, query_head].astype(np.float64) @ keys.T)
        if soft_cap is not None:
            logits = soft_cap * np.tanh(logits / soft_cap)
        for query in range(queries):
            if seen[query].any():
                out[query, query_head], lse[query, query_head] = softmax_sum(
                    logits[query, seen[query]], values[seen[query]]
                )
    return out, lse


def visible(tokens: int, positions: np.ndarray, window: int | None) -> np.ndarray:
    """[query][token]"""
    token = np.arange(tokens)[None, :]
    position = np.asarray(positions)[:, None]
    seen = token <= position
    if window is not None:
        seen &= token > position - window
    return seen


def softmax_sum(logits: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    largest = logits.max()
    weights = np.exp(logits - largest)
    total = weights.sum()
    return weights @ values / total, largest + np.log(total)


def merge(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Attention over disjoint sets of tokens, each (output, log-sum-exp), put together."""
    lse = np.logaddexp.reduce([part_lse for _, part_lse in parts])
    out = sum(np.exp(part_lse - lse)[..., None] * part_out for part_out, part_lse in parts)
    return out, lse
