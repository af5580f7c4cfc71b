"""Where the bits of a rotated code go: rows share a rate by tiers, axes share it by reverse water-filling.

Rows are sorted by what their error would cost (weight times energy) and cut into tiers. All rows of a tier spend the
same bits on the same axes, so every row decodes alone; cuts and bits are chosen together at one price per bit.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ..modeling.errors import CompactConfigError
from ..modeling.prefix_codes import named_bytes
from ..modeling.tiered import basis_entries
from .name_lengths import name_lengths
from .trellis import MAX_BITS, MIN_WINDOW_BITS, expected_distortion

_BINS = 20
_PRICES = 22


@dataclasses.dataclass(frozen=True)
class TierPlan:
    """How many bits each tier of rows spends on each axis, and each axis on its basis vector.

    Attributes:
        sizes: rows in each tier, the costliest rows first; they add up to the rows of the table.
        bits: of each tier on each axis (r,); 0 where the tier leaves the axis at its mean.
        basis_bits: per entry of each basis vector (r,), falling.
        num_bytes: everything stored: codes, tier tags, bit tables, gains, means, basis.
        distortion: expected weighted error, relative to that of coding nothing.
        clusters: how many centres there are.
        cluster_bits: of a centre on each axis (r,).
        cluster_tag_bytes: of the names of all rows' clusters.
        price: what a bit costs, in weighted squared error.
    """

    sizes: tuple[int, ...]
    bits: tuple[tuple[int, ...], ...]
    basis_bits: tuple[int, ...]
    num_bytes: int
    distortion: float
    clusters: int = 0
    cluster_bits: tuple[int, ...] = ()
    cluster_tag_bytes: int = 0
    price: float = 0.0


@dataclasses.dataclass(frozen=True)
class CentreStatistics:
    """What planning needs to know of the centres of clusters.

    Attributes:
        count: K.
        second: weighted squared coordinates of the rows' centres, summed over the rows (D,).
        tag_bytes: of the names of all rows' clusters.
    """

    count: int
    second: Tensor
    tag_bytes: int


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
    table: Tensor, weights: Tensor, order: Tensor, mean: Tensor, axes: Tensor, bins: int = _BINS
) -> RowStatistics:
    """Collect what planning needs to know of a table (V, D), reading it in chunks.

    Args:
        table: rows (V, D).
        weights: of the rows (V,).
        order: rows by falling cost (V,).
        mean: subtracted from the rows (D,).
        axes: projects centred rows to their coordinates (D, D).
        bins: about how many places a tier may end at.
    """
    rows = len(order)
    ends = _bin_ends(rows, bins)
    empty = torch.zeros(axes.shape[1], dtype=torch.float64)
    mass, first, second = [empty.sum()], [empty], [empty]
    for begin, end in zip(ends, ends[1:], strict=False):
        sums = [torch.zeros_like(mass[0]), torch.zeros_like(first[0]), torch.zeros_like(second[0])]
        for ids in order[begin:end].split(8192):
            weight = weights[ids].double()
            points = (table[ids].double() - mean) @ axes
            sums[0] += weight.sum()
            sums[1] += weight @ points
            sums[2] += weight @ points.square()
        for cumulated, total in zip((mass, first, second), sums, strict=True):
            cumulated.append(cumulated[-1] + total)
    return RowStatistics(tuple(ends), torch.stack(mass), torch.stack(first), torch.stack(second))


def plan_tiers(
    statistics: RowStatistics,
    max_bytes: int,
    tiers: int,
    float_bytes: int = 2,
    centres: CentreStatistics | None = None,
) -> TierPlan:
    """Find the cuts and bits with the least expected error within a budget.

    Args:
        statistics: of the table, or of a sample of its rows; less their centres, where there are clusters.
        max_bytes: the budget.
        tiers: at most this many.
        float_bytes: bytes of a stored gain or mean.
        centres: of clusters.
    """
    tiers = min(tiers, len(statistics.ends) - 1)
    groups = _Groups(statistics, tiers, float_bytes, centres)
    best: TierPlan | None = None
    smallest = 0
    low, high = -40.0, 6.0
    for _ in range(_PRICES):
        price = (low + high) / 2
        plan = groups.plan(math.exp(price) * groups.scale)
        if plan.num_bytes > max_bytes:
            low, smallest = price, plan.num_bytes
            continue
        high = price
        if best is None or plan.distortion < best.distortion:
            best = plan
    if best is None:
        raise CompactConfigError(
            f"a budget of {max_bytes:,} bytes is too small for {tiers} tier(s): the smallest plan takes {smallest:,}."
        )
    filled = _fill(best, max_bytes)
    dim = statistics.second.shape[1]
    # No names are shorter than those of the rows as they lie now.
    return dataclasses.replace(filled, num_bytes=count_bytes(filled, dim, float_bytes))


class _Groups:
    """Every run of bins that could be one tier, with what it would cost at a price."""

    def __init__(
        self, statistics: RowStatistics, tiers: int, float_bytes: int, centres: CentreStatistics | None
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
        self.clusters = 0 if centres is None else centres.count
        self.cluster_tag_bytes = 0 if centres is None else centres.tag_bytes
        self.centres = torch.zeros(1, within.shape[1]).double() if centres is None else centres.second[None]
        total = total + self.centres.sum()
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
        centre_bits = self._bits(torch.tensor([float(self.clusters)]), self.centres, price)[0]
        errors = (self.variances * self.left[bits]).sum(1)
        costs = errors + price * (self.rows * bits.sum(1) + 8 * self.float_bytes * (bits > 0).sum(1))
        chosen = self._cut(costs)
        dim = self.variances.shape[1]
        used = (self.variances[chosen] * (bits[chosen] > 0)).sum(0) + self.centres[0] * (centre_bits > 0)
        coded = (bits[chosen] > 0).any(0) | (centre_bits > 0)
        axes = int(coded.nonzero().max()) + 1 if coded.any() else 0
        used = used[:axes]
        errors_of_centres = (self.centres[0] * self.left[centre_bits]).sum()
        basis_cost = used[:, None] * self.left + price * dim * counts
        # A basis vector of one bit an entry would turn its axis too far to count on the expected error.
        basis_bits = basis_cost[:, 2:].argmin(1) + 2
        basis_bits = basis_bits.flip(0).cummax(0).values.flip(0) if axes else basis_bits
        sizes = tuple(self.ends[int(self.end[run])] - self.ends[int(self.begin[run])] for run in chosen)
        plan = TierPlan(
            sizes=sizes,
            bits=tuple(tuple(row) for row in bits[chosen, :axes].tolist()),
            basis_bits=tuple(basis_bits.tolist()),
            num_bytes=0,
            distortion=float(errors[chosen].sum() + errors_of_centres + (used * self.left[basis_bits]).sum())
            / self.total,
            clusters=self.clusters,
            cluster_bits=tuple(centre_bits[:axes].tolist()) if self.clusters else (),
            cluster_tag_bytes=self.cluster_tag_bytes,
            price=price,
        )
        return dataclasses.replace(plan, num_bytes=count_bytes(plan, dim, self.float_bytes))

    def _bits(self, rows: Tensor, variances: Tensor, price: float) -> Tensor:
        """Return the bits (G, D) of groups of so many rows (G,) on axes of so much variance (G, D)."""
        counts = torch.arange(MAX_BITS + 1, dtype=torch.float64)
        spent = price * (rows[:, None] * counts + 8 * self.float_bytes * (counts > 0))
        bits = (variances[:, :, None] * self.left + spent[:, None]).argmin(2)
        return _whole_bytes(bits, variances, self.left)

    def _cut(self, costs: Tensor) -> list[int]:
        """Cover all bins with at most `tiers` runs of least cost; returns the runs in order."""
        bins = len(self.ends) - 1
        table = {(int(b), int(e)): run for run, (b, e) in enumerate(zip(self.begin, self.end, strict=True))}
        price = costs.tolist()
        best: list[dict[int, tuple[float, list[int]]]] = [{0: (0.0, [])}]
        for _ in range(self.tiers):
            reached: dict[int, tuple[float, list[int]]] = {}
            for begin, (cost, runs) in best[-1].items():
                for end in range(begin + 1, bins + 1):
                    run = table.get((begin, end))
                    if run is not None and cost + price[run] < reached.get(end, (math.inf, []))[0]:
                        reached[end] = (cost + price[run], [*runs, run])
            best.append(reached)
        return min((step[bins] for step in best if bins in step), key=lambda found: found[0])[1]


def count_bytes(plan: TierPlan, dim: int, float_bytes: int) -> int:
    """Return everything that a plan stores: see `TierPlan.num_bytes`."""
    codes = sum(size * sum(bits) // 8 for size, bits in zip(plan.sizes, plan.bits, strict=True))
    tags = named_bytes(plan.sizes, lengths) if (lengths := name_lengths(plan.sizes)) else 0
    # Of each tier on each axis, and of each axis.
    gains = float_bytes * len(plan.basis_bits) * (len(plan.sizes) + 1)
    tables = len(plan.basis_bits) * (len(plan.sizes) + 1)
    basis = sum(basis_entries(dim, count) * count // 8 for count in plan.basis_bits)
    clusters = 0
    if plan.clusters:
        clusters = plan.clusters * sum(plan.cluster_bits) // 8 + (float_bytes + 1) * len(plan.basis_bits)
        clusters += plan.cluster_tag_bytes
    return codes + tags + gains + tables + basis + clusters + float_bytes * dim * len(plan.sizes)


def _bin_ends(rows: int, bins: int) -> list[int]:
    """Return where tiers may end: narrow bins at both ends of the order, wide ones between."""
    smallest = min(16, rows)
    head = torch.logspace(math.log10(smallest), math.log10(rows), max(2, bins * 3 // 4)).long()
    tail = rows - torch.logspace(math.log10(smallest), math.log10(max(1, rows / 2)), max(1, bins // 4)).long()
    return sorted({0, rows, *head.tolist(), *tail.tolist()})


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
        places = torch.arange(bits.shape[1]).expand_as(bits)
        raised = torch.zeros_like(bits).scatter(1, gain.argsort(1, descending=True), places)
        lowered = torch.zeros_like(bits).scatter(1, loss.argsort(1), places)
        up = (raised < add[:, None]) & (bits < MAX_BITS)
        bits = bits + up.long() - ((lowered < take[:, None]) & (bits > 0)).long()
    return torch.where((bits.sum(1) % 8 == 0)[:, None], bits, 0)


def _fill(plan: TierPlan, max_bytes: int) -> TierPlan:
    """Spend what is left of the budget by moving rows to the tier before theirs."""
    sizes, names = list(plan.sizes), name_lengths(plan.sizes)
    spare = 8 * (max_bytes - plan.num_bytes)
    for tier in range(len(sizes) - 1):
        step = sum(plan.bits[tier]) - sum(plan.bits[tier + 1]) + names[tier] - names[tier + 1]
        if step > 0:
            moved = min(sizes[tier + 1] - 1, spare // step)
            sizes[tier], sizes[tier + 1] = sizes[tier] + moved, sizes[tier + 1] - moved
            spare -= moved * step
    return dataclasses.replace(plan, sizes=tuple(sizes))
