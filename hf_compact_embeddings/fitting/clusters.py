"""Centres that rows share: what a row has in common with its likes, told in a few bits.

Names of clusters differ in length, and a row takes the centre that is worth its name at the price of a bit: rows that
hardly count all end up with what is named shortest.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..modeling.prefix_codes import named_bytes
from .kmeans import kmeans
from .name_lengths import name_lengths
from .principal_axes import PrincipalAxes
from .tiers import CentreStatistics

# Further axes hold little of what rows have in common: centres fitted to them would be fitted to single rows.
_AXES = 64
_ITERATIONS = 20
_ROUNDS = 12
_CHUNK = 8192
# Of rows to centres: 2^22 float32 values are 16 MB.
_DISTANCES_PER_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Clusters of the rows of a table (V, D).

    Attributes:
        of_row: the cluster of each row (V,), int64.
        points: coordinates (K, D) of the centres in the principal axes, 0 beyond the first ones; float64. Those that
            most rows name come first.
    """

    of_row: Tensor
    points: Tensor

    def statistics(self, weights: Tensor) -> CentreStatistics:
        """Return what planning needs to know, where the rows weigh (V,)."""
        num_bytes = named_bytes(self._named(), self.name_lengths())
        return CentreStatistics(len(self.points), self.weights(weights) @ self.points.square(), num_bytes)

    def weights(self, weights: Tensor) -> Tensor:
        """Return the weight of each cluster (K,), float64."""
        return torch.zeros(len(self.points)).double().index_add(0, self.of_row, weights.double())

    def name_lengths(self) -> tuple[int, ...]:
        """Return the bits of each cluster's name, the shortest first."""
        return tuple(sorted(name_lengths(self._named())))

    def _named(self) -> list[int]:
        return torch.bincount(self.of_row, minlength=len(self.points)).tolist()


def find_clusters(table: Tensor, axes: PrincipalAxes, count: int, seed: int) -> Clusters | None:
    """Cluster the rows of a table (V, D) in its principal axes, all of the same weight; None where all are the same."""
    points = _points(table, axes)
    generator = torch.Generator().manual_seed(seed)
    cpu = torch.device("cpu")
    centres, of_row = kmeans(points.unsqueeze(1), count, None, generator, _ITERATIONS, cpu, "Clustering rows")
    return _in_order(of_row.squeeze(1).long(), centres[0], table.shape[1])


def price_names(
    clusters: Clusters, table: Tensor, axes: PrincipalAxes, weights: Tensor, price: float
) -> Clusters | None:
    """Let rows (V, D) choose among the centres by error and by the length of the name; unused centres are dropped.

    None where all rows end up with the same centre: then the mean of their tier says as much.

    Args:
        clusters: to start from.
        table: the rows.
        axes: in which the centres are.
        weights: what the squared error of a row costs (V,).
        price: what a bit costs.
    """
    points, weights = _points(table, axes), weights.float()
    of_row, centres = clusters.of_row, clusters.points[:, : points.shape[1]].float()
    for _ in range(_ROUNDS):
        named = torch.bincount(of_row, minlength=len(centres)).float()
        kept = named > 0
        centres, named = centres[kept], named[kept]
        costs = (named.sum() / named).log2() * price
        half_norms = centres.square().sum(1) / 2
        step = max(1, _DISTANCES_PER_CHUNK // len(centres))
        chosen = [
            (weight[:, None] * 2 * (half_norms - rows @ centres.T) + costs).argmin(1)
            for rows, weight in zip(points.split(step), weights.split(step), strict=True)
        ]
        before, of_row = of_row, torch.cat(chosen)
        mass = torch.zeros(len(centres)).index_add(0, of_row, weights)
        sums = torch.zeros_like(centres).index_add(0, of_row, points * weights[:, None])
        centres = torch.where(mass[:, None] > 0, sums / mass.clamp(min=1e-30)[:, None], centres)
        if torch.equal(of_row, before):
            break
    return _in_order(of_row, centres, table.shape[1])


def _points(table: Tensor, axes: PrincipalAxes) -> Tensor:
    """Return the coordinates of rows in the first axes."""
    first = axes.project[:, :_AXES]
    return torch.cat([((rows.double() - axes.mean) @ first).float() for rows in table.split(_CHUNK)])


def _in_order(of_row: Tensor, centres: Tensor, width: int) -> Clusters | None:
    """Put the centres that most rows name first, and leave out those that none does. One alone says nothing."""
    named = torch.bincount(of_row, minlength=len(centres))
    order = named.argsort(descending=True, stable=True)
    order = order[: int((named > 0).sum())]
    if len(order) < 2:
        return None
    places = torch.empty(len(centres), dtype=torch.int64)
    places[order] = torch.arange(len(order))
    points = torch.nn.functional.pad(centres[order].double(), (0, width - centres.shape[1]))
    return Clusters(places[of_row], points)
