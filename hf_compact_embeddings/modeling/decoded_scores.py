"""Scoring for structures whose codes cannot be looked up in score tables: decode some rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_VALUES_PER_CHUNK = 1 << 20


def decoded_scores(hidden: Tensor, rows: int, decode: Callable[[int, int], Tensor]) -> Tensor:
    """Return hidden · Eᵀ (N, rows), float32, for queries (N, k) and rows (·, k) that are decoded chunk by chunk.

    Args:
        hidden: queries (N, k), float32.
        rows: how many rows there are.
        decode: gives the rows from `start` up to `stop` (n, k).
    """

    def score(start: int, stop: int) -> Tensor:
        return hidden @ decode(start, stop).to(hidden.dtype).T

    step = max(1, _VALUES_PER_CHUNK // hidden.shape[-1])
    scores = []
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        if torch.is_grad_enabled():
            # Kept for the backward pass, the decoded chunks would add up to the whole table.
            scores.append(checkpoint(score, start, stop, use_reentrant=False))
        else:
            scores.append(score(start, stop))
    return torch.cat(scores, dim=-1)
