"""Where the bytes of block codes go: how axes are cut into blocks, and how many blocks each tier of rows has.

A code a block takes a share of the error away that reverse water-filling within the block tells. Blocks and tiers are
found at one price per bit (see `allocation`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..modeling.errors import CompactConfigError
from .allocation import RowStatistics, code_lengths, cut_into_runs, fill_tiers, search_prices
from .trellis import expected_distortion

# k-means takes away about what an ideal code does with so much of its bits.
_WORTH_OF_A_BIT = 7 / 8
_WIDEST = 128
_LEAST_BASIS_BITS = 2
_PLAIN_BASIS_BITS = 16


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """What parts of a block code take, beside a byte a code.

    Attributes:
        entries: of each codebook.
        value_bytes: of a value in a codebook.
        axis_bytes: of each axis, beside its values.
        float_bytes: of a float.
        coded_basis: whether axes are stored as trellis codes.
    """

    entries: int
    value_bytes: int
    axis_bytes: int
    float_bytes: int
    coded_basis: bool


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """How a table is cut.

    Attributes:
        widths: axes of each block; together the first axes.
        rows: in each tier, the costliest first.
        blocks: that rows of each tier have codes for: the first ones.
        basis_bits: per entry of each axis (r,); empty where axes are stored as they are.
        left: about the weighted error that the codes of each tier leave, relative to that of coding nothing.
    """

    widths: tuple[int, ...]
    rows: tuple[int, ...]
    blocks: tuple[int, ...]
    basis_bits: tuple[int, ...]
    left: tuple[float, ...] = ()


def plan_blocks(
    statistics: RowStatistics, max_bytes: int, tiers: int, sizes: BlockSizes, count_bytes: Callable[[BlockPlan], int]
) -> BlockPlan:
    """Find the blocks and tiers with the least expected error within a budget.

    Args:
        statistics: of the rows by falling cost, on the axes by falling variance.
        max_bytes: the budget.
        tiers: at most this many.
        sizes: what is stored.
        count_bytes: of all that a plan stores.
    """
    planner = _Planner(statistics, tiers, sizes)
    found = search_prices(planner.plan, count_bytes, max_bytes, planner.scale)
    if not found.within:
        raise CompactConfigError(f"`max_bytes` is {max_bytes:,}, but the smallest plan takes {found.needed:,} bytes.")
    within = found.within[-1]
    lengths = code_lengths(within.rows) or (0,)
    row_bits = [8 * count + length for count, length in zip(within.blocks, lengths, strict=True)]
    spare = 8 * (max_bytes - count_bytes(within))
    within = dataclasses.replace(within, rows=fill_tiers(within.rows, row_bits, spare))
    plans = [within]
    if found.beyond is not None and len(found.beyond.rows) < tiers:
        # Where one more block is too much for all rows, some rows can have it: a tier is left for that.
        split = planner.split(found.beyond, max_bytes, count_bytes)
        plans = [within] if split is None else [split, within]
    # Of equals the split one, which spends more.
    best = max(plans, key=lambda plan: sum(gained for gained, _ in planner.gained(plan)))
    left = (1.0 - gained / max(energy, 1e-300) for gained, energy in planner.gained(best))
    return dataclasses.replace(best, left=tuple(left))


class _Planner:
    """What blocks of any width take off the error of each bin of rows, and the best choice at a price."""

    def __init__(self, statistics: RowStatistics, tiers: int, sizes: BlockSizes) -> None:
        """Collect the variances within each bin."""
        ends = torch.tensor(statistics.ends)
        picked = torch.tensor([0, len(ends) - 1]) if tiers == 1 else torch.arange(len(ends))
        mass, first, second = (
            sums[picked].diff(dim=0) for sums in (statistics.mass, statistics.first, statistics.second)
        )
        self.variances = (second - first.square() / mass.clamp(min=1e-30)[:, None]).clamp(min=0.0)
        self.ends = ends[picked]
        self.rows = self.ends.diff().double()
        self.tiers, self.sizes = tiers, sizes
        self.width = self.variances.shape[1]
        self.widest = min(_WIDEST, self.width)
        self.scale = max(float(self.variances.sum()), 1e-300) / float(self.rows.sum())
        self.gains = code_gains(self.variances, self.widest, math.log2(sizes.entries))

    def plan(self, price: float) -> BlockPlan:
        """Return the best plan at a price per bit."""
        widths = self._cut_axes(price)
        starts = torch.tensor([0, *widths]).cumsum(0)[:-1]
        gains = self.gains[:, starts, torch.tensor(widths, dtype=torch.int64) - 1]
        ends, blocks = self._cut_rows(gains - price * 8 * self.rows[:, None], price)
        rank = sum(widths[: max(blocks)])
        taken = torch.zeros(rank, dtype=torch.float64)
        for begin, end, count in zip(ends, ends[1:], blocks, strict=False):
            axes = sum(widths[:count])
            taken[:axes] += self.variances[begin:end, :axes].sum(0)
        bits = self._basis_bits(taken, price)
        return BlockPlan(
            widths=tuple(widths[: max(blocks)]),
            rows=tuple(self.ends[ends].diff().tolist()),
            blocks=tuple(blocks),
            basis_bits=tuple(bits.tolist()) if self.sizes.coded_basis else (),
        )

    def gained(self, plan: BlockPlan) -> list[tuple[float, float]]:
        """Return about what the codes of each tier take off the error, and of how much; tiers may end within bins."""
        starts = torch.tensor([0, *plan.widths]).cumsum(0)[:-1]
        gains = self.gains[:, starts, torch.tensor(plan.widths, dtype=torch.int64) - 1]
        found, begin = [], 0
        for rows, blocks in zip(plan.rows, plan.blocks, strict=True):
            inside = self.ends.clamp(min=begin, max=begin + rows).diff()
            parts = (gains[:, :blocks].sum(1), self.variances.sum(1))
            gained, energy = (float((part * inside / self.rows).sum()) for part in parts)
            found.append((gained, energy))
            begin += rows
        return found

    def split(self, plan: BlockPlan, max_bytes: int, count_bytes: Callable[[BlockPlan], int]) -> BlockPlan | None:
        """Take codes of the cheapest rows of the largest tier until a plan fits into the budget, if that can be."""
        tier = max(range(len(plan.rows)), key=lambda index: plan.rows[index])

        def taking(moved: int, step: int) -> BlockPlan:
            rows, blocks = list(plan.rows), list(plan.blocks)
            rows[tier : tier + 1] = [rows[tier] - moved, moved]
            blocks[tier : tier + 1] = [blocks[tier], blocks[tier] - step]
            return dataclasses.replace(plan, rows=tuple(rows), blocks=tuple(blocks))

        if plan.rows[tier] < 2:
            return None
        # Half of the tier's rows or one row: how long the tiers' codewords are depends on it a little.
        for guess in (plan.rows[tier] // 2, 1):
            excess = count_bytes(taking(guess, 0)) - max_bytes
            step = -(-excess // (plan.rows[tier] - 1))
            if not 0 < step <= plan.blocks[tier]:
                continue
            found = taking(min(plan.rows[tier] - 1, -(-excess // step)), step)
            if count_bytes(found) <= max_bytes:
                return found
        return None

    def _basis_bits(self, variances: Tensor, price: float) -> Tensor:
        """Return the bits an entry that pay for axes of some variance (r,)."""
        if not self.sizes.coded_basis:
            return torch.full(variances.shape, _PLAIN_BASIS_BITS)
        left = expected_distortion()
        counts = torch.arange(_LEAST_BASIS_BITS, len(left))
        return (variances[:, None] * left[counts] + price * self.width * counts).argmin(1) + _LEAST_BASIS_BITS

    def _cut_axes(self, price: float) -> list[int]:
        """Return the widths of blocks that together gain most, after all that they cost."""
        total = self.variances.sum(0)
        bits = self._basis_bits(total, price)
        stored = 8 * (self.sizes.entries * self.sizes.value_bytes + self.sizes.axis_bytes) + self.width * bits
        axis_cost = price * stored
        if self.sizes.coded_basis:
            axis_cost = axis_cost + total * expected_distortion()[bits]
        # Every bin of rows pays only for the blocks that serve it.
        value = (self.gains - price * 8 * self.rows[:, None, None]).clamp(min=0.0).sum(0)
        value -= _windows(axis_cost, self.widest, math.inf).cumsum(1)
        best = torch.full((self.width + 1,), -math.inf, dtype=torch.float64)
        best[0] = 0.0
        before = torch.zeros(self.width + 1, dtype=torch.int64)
        for start in range(self.width):
            last = min(self.widest, self.width - start)
            reached = best[start] + value[start, :last]
            better = reached > best[start + 1 : start + last + 1]
            best[start + 1 : start + last + 1] = torch.where(better, reached, best[start + 1 : start + last + 1])
            before[start + 1 : start + last + 1][better] = start
        ends = [int(best.argmax())]
        while ends[-1]:
            ends.append(int(before[ends[-1]]))
        return [end - start for end, start in zip(ends, ends[1:], strict=False)][::-1]

    def _cut_rows(self, values: Tensor, price: float) -> tuple[list[int], list[int]]:
        """Cut bins with values (bins, f) into runs, each with a number of first blocks; returns ends and numbers."""
        bins = len(values)
        # Over bins and over blocks: the difference of two rows is what a run makes of any number of blocks.
        summed = torch.cat([torch.zeros(bins, 1, dtype=torch.float64), values.cumsum(1)], dim=1)
        summed = torch.cat([torch.zeros(1, summed.shape[1], dtype=torch.float64), summed.cumsum(0)])
        gained, blocks = (summed[None] - summed[:, None]).max(2)
        tier_cost = price * 8 * self.sizes.float_bytes * self.width
        ends = cut_into_runs((tier_cost - gained)[:-1].tolist(), self.tiers)
        return ends, [int(blocks[begin, end]) for begin, end in zip(ends, ends[1:], strict=False)]


def code_gains(variances: Tensor, widest: int, bits: float) -> Tensor:
    """Return what a code takes off the error of each bin (bins, D) in axes i to i + w: (bins, D, widest), at w - 1.

    All bins share a codebook, so the bits of a code are spread over the axes as it suits their sum.
    """
    size = variances.shape[1]
    total = variances.sum(0).clamp(min=1e-12 * float(variances.sum()) / size + 1e-300)
    # Sorted, nearly as they are, so that the axes that get bits come first.
    falling = _windows(total, widest, 1e-300).cummin(1).values
    count = torch.arange(1, widest + 1)
    level = ((falling.log().cumsum(1) - 2 * math.log(2) * _WORTH_OF_A_BIT * bits) / count).exp()
    active = (falling > level).cumprod(1).sum(1, keepdim=True).clamp(min=1)
    beyond = torch.arange(size)[:, None] + count > size
    gains = []
    for row in variances:
        gained = _windows(row, widest, 0.0).cumsum(1) - level * _windows(row / total, widest, 0.0).cumsum(1)
        # Axes past the active ones get no bits and keep their variance.
        gained = torch.where(count <= active, gained, gained.gather(1, active - 1))
        gains.append(gained.masked_fill(beyond, 0.0).clamp(min=0.0))
    return torch.stack(gains)


def _windows(values: Tensor, widest: int, beyond: float) -> Tensor:
    """Return values i to i + widest of a list (D,) in row i (D, widest), filled up with `beyond`."""
    return torch.nn.functional.pad(values, (0, widest - 1), value=beyond).unfold(0, widest, 1)
