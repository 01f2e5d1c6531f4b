"""How much each channel matters, and the channel order that follows.

Importance of a channel = mean over segments of (its variance over the
segment's tokens / that variance's mean over channels); for K, times the mean
q^2 of the channel, because an error in a K channel reaches the logits through
q. Statistics come from measure.py.
"""

import numpy as np


def importance(variance: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """[..][segments][head_dim] -> [..][head_dim]."""
    relative = (variance / variance.mean(-1, keepdims=True)).mean(-2)
    return relative if weight is None else relative * weight


def channel_order(importance_of_head: np.ndarray) -> np.ndarray:
    """Channels by descending importance, then ascending index."""
    return np.argsort(-importance_of_head, kind="stable")
