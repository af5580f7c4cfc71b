"""What a bit buys in trellis codes: axes share the bits of a tier by reverse water-filling.

All rows of a tier spend the same bits on the same axes, so every row decodes alone; cuts and bits are chosen together
at one price per bit (see `allocation`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..modeling.errors import CompactConfigError
from .allocation import RowStatistics, code_lengths, cut_into_runs, fill_tiers, search_prices
from .trellis import MAX_BITS, MIN_WINDOW_BITS, expected_distortion


@dataclasses.dataclass(frozen=True)
class TierPlan:
    """How many bits each tier of rows spends on each axis, and each axis on its basis vector.

    Attributes:
        sizes: rows in each tier, the costliest rows first; they add up to the rows of the table.
        bits: of each tier on each axis (r,); 0 where the tier leaves the axis at its mean.
        basis_bits: per entry of each basis vector (r,), falling.
        distortion: expected weighted error, relative to that of coding nothing.
        left: the same of each tier, relative to its own rows, less their centroids.
        centroids_left: the part of `distortion` that coding the centroids leaves.
        cluster_bits: of a centroid on each axis (r,); empty without clusters.
        price: what a bit costs, in weighted squared error.
    """

    sizes: tuple[int, ...]
    bits: tuple[tuple[int, ...], ...]
    basis_bits: tuple[int, ...]
    distortion: float
    left: tuple[float, ...]
    centroids_left: float = 0.0
    cluster_bits: tuple[int, ...] = ()
    price: float = 0.0


@dataclasses.dataclass(frozen=True)
class CentroidStatistics:
    """What planning needs to know of the centroids of clusters.

    Attributes:
        count: K.
        second: weighted squared coordinates of the rows' centroids, summed over the rows (D,).
    """

    count: int
    second: Tensor


def plan_tiers(
    statistics: RowStatistics,
    max_bytes: int,
    tiers: int,
    float_bytes: int,
    count_bytes: Callable[[TierPlan], int],
    centroids: CentroidStatistics | None = None,
) -> TierPlan:
    """Find the cuts and bits with the least expected error within a budget.

    Args:
        statistics: of the table; less their centroids, where there are clusters.
        max_bytes: the budget.
        tiers: at most this many.
        float_bytes: bytes of a stored gain or mean.
        count_bytes: of all that a plan stores.
        centroids: of clusters.
    """
    groups = _Groups(statistics, min(tiers, len(statistics.ends) - 1), float_bytes, centroids)
    found = search_prices(groups.plan, count_bytes, max_bytes, groups.scale)
    if not found.within:
        raise CompactConfigError(
            f"`max_bytes` is {max_bytes:,}, but the smallest plan of {groups.tiers} tier(s) takes {found.needed:,}."
        )
    best = min(found.within, key=lambda plan: plan.distortion)
    lengths = code_lengths(best.sizes) or (0,)
    row_bits = [sum(bits) + length for bits, length in zip(best.bits, lengths, strict=True)]
    spare = 8 * (max_bytes - count_bytes(best))
    return dataclasses.replace(best, sizes=fill_tiers(best.sizes, row_bits, spare))


class _Groups:
    """Every run of bins that could be one tier, with what it would cost at a price."""

    def __init__(
        self, statistics: RowStatistics, tiers: int, float_bytes: int, centroids: CentroidStatistics | None
    ) -> None:
        """Collect the variances within each run."""
        ends = torch.tensor(statistics.ends)
        bins = len(ends) - 1
        self.begin, self.end = torch.triu_indices(bins, bins).add(torch.tensor([[0], [1]]))
        if tiers == 1:
            self.begin, self.end = torch.tensor([0]), torch.tensor([bins])
        mass, first, second = (
            sums[self.end] - sums[self.begin] for sums in (statistics.mass, statistics.first, statistics.second)
        )
        within = second - first.square() / mass.clamp(min=1e-30)[:, None]
        self.variances = within.clamp(min=0.0)
        self.rows = (ends[self.end] - ends[self.begin]).double()
        total = (statistics.second[-1] - statistics.first[-1].square() / statistics.mass[-1]).sum()
        # Like one more tier, of few rows that each stand for many.
        self.clusters = 0 if centroids is None else centroids.count
        self.centroids = torch.zeros(1, within.shape[1]).double() if centroids is None else centroids.second[None]
        total = total + self.centroids.sum()
        self.total = max(float(total), 1e-300)
        self.scale = self.total / max(1, statistics.ends[-1])
        self.ends = statistics.ends
        self.tiers = tiers
        self.float_bytes = float_bytes
        self.left = expected_distortion()

    def plan(self, price: float) -> TierPlan:
        """Return the best plan at a price per bit."""
        counts = torch.arange(MAX_BITS + 1, dtype=torch.float64)
        bits = self._bits(self.rows, self.variances, price)
        centroid_bits = self._bits(torch.tensor([float(self.clusters)]), self.centroids, price)[0]
        errors = (self.variances * self.left[bits]).sum(1)
        costs = errors + price * (self.rows * bits.sum(1) + 8 * self.float_bytes * (bits > 0).sum(1))
        chosen = self._cut(costs)
        dim = self.variances.shape[1]
        used = (self.variances[chosen] * (bits[chosen] > 0)).sum(0) + self.centroids[0] * (centroid_bits > 0)
        coded = (bits[chosen] > 0).any(0) | (centroid_bits > 0)
        axes = int(coded.nonzero().max()) + 1 if coded.any() else 0
        used = used[:axes]
        errors_of_centroids = (self.centroids[0] * self.left[centroid_bits]).sum()
        basis_cost = used[:, None] * self.left + price * dim * counts
        # A basis vector of one bit an entry would turn its axis too far to count on the expected error.
        basis_bits = basis_cost[:, 2:].argmin(1) + 2
        basis_bits = basis_bits.flip(0).cummax(0).values.flip(0) if axes else basis_bits
        left = errors[chosen].sum() + errors_of_centroids + (used * self.left[basis_bits]).sum()
        coded_energy = self.variances[chosen, :axes] * (bits[chosen, :axes] > 0)
        errors_of_tiers = errors[chosen] + coded_energy @ self.left[basis_bits]
        shares = errors_of_tiers / self.variances[chosen].sum(1).clamp(min=1e-300)
        return TierPlan(
            sizes=tuple(self.ends[int(self.end[run])] - self.ends[int(self.begin[run])] for run in chosen),
            bits=tuple(tuple(row) for row in bits[chosen, :axes].tolist()),
            basis_bits=tuple(basis_bits.tolist()),
            distortion=float(left) / self.total,
            left=tuple(shares.clamp(max=1.0).tolist()),
            centroids_left=float(errors_of_centroids) / self.total,
            cluster_bits=tuple(centroid_bits[:axes].tolist()) if self.clusters else (),
            price=price,
        )

    def _bits(self, rows: Tensor, variances: Tensor, price: float) -> Tensor:
        """Return the bits (G, D) of groups of so many rows (G,) on axes of so much variance (G, D)."""
        counts = torch.arange(MAX_BITS + 1, dtype=torch.float64)
        spent = price * (rows[:, None] * counts + 8 * self.float_bytes * (counts > 0))
        bits = (variances[:, :, None] * self.left + spent[:, None]).argmin(2)
        return _whole_bytes(bits, variances, self.left)

    def _cut(self, costs: Tensor) -> list[int]:
        """Cover all bins with at most `tiers` runs of least cost; returns the runs in order."""
        bins = len(self.ends) - 1
        run_of = {(int(b), int(e)): run for run, (b, e) in enumerate(zip(self.begin, self.end, strict=True))}
        price = [[math.inf] * (bins + 1) for _ in range(bins)]
        for (begin, end), run in run_of.items():
            price[begin][end] = float(costs[run])
        ends = cut_into_runs(price, self.tiers)
        return [run_of[begin, end] for begin, end in zip(ends, ends[1:], strict=False)]


def _whole_bytes(bits: Tensor, variances: Tensor, left: Tensor) -> Tensor:
    """Add or take the bits (G, D) that matter most or least until every row fills whole bytes."""
    for _ in range(MIN_WINDOW_BITS):
        total = bits.sum(1)
        open_axes = (bits < MAX_BITS).sum(1)
        take = torch.where((total % 8 < 4) & (total >= 8) & (total % 8 <= (bits > 0).sum(1)), total % 8, 0)
        add = torch.where((take > 0) | (total == 0), 0, -total % 8)
        if not (add + take).any():
            return bits
        # A table with very few axes cannot hold a whole byte on them: such rows stay at their mean.
        bits = bits.masked_fill((add > 0)[:, None] & (open_axes == 0)[:, None], 0)
        gain = variances * (left[bits] - left[(bits + 1).clamp(max=MAX_BITS)])
        loss = variances * (left[(bits - 1).clamp(min=0)] - left[bits])
        gain, loss = gain.masked_fill(bits == MAX_BITS, -1.0), loss.masked_fill(bits == 0, math.inf)
        ranks = torch.arange(bits.shape[1]).expand_as(bits)
        raised = torch.zeros_like(bits).scatter(1, gain.argsort(1, descending=True), ranks)
        lowered = torch.zeros_like(bits).scatter(1, loss.argsort(1), ranks)
        up = (raised < add[:, None]) & (bits < MAX_BITS)
        bits = bits + up.long() - ((lowered < take[:, None]) & (bits > 0)).long()
    return torch.where((bits.sum(1) % 8 == 0)[:, None], bits, 0)
