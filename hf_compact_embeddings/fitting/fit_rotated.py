"""Fit rotated embeddings: axes, tiers and trellis codes within a budget of bytes.

The way of a row: its coordinates in the principal axes of the weighted table (`principal_axes`); its tier and the bits
of each axis there (`tier_plan`); with clusters, its centroid (`clusters`); and the ring of bits whose values come
closest to what is left (`trellis`). All of it is written straight into the structure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from transformers.utils import logging

from ..modeling.huffman import coded_bytes
from ..modeling.options import STORAGE_DTYPES
from ..modeling.structure_rotated import (
    RingOrder,
    RotatedConfig,
    RotatedEmbedding,
    RotatedLayout,
    length_counts_of,
)
from ..progress import steps, tell
from . import trellis
from .allocation import code_lengths, expected_error, row_statistics
from .clusters import Clusters, choose_clusters, find_clusters, first_coordinates
from .coded_basis import basis_bytes, store_basis
from .methods import Prediction, empty_structure, register_method, stored_bytes
from .principal_axes import PrincipalAxes, mean_row
from .reproducible import product_over_rows, total
from .source import FitSource
from .tier_plan import TierPlan, plan_tiers
from .weights import TableWeights, counted_weights, row_energies, table_weights, tiered_needs, weighted_axes

logger = logging.get_logger(__name__)

_CHUNK = 8192
# Fewer are coded within a few seconds.
_MANY_ROWS = 8192
# What a bit costs depends on the clusters, and they on it.
_ROUNDS_OF_CLUSTERS = 2
# At the full price rows that were hardly counted would lose their clusters, which other texts would miss.
_SHARE_OF_PRICE = 0.5


@dataclasses.dataclass(frozen=True)
class _Frame:
    """What is known before any row is coded.

    Attributes:
        weights: of the rows.
        axes: principal ones.
        order: rows, the costliest first (V,).
        plan: where bits go.
        clusters: that rows belong to.
        expected_error: by the plan, relative to coding nothing, where rows weigh as often as they are read.
    """

    weights: TableWeights
    axes: PrincipalAxes
    order: Tensor
    plan: TierPlan
    clusters: Clusters | None
    expected_error: float


class _Rest:
    """Rows of a table (V, D) less their centroids (K, D), read some at a time: a table as large is never made."""

    def __init__(self, table: Tensor, centroids: Tensor | None, clusters: Clusters | None) -> None:
        self.table, self.clusters = table, clusters
        self.centroids = None if centroids is None else centroids.float()

    def __call__(self, ids: Tensor) -> Tensor:
        """Return what is left of rows (n, D)."""
        rows = self.table[ids].float()
        if self.clusters is None or self.centroids is None:
            return rows
        return rows - self.centroids[self.clusters.of_row[ids]]


def fit_rotated(options: RotatedConfig, source: FitSource) -> RotatedEmbedding:
    """Fit to a dense table."""
    frame = _framed(options, source)
    _tell_how_long(options, frame.plan)
    return _coded(options, source, frame, None)


@torch.no_grad()
def predict_rotated(options: RotatedConfig, source: FitSource) -> Prediction:
    """Plan for the whole table, and say what that takes and leaves."""
    frame = _framed(options, source)
    width = source.table.shape[1]
    taken = stored_bytes(options, _layout(options, frame.plan, frame.clusters, width), width)
    return Prediction(taken, frame.expected_error, lambda ids: _coded(options, source, frame, ids))


def _framed(options: RotatedConfig, source: FitSource) -> _Frame:
    """Find axes, the clusters at the price that bits have there, and where bits go."""
    return source.once(("frame", options, source.max_bytes), lambda: _find_frame(options, source))


def _find_frame(options: RotatedConfig, source: FitSource) -> _Frame:
    weights = table_weights(options, source)
    axes = weighted_axes(options, source, weights)
    energies = row_energies(options, source, axes)
    count = options.most_clusters(len(source.table))
    clusters, apart = None, energies
    if count:
        points = first_coordinates(source.table, axes)
        clusters = find_clusters(points, source.table.shape[1], count, source.seed)
        # On all other axes centroids lie at the mean.
        beyond = (energies - points.square().sum(1).double()).clamp(min=0.0)
    for left in reversed(range(1 + _ROUNDS_OF_CLUSTERS)):
        if clusters is not None:
            apart = beyond + clusters.squared_distances(points)
        order, plan, worth = _planned(options, source, weights, axes, clusters, apart)
        if clusters is None or not left:
            break
        clusters = choose_clusters(clusters, points, worth, _SHARE_OF_PRICE * plan.price)
        apart = energies
    counted = counted_weights(source)
    error = expected_error(plan.sizes, plan.left, order, apart * counted)
    error = error / max(float(total(energies * counted)), 1e-300) + plan.centroids_left
    return _Frame(weights, axes, order, plan, clusters, error)


def _planned(
    options: RotatedConfig,
    source: FitSource,
    weights: TableWeights,
    axes: PrincipalAxes,
    clusters: Clusters | None,
    energies: Tensor,
) -> tuple[Tensor, TierPlan, Tensor]:
    """Return the rows (V,), the costliest first, and where bits go: both by how far rows are from their centroids.

    Beside it, what an error of each row's centroid costs (V,): rows with bits of their own make up for it with a few
    more of them, and so all weigh as the first row without.
    """
    rows, width = source.table.shape
    read = _Rest(source.table, None if clusters is None else clusters.points @ axes.basis, clusters)
    # Rows that are their own centroid cost nothing, and still must be compared.
    costs = (energies * weights.bits.double()).clamp(min=1e-300)
    order = costs.argsort(descending=True, stable=True)
    plan = plan_tiers(
        row_statistics(read, weights.bits, order, axes),
        options.default_budget(rows, width) if source.max_bytes is None else source.max_bytes,
        options.tiers,
        options.float_bytes,
        lambda plan: stored_bytes(options, _layout(options, plan, clusters, width), width),
        None if clusters is None else clusters.statistics(weights.bits),
    )
    served = sum(size for size, bits in zip(plan.sizes, plan.bits, strict=True) if any(bits))
    most = costs[order[min(served, len(order) - 1)]]
    return order, plan, weights.bits * (most / costs).clamp(max=1.0)


def _layout(options: RotatedConfig, plan: TierPlan, clusters: Clusters | None, width: int) -> RotatedLayout:
    """Return the sizes of all that a plan stores."""

    def window(bits: tuple[int, ...]) -> int:
        return trellis.window_bits_for(sum(bits), options.max_window_bits) if any(bits) else 0

    lengths = () if clusters is None else clusters.code_lengths()
    return RotatedLayout(
        coded_rows=sum(plan.sizes),
        tier_rows=plan.sizes,
        tier_code_lengths=code_lengths(plan.sizes),
        tier_bytes=tuple(sum(bits) // 8 for bits in plan.bits),
        tier_window_bits=tuple(window(bits) for bits in plan.bits),
        rank=len(plan.basis_bits),
        basis_bytes=basis_bytes(plan.basis_bits, width) if options.basis == "coded" else 0,
        clusters=len(lengths),
        cluster_bytes=sum(plan.cluster_bits) // 8,
        cluster_window_bits=window(plan.cluster_bits),
        cluster_length_counts=length_counts_of(lengths),
        cluster_index_bytes=0 if clusters is None else coded_bytes(clusters.sizes(), lengths),
    )


def _tell_how_long(options: RotatedConfig, plan: TierPlan) -> None:
    """Say how long the search for codes will take, which is nearly all that a large fit takes."""
    if sum(plan.sizes) < _MANY_ROWS:
        return
    seconds = 0.0
    for size, bits in zip(plan.sizes, plan.bits, strict=True):
        if size and any(bits):
            ring = [count for count in bits if count]
            seconds += trellis.seconds_to_encode(
                size, ring, trellis.window_bits_for(sum(ring), options.max_window_bits)
            )
    tell(f"Coding {sum(plan.sizes):,} rows will take about {seconds:.0f} seconds.")


@torch.no_grad()
def _coded(options: RotatedConfig, source: FitSource, frame: _Frame, only: Tensor | None) -> RotatedEmbedding:
    """Return the structure of all rows, or of the sorted rows `only` as part of the whole table's plan."""
    table, plan, clusters = source.table, frame.plan, frame.clusters
    members = [ids.sort().values for ids in frame.order.split(list(plan.sizes))]
    part = source
    if only is not None:
        members = [ids[torch.isin(ids, only)] for ids in members]
        plan = dataclasses.replace(plan, sizes=tuple(map(len, members)))
        part = FitSource(table[only])
    stored = clusters
    if clusters is not None and only is not None:
        stored = dataclasses.replace(clusters, of_row=clusters.of_row[only])
    structure: RotatedEmbedding = empty_structure(options, part, _layout(options, plan, stored, table.shape[1]))
    store_basis(structure, frame.axes.basis[: len(plan.basis_bits)], plan.basis_bits)
    analysis = frame.axes.projection_to(structure.axes())
    rest = _Rest(table, None, None)
    if clusters is not None and stored is not None:
        _store_clusters(structure, stored, clusters.weights(frame.weights.axes), frame.axes.basis, analysis, plan)
        # What coding the centroids has cost is left to the rows.
        rest = _Rest(table, structure.centroids() @ structure.axes(), clusters)
    bits = torch.tensor(plan.bits, dtype=torch.uint8).view(len(members), -1)
    tiers, codes = torch.empty(len(table), dtype=torch.int64), []
    structure.gains.zero_()
    for tier, ids in enumerate(steps(members, "Coding tiers")):
        tiers[ids] = tier
        mean = _rounded(mean_row(rest, frame.weights.axes, ids), options)
        structure.means[tier] = mean
        window = structure.layout.tier_window_bits[tier]
        found, gains = _encode_rows(rest, ids, frame.weights.axes[ids], mean, analysis, bits[tier], window)
        codes.append(found)
        structure.gains[tier] = _rounded(gains, options)
        logger.info("Tier %d: %d rows of %d bits.", tier, len(ids), int(bits[tier].sum()))
    structure.set_codes(tiers if only is None else tiers[only], codes, bits)
    return structure


def _store_clusters(
    structure: RotatedEmbedding,
    clusters: Clusters,
    weights: Tensor,
    axes: Tensor,
    analysis: Tensor,
    plan: TierPlan,
) -> None:
    """Code the centroids like the rows of a tier without a mean, on the basis as it is stored."""
    centroids, bits = clusters.points @ axes, torch.tensor(plan.cluster_bits, dtype=torch.uint8)
    none = torch.zeros(centroids.shape[1])
    window, every = structure.layout.cluster_window_bits, torch.arange(len(centroids))
    codes, gains = _encode_rows(centroids.__getitem__, every, weights, none, analysis, bits, window)
    structure.set_clusters(clusters.of_row, codes, bits, _rounded(gains, structure.options))


def _encode_rows(
    read: Callable[[Tensor], Tensor],
    ids: Tensor,
    weights: Tensor,
    mean: Tensor,
    analysis: Tensor,
    bits: Tensor,
    window: int,
) -> tuple[Tensor, Tensor]:
    """Code the rows that `read` gives for ids (n,) around their mean; returns codes (n, bytes) and gains (r,)."""
    gains = torch.zeros(len(bits), dtype=torch.float64)
    axes, counts = RingOrder.of(bits)
    if not counts:
        return torch.empty(len(ids), 0, dtype=torch.uint8), gains
    weight = weights.double()
    weight = weight / total(weight).clamp(min=1e-30)
    columns, centre = analysis[:, axes].float(), mean.float()

    def points(chosen: Tensor) -> Tensor:
        return (read(chosen).float() - centre) @ columns

    # The values of a tier need no more than about the right size: their gains are found after the codes.
    some = slice(None, None, -(-len(ids) // _CHUNK))
    second = product_over_rows(weight[some], points(ids[some]).double().square()) / total(weight[some]).clamp(min=1e-30)
    scale = second.sqrt().clamp(min=1e-30) * trellis.spread(counts)
    codes = torch.empty(len(ids), sum(counts) // 8, dtype=torch.uint8)
    cross, power = torch.zeros(len(axes)).double(), torch.zeros(len(axes)).double()
    for chunk_ids, chunk_weight, out in zip(ids.split(_CHUNK), weight.split(_CHUNK), codes.split(_CHUNK), strict=True):
        chunk = points(chunk_ids)
        out.copy_(trellis.encode(chunk, counts, scale.float(), window))
        values = trellis.decode(out, counts, window)
        cross += product_over_rows(chunk_weight, (values * chunk).double())
        power += product_over_rows(chunk_weight, values.double().square())
    # The least-squares gain of the values that were chosen.
    gains[axes] = cross / power.clamp(min=1e-30)
    return codes, gains


def _rounded(values: Tensor, options: RotatedConfig) -> Tensor:
    """Round as storage will, so that what follows makes up for it."""
    return values.to(STORAGE_DTYPES[options.storage_dtype]).float()


def _candidates(rows: int, width: int, max_bytes: int) -> list[RotatedConfig]:
    """Spend the budget, with many tiers or few, and with clusters."""
    enough = max_bytes * 8 >= rows + 64 * width
    found = [RotatedConfig(tiers=tiers) for tiers in (6, 3)] if enough else []
    # A centroid takes as many bytes as the index entries of some dozen rows. Both must leave something for the rows.
    clusters = min(1024, 1 << (rows // 48).bit_length() >> 1)
    if enough and clusters >= 16 and max_bytes >= 2 * (rows * (clusters.bit_length() - 1) // 8):
        found.append(RotatedConfig(clusters=clusters, tiers=4))
    return found


register_method(
    structure=RotatedEmbedding, fit=fit_rotated, needs=tiered_needs, candidates=_candidates, predict=predict_rotated
)
