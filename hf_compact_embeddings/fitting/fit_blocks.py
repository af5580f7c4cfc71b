"""Fit block embeddings: principal axes, blocks and tiers within a budget of bytes, and k-means in each block."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers.utils import logging

from ..modeling.options import STORAGE_DTYPES
from ..modeling.structure_blocks import BlocksConfig, BlocksEmbedding, BlocksLayout
from ..progress import steps
from .allocation import code_lengths, expected_error, row_statistics
from .block_plan import BlockPlan, BlockSizes, plan_blocks
from .coded_basis import basis_bytes, store_basis
from .kmeans import assign, kmeans, sample_rows
from .methods import Prediction, empty_structure, register_method, stored_bytes
from .principal_axes import PrincipalAxes, mean_row
from .source import FitSource
from .weights import TableWeights, counted_weights, row_energies, table_weights, tiered_needs, weighted_axes

logger = logging.get_logger(__name__)

_CHUNK = 8192


@dataclasses.dataclass(frozen=True)
class _Frame:
    """What is known before any row is coded.

    Attributes:
        plan: blocks and tiers.
        tiers: of each row (V,), int64.
        axes: principal ones.
        order: rows, the costliest first (V,).
        find_means: gives `means`.
    """

    plan: BlockPlan
    tiers: Tensor
    axes: PrincipalAxes
    order: Tensor
    find_means: Callable[[], Tensor]

    @functools.cached_property
    def means(self) -> Tensor:
        """Means of each tier (T, D), as stored: found when rows are coded, since planning does without."""
        return self.find_means()

    def coordinates(self, table: Tensor, ids: Tensor, project: Tensor) -> Tensor:
        """Return the coordinates (n, r) of rows (n,)."""
        return (table[ids].float() - self.means[self.tiers[ids]]) @ project


def fit_blocks(options: BlocksConfig, source: FitSource) -> BlocksEmbedding:
    """Fit to a dense table."""
    weights, frame = _framed(options, source)
    structure = _structure_of(options, frame, source)
    _fill(structure, source, weights, frame, torch.arange(len(source.table)))
    return structure


@torch.no_grad()
def predict_blocks(options: BlocksConfig, source: FitSource) -> Prediction:
    """Plan for the whole table, and say what that takes and leaves."""
    weights, frame = _framed(options, source)
    width = source.table.shape[1]

    @torch.no_grad()
    def coded(ids: Tensor) -> BlocksEmbedding:
        rows = torch.bincount(frame.tiers[ids], minlength=len(frame.plan.rows)).tolist()
        sampled = dataclasses.replace(frame, plan=dataclasses.replace(frame.plan, rows=tuple(rows)))
        structure = _structure_of(options, sampled, FitSource(source.table[ids]))
        _fill(structure, source, weights, sampled, ids)
        return structure

    taken = stored_bytes(options, _layout(options, frame.plan, width), width)
    energies = row_energies(options, source, frame.axes) * counted_weights(source)
    left = expected_error(frame.plan.rows, frame.plan.left, frame.order, energies)
    return Prediction(taken, left / max(float(energies.sum()), 1e-300), coded)


def _framed(options: BlocksConfig, source: FitSource) -> tuple[TableWeights, _Frame]:
    """Find axes, blocks and tiers."""
    return source.once(("frame", options, source.max_bytes), lambda: _find_frame(options, source))


def _find_frame(options: BlocksConfig, source: FitSource) -> tuple[TableWeights, _Frame]:
    table = source.table
    rows, width = table.shape
    weights = table_weights(options, source)
    axes = weighted_axes(options, source, weights)
    costs = row_energies(options, source, axes) * weights.bits.double()
    order = costs.argsort(descending=True, stable=True)
    plan = plan_blocks(
        row_statistics(table.__getitem__, weights.bits, order, axes),
        options.default_budget(rows, width) if source.max_bytes is None else source.max_bytes,
        options.tiers,
        _sizes(options),
        lambda plan: stored_bytes(options, _layout(options, plan, width), width),
    )
    logger.info("Blocks of %s axes; %s of them for %s rows.", plan.widths, plan.blocks, plan.rows)
    parts = order.split(list(plan.rows))
    tiers = torch.empty(rows, dtype=torch.int64)
    for tier, ids in enumerate(parts):
        tiers[ids] = tier

    def means() -> Tensor:
        found = [mean_row(table.__getitem__, weights.axes, ids) for ids in parts]
        return torch.stack(found).to(STORAGE_DTYPES[options.storage_dtype]).float()

    return weights, _Frame(plan, tiers, axes, order, means)


def _layout(options: BlocksConfig, plan: BlockPlan, width: int) -> BlocksLayout:
    """Return the sizes of all that a plan stores."""
    return BlocksLayout(
        coded_rows=sum(plan.rows),
        tier_rows=plan.rows,
        tier_code_lengths=code_lengths(plan.rows),
        rank=sum(plan.widths),
        basis_bytes=basis_bytes(plan.basis_bits, width),
        codebook_size=options.codebook_size,
        tier_blocks=plan.blocks,
        block_widths=plan.widths,
    )


def _structure_of(options: BlocksConfig, frame: _Frame, part: FitSource) -> BlocksEmbedding:
    """Return the structure of the rows of `part`, with means and axes, but no codes yet."""
    layout = _layout(options, frame.plan, part.table.shape[1])
    structure: BlocksEmbedding = empty_structure(options, part, layout)
    store_basis(structure, frame.axes.basis[: layout.rank], frame.plan.basis_bits)
    with torch.no_grad():
        structure.means.copy_(frame.means)
    return structure


@torch.no_grad()
def _fill(structure: BlocksEmbedding, source: FitSource, weights: TableWeights, frame: _Frame, ids: Tensor) -> None:
    """Find codebooks for the whole table, and the codes of the sorted rows `ids`, which are the structure's."""
    project = frame.axes.projection_to(structure.axes()).float()
    structure.set_entries(_codebooks(structure.options, source, weights.axes, frame, project))
    # Rows choose among the entries as they are read.
    read = structure.round_to_storage().entries()
    structure.set_row_codes(frame.tiers[ids], _encode(source, frame, project, read, ids))


def _sizes(options: BlocksConfig) -> BlockSizes:
    float_bytes = options.float_bytes
    coded, coded_basis = options.codebooks == "int8", options.basis == "coded"
    return BlockSizes(
        entries=options.codebook_size,
        value_bytes=1 if coded else float_bytes,
        axis_bytes=(float_bytes if coded else 0) + (float_bytes + 1 if coded_basis else 0),
        float_bytes=float_bytes,
        coded_basis=coded_basis,
    )


def _codebooks(options: BlocksConfig, source: FitSource, weights: Tensor, frame: _Frame, project: Tensor) -> Tensor:
    """Find the entries of all blocks by k-means over the rows, or a sample of them; side by side (n, r)."""
    generator = torch.Generator().manual_seed(source.seed)
    entries, plan = options.codebook_size, frame.plan
    ids, sampled_weights = sample_rows(torch.arange(len(source.table)), entries, weights, generator)
    points = torch.cat([frame.coordinates(source.table, chunk, project) for chunk in ids.split(_CHUNK)])
    blocks_of_row = torch.tensor(plan.blocks)[frame.tiers[ids]]
    codebooks = torch.zeros(entries, sum(plan.widths))
    start = 0
    for block, width in enumerate(steps(plan.widths, "Clustering blocks")):
        mine = blocks_of_row > block
        part = points[mine, start : start + width]
        part_weights = None if sampled_weights is None else sampled_weights[mine]
        # With fewer rows than entries each row is one, and the rest stays unused.
        count = min(entries, len(part))
        if count:
            problem = part.unsqueeze(1)
            found, _ = kmeans(problem, count, part_weights, generator, options.iterations, source.device, None)
            codebooks[:count, start : start + width] = found[0].cpu()
        start += width
    return codebooks


def _encode(source: FitSource, frame: _Frame, project: Tensor, codebooks: Tensor, ids: Tensor) -> list[Tensor]:
    """Return the codes (n, f) of the rows `ids` of each tier."""
    device, widths = source.device, frame.plan.widths
    blocks = [part.unsqueeze(0).to(device) for part in codebooks.split(widths, dim=1)]
    codes = []
    for tier, count in enumerate(frame.plan.blocks):
        mine = ids[frame.tiers[ids] == tier]
        found = torch.empty(len(mine), count, dtype=torch.uint8)
        for rows, out in zip(mine.split(_CHUNK), found.split(_CHUNK), strict=True) if count and len(mine) else ():
            points = frame.coordinates(source.table, rows, project).to(device).split(widths, dim=1)
            out.copy_(_nearest(points, blocks, count))
        codes.append(found)
    return codes


def _nearest(points: Sequence[Tensor], blocks: Sequence[Tensor], count: int) -> Tensor:
    """Return the nearest entries (n, count) of points (n, width) in the first blocks (1, entries, width)."""
    found = [assign(points[block].unsqueeze(1), blocks[block], with_distances=False)[0] for block in range(count)]
    return torch.cat(found, dim=1)


def _candidates(rows: int, width: int, max_bytes: int) -> list[BlocksConfig]:
    """Spend the budget, where a codebook is small beside the table."""
    enough = max_bytes >= rows // 4 + 16 * width
    return [BlocksConfig()] if enough and rows >= 2 * BlocksConfig().codebook_size else []


register_method(
    structure=BlocksEmbedding, fit=fit_blocks, needs=tiered_needs, candidates=_candidates, predict=predict_blocks
)
