"""A table as trellis codes in rotated axes: fitted within a budget of bytes, any row decoded alone by gathers."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

from ..modeling.tiered import basis_entries
from . import trellis
from .clusters import Clusters, find_clusters, price_names
from .principal_axes import PrincipalAxes, mean_row, principal_axes, row_costs
from .tiers import TierPlan, plan_tiers, row_statistics

logger = logging.get_logger(__name__)

_CHUNK = 8192
# What a bit costs depends on the clusters, and they on it.
_ROUNDS_OF_CLUSTERS = 2
# At the full price rows that were hardly counted would lose their names, which other texts would miss.
_SHARE_OF_PRICE = 0.5


@dataclasses.dataclass(frozen=True)
class ClusterCodes:
    """What stands for the centres of clusters.

    Attributes:
        of_row: the cluster of each row (V,).
        name_lengths: bits of the name of each cluster (K,), rising.
        codes: of each centre (K, bytes), uint8.
        gains: of the centres on each axis (r,).
        rows: the centres as they are read (K, D).
    """

    of_row: Tensor
    name_lengths: tuple[int, ...]
    codes: Tensor
    gains: Tensor
    rows: Tensor


@dataclasses.dataclass(frozen=True)
class RotatedCodes:
    """What stands for a table (V, D).

    Attributes:
        plan: rows, bits and basis bits.
        tier_of_row: (V,), uint8; a row's place within its tier is how many earlier rows share the tier.
        codes: of each tier (n_t, bytes_t), uint8.
        gains: of each tier on each axis (T, r), 0 where the tier spends no bits.
        means: of each tier (T, D).
        basis_codes: of each axis (1, bytes_i), uint8.
        basis_gains: (r,).
        dim: D.
        window_bits: of each tier; 0 where it has no codes.
        clusters: where rows have centres.
    """

    plan: TierPlan
    tier_of_row: Tensor
    codes: tuple[Tensor, ...]
    gains: Tensor
    means: Tensor
    basis_codes: tuple[Tensor, ...]
    basis_gains: Tensor
    dim: int
    window_bits: tuple[int, ...]
    clusters: ClusterCodes | None = None

    def basis(self) -> Tensor:
        """Return the basis (r, D)."""
        return decode_basis(self.basis_codes, self.plan.basis_bits, self.basis_gains, self.dim)


def coding_order(bits: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return the axes that have bits, most bits first, and their bits: the order of the code stream."""
    axes = sorted((axis for axis, count in enumerate(bits) if count), key=lambda axis: -bits[axis])
    return axes, [bits[axis] for axis in axes]


def encode_basis(basis: Tensor, bits: tuple[int, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Code basis vectors (r, D) at `bits` an entry; returns the codes of each and the gains (r,)."""
    codes: list[Tensor] = [torch.empty(0)] * len(bits)
    gains = torch.zeros(len(bits))
    dim = basis.shape[1]
    for count in sorted(set(bits)):
        mine = torch.tensor([axis for axis, other in enumerate(bits) if other == count])
        entries = basis_entries(dim, count)
        scale = basis[mine].square().mean(1, keepdim=True).sqrt().clamp(min=1e-30)
        points = torch.nn.functional.pad(basis[mine] / scale, (0, entries - dim)).float()
        window = trellis.window_bits_for(entries * count)
        found = trellis.encode(points, [count] * entries, trellis.spread([count] * entries), window)
        read = trellis.decode(found, [count] * entries, window)[:, :dim].double()
        gains[mine] = _in_half((read * basis[mine]).sum(1) / read.square().sum(1))
        for axis, row in zip(mine.tolist(), found, strict=True):
            codes[axis] = row[None]
    return tuple(codes), gains


def decode_basis(codes: tuple[Tensor, ...], bits: tuple[int, ...], gains: Tensor, dim: int) -> Tensor:
    """Return the basis (r, D) that `encode_basis` coded."""
    basis = torch.empty(len(bits), dim)
    for count in sorted(set(bits)):
        mine = [axis for axis, other in enumerate(bits) if other == count]
        entries = basis_entries(dim, count)
        window = trellis.window_bits_for(entries * count)
        stacked = torch.cat([codes[axis] for axis in mine])
        basis[mine] = trellis.decode(stacked, [count] * entries, window)[:, :dim]
    return basis * gains[:, None]


def fit_rotated_codes(
    table: Tensor,
    max_bytes: int,
    weights: Tensor | None = None,
    axis_weights: Tensor | None = None,
    metric: Tensor | None = None,
    tiers: int = 3,
    clusters: int = 0,
    max_window_bits: int = 12,
    float_bytes: int = 2,
    only: Tensor | None = None,
    seed: int = 0,
) -> RotatedCodes:
    """Fit rotated trellis codes to a table (V, D) within a budget.

    Args:
        table: rows (V, D).
        max_bytes: the budget; see `TierPlan.num_bytes` for what counts.
        weights: how much the error of each row counts when bits are given out (V,).
        axis_weights: how much each row counts for the axes, means and gains (V,); default: as `weights`.
        metric: what an error costs, as a positive semi-definite matrix (D, D); default: plain distance.
        tiers: at most this many groups of rows with rates of their own.
        clusters: at most this many centres that rows share.
        max_window_bits: log2 of the trellis states that long rows use.
        float_bytes: bytes of a stored gain or mean.
        only: sorted ids of the rows to code (n,), as part of the whole table's plan; the result then holds these rows
            alone, except that its plan still counts all bytes.
        seed: of the clusters.
    """
    weights = torch.ones(len(table)) if weights is None else weights
    axis_weights = weights if axis_weights is None else axis_weights
    axes = principal_axes(table, axis_weights, metric)
    order, plan, found = _plan_with_clusters(table, weights, axes, max_bytes, tiers, float_bytes, clusters, seed)
    basis_codes, basis_gains = encode_basis(axes.basis[: len(plan.basis_bits)], plan.basis_bits)
    basis = decode_basis(basis_codes, plan.basis_bits, basis_gains, table.shape[1])
    analysis = axes.projection_to(basis)
    rest, stored = table, None
    if found is not None:
        stored = _encode_centres(found, axis_weights, axes.basis, basis, analysis, plan.cluster_bits, max_window_bits)
        # What coding the centres has cost is left to the rows.
        rest = table - stored.rows.to(table)[found.of_row]
    members = [ids if only is None else ids[torch.isin(ids, only)] for ids in order.split(list(plan.sizes))]
    members = [ids.sort().values for ids in members]
    means = [_in_half(mean_row(rest, axis_weights, ids)) for ids in members]
    coded = [
        _encode_tier(rest, axis_weights, ids, mean, analysis, bits, max_window_bits)
        for ids, mean, bits in zip(members, means, plan.bits, strict=True)
    ]
    tier_of_row = torch.empty(len(table), dtype=torch.uint8)
    for tier, ids in enumerate(members):
        tier_of_row[ids] = tier
        logger.info("Tier %d: %d rows of %d bits.", tier, len(ids), sum(plan.bits[tier]))
    return RotatedCodes(
        plan=dataclasses.replace(plan, sizes=tuple(map(len, members))),
        tier_of_row=tier_of_row if only is None else tier_of_row[only],
        codes=tuple(tier.codes for tier in coded),
        gains=torch.stack([tier.gains for tier in coded]),
        means=torch.stack(means),
        basis_codes=basis_codes,
        basis_gains=basis_gains,
        dim=table.shape[1],
        window_bits=tuple(tier.window_bits for tier in coded),
        clusters=stored if stored is None or only is None else dataclasses.replace(stored, of_row=stored.of_row[only]),
    )


def _plan_with_clusters(
    table: Tensor,
    weights: Tensor,
    axes: PrincipalAxes,
    max_bytes: int,
    tiers: int,
    float_bytes: int,
    clusters: int,
    seed: int,
) -> tuple[Tensor, TierPlan, Clusters | None]:
    """Return the rows (V,), the costliest first, where bits go, and the clusters at the price that bits have there."""
    found = find_clusters(table, axes, clusters, seed) if clusters else None
    order, plan, worth = _plan(table, weights, axes, found, max_bytes, tiers, float_bytes)
    for _ in range(_ROUNDS_OF_CLUSTERS):
        if found is not None:
            found = price_names(found, table, axes, worth, _SHARE_OF_PRICE * plan.price)
            order, plan, worth = _plan(table, weights, axes, found, max_bytes, tiers, float_bytes)
    return order, plan, found


def _plan(
    table: Tensor,
    weights: Tensor,
    axes: PrincipalAxes,
    clusters: Clusters | None,
    max_bytes: int,
    tiers: int,
    float_bytes: int,
) -> tuple[Tensor, TierPlan, Tensor]:
    """Return the rows (V,), the costliest first, and where bits go: both by how far rows are from their centres.

    Beside it, what an error of each row's centre costs (V,): rows with bits of their own make up for it with a few more
    of them, and so all weigh as the first row without.
    """
    rest = table if clusters is None else table - (clusters.points @ axes.basis).to(table)[clusters.of_row]
    costs = row_costs(rest, weights, axes)
    order = costs.argsort(descending=True, stable=True)
    statistics = row_statistics(rest, weights, order, axes.mean, axes.project)
    centres = None if clusters is None else clusters.statistics(weights)
    plan = plan_tiers(statistics, max_bytes, tiers, float_bytes, centres)
    served = sum(rows for rows, bits in zip(plan.sizes, plan.bits, strict=True) if any(bits))
    most = costs[order[min(served, len(order) - 1)]]
    return order, plan, weights * (most / costs.clamp(min=1e-300)).clamp(max=1.0)


class _TierCodes(NamedTuple):
    """What stands for the rows of one tier: codes (n, bytes), gains (r,), and the window's bits."""

    codes: Tensor
    gains: Tensor
    window_bits: int


def _encode_centres(
    clusters: Clusters,
    weights: Tensor,
    axes: Tensor,
    basis: Tensor,
    analysis: Tensor,
    bits: tuple[int, ...],
    max_window_bits: int,
) -> ClusterCodes:
    """Code the centres like the rows of a tier: of principal axes (D, D), on the basis (r, D) as it is stored."""
    centres = clusters.points @ axes
    every = torch.arange(len(centres))
    mean = torch.zeros(centres.shape[1])
    coded = _encode_tier(centres, clusters.weights(weights), every, mean, analysis, bits, max_window_bits)
    order, counts = coding_order(bits)
    read = torch.zeros(len(centres), len(bits))
    if order:
        read[:, order] = trellis.decode(coded.codes, counts, coded.window_bits)
    rows = (read * coded.gains) @ basis
    return ClusterCodes(clusters.of_row, clusters.name_lengths(), coded.codes, coded.gains, rows)


def _encode_tier(
    table: Tensor,
    weights: Tensor,
    ids: Tensor,
    mean: Tensor,
    analysis: Tensor,
    bits: tuple[int, ...],
    max_window_bits: int,
) -> _TierCodes:
    """Code the rows of one tier around their mean."""
    gains = torch.zeros(len(bits))
    axes, counts = coding_order(bits)
    if not axes:
        return _TierCodes(torch.empty(len(ids), 0, dtype=torch.uint8), gains, 0)
    window = trellis.window_bits_for(sum(counts), max_window_bits)
    weight = weights[ids].double()
    weight = weight / weight.sum().clamp(min=1e-30)
    columns = analysis[:, axes]

    def points(start: int) -> Tensor:
        rows = table[ids[start : start + _CHUNK]].double()
        return (rows - mean) @ columns

    starts = range(0, len(ids), _CHUNK)
    second = sum((weight[s : s + _CHUNK] @ points(s).square() for s in starts), torch.zeros(len(axes)))
    scale = second.sqrt().clamp(min=1e-30) * trellis.spread(counts)
    codes = []
    cross, power = torch.zeros(len(axes)).double(), torch.zeros(len(axes)).double()
    for start in starts:
        chunk, chunk_weight = points(start), weight[start : start + _CHUNK]
        codes.append(trellis.encode(chunk.float(), counts, scale.float(), window))
        read = trellis.decode(codes[-1], counts, window).double()
        cross += chunk_weight @ (read * chunk)
        power += chunk_weight @ read.square()
    gains[axes] = _in_half(cross / power.clamp(min=1e-30))
    return _TierCodes(torch.cat(codes), gains, window)


def _in_half(values: Tensor) -> Tensor:
    """Round as float16 storage will, except what is beyond it."""
    rounded = values.half().float()
    return torch.where(rounded.isfinite(), rounded, values.float())
