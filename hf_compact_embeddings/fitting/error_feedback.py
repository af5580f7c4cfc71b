"""Rounding whose errors make up for each other: each value takes over what rounding the ones before it has cost.

In a metric with correlations an error in one column is partly undone by a change of the others (as GPTQ does it for
layers). Columns are rounded in order; what is left of each is shared among those that are still to come by the
Cholesky factor of the inverse metric, which is the change that costs least.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .reproducible import symmetric_eigen

# Columns that are rounded one by one before all later ones are told: products do most of the work then.
_BLOCK = 64


def feedback_factor(metric: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of a positive definite metric (D, D), float32."""
    values, vectors = symmetric_eigen(metric.double())
    inverse = (vectors / values.clamp(min=1e-6 * float(values.mean()))) @ vectors.T
    return torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True).float()


def round_with_feedback(rows: Tensor, factor: Tensor, nearest: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return rounded rows (n, D).

    Args:
        rows: what to round (n, D).
        factor: from `feedback_factor`.
        nearest: gives the rounded values (n,) of values (n,) in a column.
    """
    rounded, left = torch.empty_like(rows), rows.clone()
    width = rows.shape[1]
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        block, errors = left[:, start:stop].clone(), torch.empty_like(rows[:, start:stop])
        for place, column in enumerate(range(start, stop)):
            rounded[:, column] = nearest(block[:, place], column)
            errors[:, place] = (block[:, place] - rounded[:, column]) / factor[column, column]
            block[:, place + 1 :] -= torch.outer(errors[:, place], factor[column, column + 1 : stop])
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return rounded
