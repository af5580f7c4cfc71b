"""Centroids that rows share: what a row has in common with its likes, said in a few bits.

Codewords of clusters differ in length, and a row takes the centroid that is worth its codeword at the price of a bit:
rows that hardly count all end up with the shortest one (entropy-constrained vector quantisation).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .allocation import code_lengths
from .kmeans import assign, kmeans
from .principal_axes import PrincipalAxes
from .tier_plan import CentroidStatistics

# Further axes hold little of what rows have in common: centroids fitted to them would be fitted to single rows.
_AXES = 64
_ITERATIONS = 6
_SAMPLES_PER_CENTROID = 32
_ROUNDS = 8
# Of the rows: when fewer change their centroid in a round, it is the last.
_SETTLED = 0.001
# Of the largest weight.
_LEAST_WEIGHT = 1e-9
_CHUNK = 8192
# Of rows to centroids: 2^20 float32 values are 4 MB, which stays in a CPU's cache.
_DISTANCES_PER_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Clusters of the rows of a table (V, D).

    Attributes:
        of_row: the cluster of each row (V,), int64.
        points: coordinates (K, D) of the centroids in the principal axes, 0 beyond the first ones; float64. Those of
            most rows come first.
    """

    of_row: Tensor
    points: Tensor

    def statistics(self, weights: Tensor) -> CentroidStatistics:
        """Return what planning needs to know, where the rows weigh (V,)."""
        return CentroidStatistics(len(self.points), self.weights(weights) @ self.points.square())

    def weights(self, weights: Tensor) -> Tensor:
        """Return the weight of each cluster (K,), float64."""
        return torch.zeros(len(self.points)).double().index_add(0, self.of_row, weights.double())

    def squared_distances(self, points: Tensor) -> Tensor:
        """Return how far rows (V,) are from their centroids in the first coordinates (V, n), squared; float64."""
        centroids = self.points[:, : points.shape[1]].float()
        found = torch.empty(len(points), dtype=torch.float64)
        for rows, mine, out in zip(points.split(_CHUNK), self.of_row.split(_CHUNK), found.split(_CHUNK), strict=True):
            out.copy_((rows - centroids[mine]).square().sum(1))
        return found

    def sizes(self) -> list[int]:
        """Return how many rows each cluster has."""
        return torch.bincount(self.of_row, minlength=len(self.points)).tolist()

    def code_lengths(self) -> tuple[int, ...]:
        """Return the bits of each cluster's codeword, the shortest first."""
        return tuple(sorted(code_lengths(self.sizes())))


def find_clusters(points: Tensor, width: int, count: int, seed: int) -> Clusters | None:
    """Cluster rows by their first coordinates (V, n), all of the same weight; None where all are the same."""
    generator = torch.Generator().manual_seed(seed)
    cpu = torch.device("cpu")
    # A start that is found in less time: what follows moves the centroids, too.
    sample = points[torch.randperm(len(points), generator=generator)[: _SAMPLES_PER_CENTROID * count]].unsqueeze(1)
    centroids, _ = kmeans(sample, count, None, generator, _ITERATIONS, cpu, "Clustering rows")
    of_row, _ = assign(points.unsqueeze(1), centroids, with_distances=False)
    return _in_order(of_row.squeeze(1).long(), centroids[0], width)


def choose_clusters(clusters: Clusters, points: Tensor, weights: Tensor, price: float) -> Clusters | None:
    """Let rows choose among the centroids by error and by codeword length; unused centroids are dropped.

    None where all rows end up with the same centroid: then the mean of their tier says as much.

    Args:
        clusters: to start from.
        points: the rows' first coordinates (V, n).
        weights: what the squared error of a row costs (V,).
        price: what a bit costs.
    """
    weights = weights.float()
    # What a bit costs beside an error of 1: rows that weigh nothing take the shortest codeword.
    prices = price / (2 * weights.clamp(min=_LEAST_WEIGHT * float(weights.max())))
    of_row, centroids = clusters.of_row, clusters.points[:, : points.shape[1]].float()
    for _ in range(_ROUNDS):
        sizes = torch.bincount(of_row, minlength=len(centroids)).float()
        kept = sizes > 0
        centroids, sizes = centroids[kept], sizes[kept]
        before, of_row = of_row, _cheapest(points, prices, centroids, (sizes.sum() / sizes).log2())
        mass = torch.zeros(len(centroids)).index_add(0, of_row, weights)
        sums = torch.zeros_like(centroids).index_add(0, of_row, points * weights[:, None])
        centroids = torch.where(mass[:, None] > 0, sums / mass.clamp(min=1e-30)[:, None], centroids)
        if int((of_row != before).sum()) <= _SETTLED * len(of_row):
            break
    return _in_order(of_row, centroids, clusters.points.shape[1])


def _cheapest(points: Tensor, prices: Tensor, centroids: Tensor, lengths: Tensor) -> Tensor:
    """Return the centroid (V,) of least error and codeword length; one product gives both, which saves three passes."""
    half_norms = centroids.square().sum(1, keepdim=True) / 2
    columns = torch.cat([-centroids, half_norms, lengths[:, None]], dim=1).T.contiguous()
    step = max(1, _DISTANCES_PER_CHUNK // len(centroids))
    chosen = torch.empty(len(points), dtype=torch.int64)
    for rows, price, out in zip(points.split(step), prices.split(step), chosen.split(step), strict=True):
        costs = torch.cat([rows, torch.ones_like(price)[:, None], price[:, None]], dim=1) @ columns
        # Four times as fast as `argmin`.
        out.copy_(costs.min(1).indices)
    return chosen


def first_coordinates(table: Tensor, axes: PrincipalAxes) -> Tensor:
    """Return the coordinates (V, n) of rows (V, D) in the first axes, which are all that clusters see; float32."""
    mean, first = axes.mean.float(), axes.project[:, :_AXES].float()
    found = torch.empty(len(table), first.shape[1])
    for rows, out in zip(table.split(_CHUNK), found.split(_CHUNK), strict=True):
        torch.mm(rows.float() - mean, first, out=out)
    return found


def _in_order(of_row: Tensor, centroids: Tensor, width: int) -> Clusters | None:
    """Put the centroids of most rows first, and leave out those of none. One alone says nothing."""
    sizes = torch.bincount(of_row, minlength=len(centroids))
    order = sizes.argsort(descending=True, stable=True)
    order = order[: int((sizes > 0).sum())]
    if len(order) < 2:
        return None
    ranks = torch.empty(len(centroids), dtype=torch.int64)
    ranks[order] = torch.arange(len(order))
    points = torch.nn.functional.pad(centroids[order].double(), (0, width - centroids.shape[1]))
    return Clusters(ranks[of_row], points)
