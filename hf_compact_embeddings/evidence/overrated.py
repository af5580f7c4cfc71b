"""Rows that a head gives far too much probability after a fit.

Errors are judged as if they were small. To a token that the model never gives an error of its score may be none of
that: chances grow with its exponential, and one such row can take what all others should have. There are few of them,
and each costs little to be kept exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..modeling.structure import CompactEmbedding

# A row is overrated if it takes so much of all probability more than before, and so many times as much.
_LEAST_EXCESS = 3e-4
_LEAST_FACTOR = 4.0
_ROUNDS = 4
_ROWS_PER_CHUNK = 8192
# That are held, before and after: with many tokens fewer states must do.
_SCORES = 1 << 25


@torch.no_grad()
def overrated_rows(structure: CompactEmbedding, rows: Tensor, states: Tensor, most: int) -> Tensor:
    """Return the sorted ids (m,) of the rows that a fit lets take probability from all others, the worst of them.

    Args:
        structure: the fit.
        rows: of the dense table (V, D).
        states: some of what enters the head (n, D), scaled so that their products with rows are logits.
        most: how many rows at most.
    """
    wrong = torch.empty(0, dtype=torch.int64)
    states = states[:: -(-len(states) * len(rows) // _SCORES)].float()
    logits = structure.project(states)
    chunks = rows.split(_ROWS_PER_CHUNK)
    before = torch.cat([states @ chunk.float().T for chunk in chunks], dim=1).softmax(1).mean(0, dtype=torch.float64)
    # One row that takes all hides the others.
    for _ in range(_ROUNDS):
        logits[:, wrong] = states @ rows[wrong].float().T
        after = logits.softmax(1).mean(0, dtype=torch.float64)
        excess = after - before
        found = ((excess > _LEAST_EXCESS) & (after > _LEAST_FACTOR * before)).nonzero().squeeze(-1)
        found = found[excess[found].argsort(descending=True, stable=True)][: most - len(wrong)]
        if not found.numel():
            break
        wrong = torch.cat([wrong, found])
    return wrong.sort().values
