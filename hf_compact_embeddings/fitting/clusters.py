"""Centres that rows share: what a row has in common with its likes, told in a byte."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .kmeans import kmeans
from .principal_axes import PrincipalAxes
from .tiers import CentreStatistics

# Further axes hold little of what rows have in common: centres fitted to them would be fitted to single rows.
_AXES = 64
_ITERATIONS = 20
_CHUNK = 8192


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Clusters of the rows of a table (V, D).

    Attributes:
        of_row: the cluster of each row (V,), int64.
        points: coordinates (K, D) of the centres in the principal axes, 0 beyond the first ones; float64.
    """

    of_row: Tensor
    points: Tensor

    def statistics(self, weights: Tensor) -> CentreStatistics:
        """Return what planning needs to know, where the rows weigh (V,)."""
        return CentreStatistics(len(self.points), self.weights(weights) @ self.points.square())

    def weights(self, weights: Tensor) -> Tensor:
        """Return the weight of each cluster (K,), float64."""
        return torch.zeros(len(self.points)).double().index_add(0, self.of_row, weights.double())


def find_clusters(table: Tensor, axes: PrincipalAxes, count: int, seed: int) -> Clusters:
    """Cluster the rows of a table (V, D) in its principal axes.

    All rows weigh the same: those that count for more get more bits of their own, until all errors weigh the same.
    """
    first = axes.project[:, :_AXES]
    points = torch.cat([((rows.double() - axes.mean) @ first).float() for rows in table.split(_CHUNK)])
    generator = torch.Generator().manual_seed(seed)
    cpu = torch.device("cpu")
    centres, of_row = kmeans(points.unsqueeze(1), count, None, generator, _ITERATIONS, cpu, "Clustering rows")
    padding = (0, table.shape[1] - first.shape[1])
    return Clusters(of_row.squeeze(1).long(), torch.nn.functional.pad(centres[0].double(), padding))
