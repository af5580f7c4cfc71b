"""The axes that rotated codes work in: principal for weighted rows, in the metric that says what errors cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from .reproducible import product_over_rows, symmetric_eigen, total
from .spectrum import covariance, metric_roots

_CHUNK = 8192
# Of the largest: what is smaller is an axis that is stored as zero, or as another one.
_LEAST_EIGENVALUE = 1e-12


@dataclasses.dataclass(frozen=True)
class PrincipalAxes:
    """Axes of a table (V, D), those of most variance first; all float64.

    Attributes:
        mean: of the weighted rows (D,).
        root: the square root of the metric (D, D): plain distances behind it are distances in the metric.
        project: takes centred rows to their coordinates (D, D).
        basis: takes coordinates back to centred rows (D, D); a row an axis.
    """

    mean: Tensor
    root: Tensor
    project: Tensor
    basis: Tensor

    def projection_to(self, basis: Tensor) -> Tensor:
        """Return what takes centred rows to their coordinates (D, r) on a basis (r, D) as it is stored."""
        return self.root @ _right_inverse(basis.double() @ self.root)


def _right_inverse(rows: Tensor) -> Tensor:
    """Return the pseudo-inverse (D, r) of rows (r, D) that are nearly orthogonal, some of them perhaps zero."""
    if not len(rows):
        return rows.T
    values, vectors = symmetric_eigen(rows @ rows.T)
    kept = values > _LEAST_EIGENVALUE * values.max()
    inverse = torch.where(kept, 1 / values.where(kept, 1.0), 0.0)
    return rows.T @ ((vectors * inverse) @ vectors.T)


def principal_axes(table: Tensor, weights: Tensor, metric: Tensor | None = None) -> PrincipalAxes:
    """Find the axes of rows (V, D) that weigh (V,) in a metric (D, D); None: plain distance."""
    root, inverse = metric_roots(metric, table.shape[1])
    mean, moment = covariance(table, weights)
    _, directions = symmetric_eigen(root @ moment @ root)
    directions = directions.flip(1)
    return PrincipalAxes(mean=mean, root=root, project=root @ directions, basis=directions.T @ inverse)


def energies(table: Tensor, axes: PrincipalAxes) -> Tensor:
    """Return the squared distance (V,) of each row (V, D) from the mean, in the metric of the axes; float64."""
    mean, root = axes.mean.float(), axes.root.float()
    found = torch.empty(len(table), dtype=torch.float64)
    for rows, out in zip(table.split(_CHUNK), found.split(_CHUNK), strict=True):
        out.copy_(((rows.float() - mean) @ root).square().sum(1))
    return found


def mean_row(read: Callable[[Tensor], Tensor], weights: Tensor, ids: Tensor) -> Tensor:
    """Return the weighted mean (D,) of the rows that `read` gives for ids, float64."""
    weight = weights[ids].double()
    # Added up in one place: results that are kept would lie between chunks that are freed, whose memory nobody gets.
    summed: Tensor | float = 0.0
    for part, chunk in zip(weight.split(_CHUNK), ids.split(_CHUNK), strict=True):
        summed += product_over_rows(part, read(chunk).double())
    return torch.as_tensor(summed, dtype=torch.float64) / total(weight).clamp(min=1e-30)
