"""Where bits go: rows share a rate by tiers, at one price per bit. What a bit buys is told by a method's cost model.

Rows are sorted by what their error would cost (weight times energy) and cut into tiers. A cost model makes the best
plan at a price; the lowest price whose plan fits into the budget is found by bisection, and what is left of the budget
moves rows to better tiers. `tier_plan` (trellis codes) and `block_plan` (product codes) are the two cost models.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .principal_axes import PrincipalAxes
from .reproducible import product_over_rows, total

_BINS = 20
# So many fix the variances of a bin to a hundredth.
_ROWS_PER_BIN = 16384
_CHUNK = 8192
# The price of a bit is searched for between e^-40 and e^6 of the mean error of a row: 22 halvings of the logarithm
# leave it within a hundred-thousandth.
_LOG_PRICES = (-40.0, 6.0)
_HALVINGS = 22

_Plan = TypeVar("_Plan")


@dataclasses.dataclass(frozen=True)
class RowStatistics:
    """Sums over the rows of each bin of a table whose rows are sorted by cost.

    Attributes:
        ends: how many rows lie before the end of each bin, with a 0 in front (bins + 1,).
        mass: cumulated weights (bins + 1,).
        first: cumulated weighted coordinates (bins + 1, D).
        second: cumulated weighted squared coordinates (bins + 1, D).
    """

    ends: tuple[int, ...]
    mass: Tensor
    first: Tensor
    second: Tensor


def row_statistics(
    read: Callable[[Tensor], Tensor], weights: Tensor, order: Tensor, axes: PrincipalAxes
) -> RowStatistics:
    """Collect what planning needs to know of the rows of a table.

    Args:
        read: gives the rows (n, D) of ids (n,).
        weights: of the rows (V,).
        order: rows by falling cost (V,).
        axes: in which rows are coded.
    """
    ends = _bin_ends(len(order))
    mean, project = axes.mean.float(), axes.project.float()
    empty = torch.zeros(project.shape[1], dtype=torch.float64)
    mass, first, second = [empty.sum()], [empty], [empty]
    for begin, end in zip(ends, ends[1:], strict=False):
        # Rows that lie at even distances in the order stand for all of a large bin.
        step = -(-(end - begin) // _ROWS_PER_BIN)
        ids = order[begin:end:step]
        sums = [torch.zeros_like(mass[0]), torch.zeros_like(first[0]), torch.zeros_like(second[0])]
        for chunk in ids.split(_CHUNK):
            weight = weights[chunk].double() * ((end - begin) / len(ids))
            points = ((read(chunk).float() - mean) @ project).double()
            sums[0] += weight.sum()
            sums[1] += product_over_rows(weight, points)
            sums[2] += product_over_rows(weight, points.square())
        for cumulated, summed in zip((mass, first, second), sums, strict=True):
            cumulated.append(cumulated[-1] + summed)
    return RowStatistics(tuple(ends), torch.stack(mass), torch.stack(first), torch.stack(second))


def expected_error(sizes: Sequence[int], left: Sequence[float], order: Tensor, energies: Tensor) -> float:
    """Return what is left of the energies of rows (V,), of which each tier leaves a share.

    Args:
        sizes: rows in each tier.
        left: the share that each tier leaves.
        order: rows, the first tier's first (V,).
        energies: weighted (V,).
    """
    tiers = energies[order].split(list(sizes))
    return sum(float(total(tier)) * share for tier, share in zip(tiers, left, strict=True))


def _bin_ends(rows: int) -> list[int]:
    """Return where tiers may end: narrow bins at both ends of the order, wide ones between."""
    smallest = min(16, rows)
    head = torch.logspace(math.log10(smallest), math.log10(rows), max(2, _BINS * 3 // 4)).long()
    tail = rows - torch.logspace(math.log10(smallest), math.log10(max(1, rows / 2)), max(1, _BINS // 4)).long()
    return sorted({0, rows, *head.tolist(), *tail.tolist()})


@dataclasses.dataclass(frozen=True)
class PricedPlans(Generic[_Plan]):
    """What a search over prices found.

    Attributes:
        within: plans that fit into the budget, by falling price.
        beyond: the one of the highest price that does not fit, if any was met.
        needed: bytes of the smallest plan that was met.
    """

    within: list[_Plan]
    beyond: _Plan | None
    needed: int


def search_prices(
    plan_at: Callable[[float], _Plan], count_bytes: Callable[[_Plan], int], max_bytes: int, scale: float
) -> PricedPlans[_Plan]:
    """Bisect the price of a bit; `scale` is the mean error of a row when nothing is coded."""
    low, high = _LOG_PRICES
    within: list[_Plan] = []
    beyond: _Plan | None = None
    needed = 0
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        plan = plan_at(math.exp(price) * scale)
        taken = count_bytes(plan)
        if taken > max_bytes:
            low, beyond, needed = price, plan, taken
        else:
            high = price
            within.append(plan)
    return PricedPlans(within, beyond, needed)


def cut_into_runs(costs: Sequence[Sequence[float]], most: int) -> list[int]:
    """Cover all bins with at most so many runs of least total cost; returns where runs end, with a 0 in front.

    Args:
        costs: of the run from bin i to before bin j, at [i][j] (bins, bins + 1).
        most: how many runs.
    """
    bins = len(costs)
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}
    found: tuple[float, list[int]] = (math.inf, [])
    for _ in range(min(most, bins)):
        reached: dict[int, tuple[float, list[int]]] = {}
        for begin, (cost, ends) in best.items():
            for end in range(begin + 1, bins + 1):
                total = cost + costs[begin][end]
                if total < reached.get(end, (math.inf, []))[0]:
                    reached[end] = (total, [*ends, end])
        best = reached
        found = min(found, best.get(bins, found), key=lambda option: option[0])
    return found[1]


def fill_tiers(rows: Sequence[int], row_bits: Sequence[int], spare_bits: int) -> tuple[int, ...]:
    """Spend what is left of a budget by moving rows to the tier before theirs; returns the rows of each tier."""
    filled = list(rows)
    for tier in range(len(filled) - 1):
        step = row_bits[tier] - row_bits[tier + 1]
        if step > 0:
            moved = max(0, min(filled[tier + 1] - 1, spare_bits // step))
            filled[tier], filled[tier + 1] = filled[tier] + moved, filled[tier + 1] - moved
            spare_bits -= moved * step
    return tuple(filled)


def code_lengths(counts: Sequence[int]) -> tuple[int, ...]:
    """Return the bits of Huffman's codeword of each symbol, which occur so often; nothing for one symbol alone."""
    if len(counts) < 2:
        return ()
    heap = [(count, symbol) for symbol, count in enumerate(counts)]
    heapq.heapify(heap)
    parents = [0] * (2 * len(counts) - 1)
    for joined in range(len(counts), len(parents)):
        (one, first), (other, second) = heapq.heappop(heap), heapq.heappop(heap)
        parents[first] = parents[second] = joined
        heapq.heappush(heap, (one + other, joined))
    depths = [0] * len(parents)
    for node in range(len(parents) - 2, -1, -1):
        depths[node] = depths[parents[node]] + 1
    return tuple(depths[: len(counts)])
