"""Fit block embeddings: principal axes, blocks and tiers within a budget of bytes, and k-means in each block."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor
from transformers.utils import logging

from ..modeling.configuration import STORAGE_DTYPES
from ..modeling.errors import config_error
from ..modeling.structure_blocks import BlocksConfig, BlocksEmbedding
from .block_plan import BlockPlan, BlockSizes, plan_blocks
from .kmeans import assign, kmeans, sample_rows
from .principal_axes import PrincipalAxes, mean_row, principal_axes, rows_by_cost
from .recoding import StoredAxes
from .rotated_codes import decode_basis, encode_basis
from .source import FitSource, empty_structure, fits, predicts, recodes
from .tiers import row_statistics

logger = logging.get_logger(__name__)

# Powers of the token frequency for bytes and for axes, with and without an output head that scores through the table.
_POWERS = {False: (0.3, 0.75), True: (0.75, 1.0)}
_CHUNK = 8192


@dataclasses.dataclass(frozen=True)
class _Frame:
    """What is known before any row is coded.

    Attributes:
        plan: blocks and tiers.
        tiers: of each row (V,), int64.
        means: of each tier (T, D), as stored.
        basis: (r, D), as stored.
        basis_codes: of each axis, where the basis is coded.
        basis_gains: (r,), likewise.
        project: takes rows less their mean to coordinates (D, r).
    """

    plan: BlockPlan
    tiers: Tensor
    means: Tensor
    basis: Tensor
    basis_codes: tuple[Tensor, ...]
    basis_gains: Tensor
    project: Tensor

    def coordinates(self, table: Tensor, ids: Tensor) -> Tensor:
        """Return the coordinates (n, r) of rows (n,)."""
        return (table[ids].float() - self.means[self.tiers[ids]]) @ self.project


@fits(BlocksConfig)
def fit_blocks(config: BlocksConfig, source: FitSource) -> BlocksEmbedding:
    """Fit to a dense table."""
    frame, codebooks = _fitted(config, source)
    return _coded(config, source, frame, codebooks, torch.arange(len(source.table)), source)


@predicts(BlocksConfig)
def predict_blocks(config: BlocksConfig, source: FitSource, ids: Tensor) -> tuple[int, Tensor]:
    """Plan and find codebooks for the whole table, and code the rows `ids` only."""
    frame, codebooks = _fitted(config, source)
    part = dataclasses.replace(config, private_rows=0, coded_rows=None)
    rows = torch.bincount(frame.tiers[ids], minlength=len(frame.plan.rows)).tolist()
    sampled = dataclasses.replace(frame, plan=dataclasses.replace(frame.plan, rows=tuple(rows)))
    return frame.plan.num_bytes, _coded(part, source, sampled, codebooks, ids, FitSource(source.table[ids])).dense()


def _fitted(config: BlocksConfig, source: FitSource) -> tuple[_Frame, Tensor]:
    """Return the frame and the codebooks side by side (n, r)."""
    if config.metric == "sensitivity" and source.metric is None:
        raise config_error("metric", config.metric, "it needs `texts` and a `tokenizer`")
    table, powers = source.table, _POWERS[source.tied]
    given = (config.frequency_power, config.axis_power)
    weights, axis_weights = (
        source.row_weights(default if power is None else power) for default, power in zip(powers, given, strict=True)
    )
    weights = torch.ones(len(table)) if weights is None else weights
    axis_weights = weights if axis_weights is None else axis_weights
    axes = principal_axes(table, axis_weights, source.metric if config.metric == "sensitivity" else None)
    order = rows_by_cost(table, weights, axes)
    statistics = row_statistics(table, weights, order, axes.mean, axes.project)
    plan = plan_blocks(statistics, config.budget(*table.shape), config.tiers, _sizes(config))
    logger.info("Blocks of %s axes; %s of them for %s rows.", plan.widths, plan.blocks, plan.rows)
    frame = _frame(config, table, axis_weights, axes, order, plan)
    return frame, _codebooks(config, source, axis_weights, frame)


def _sizes(config: BlocksConfig) -> BlockSizes:
    float_bytes = STORAGE_DTYPES[config.storage_dtype].itemsize
    coded, coded_basis = config.codebooks == "int8", config.basis == "coded"
    return BlockSizes(
        entries=config.codebook_size,
        value_bytes=1 if coded else float_bytes,
        axis_bytes=(float_bytes if coded else 0) + (float_bytes + 1 if coded_basis else 0),
        float_bytes=float_bytes,
        coded_basis=coded_basis,
    )


def _frame(
    config: BlocksConfig, table: Tensor, weights: Tensor, axes: PrincipalAxes, order: Tensor, plan: BlockPlan
) -> _Frame:
    """Store the axes as planned, and find what takes rows to them."""
    dtype = STORAGE_DTYPES[config.storage_dtype]
    basis = axes.basis[: sum(plan.widths)]
    basis_codes: tuple[Tensor, ...] = ()
    gains = torch.empty(0)
    if config.basis == "coded":
        basis_codes, gains = encode_basis(basis, plan.basis_bits)
        basis = decode_basis(basis_codes, plan.basis_bits, gains, table.shape[1])
    else:
        basis = basis.to(dtype).float()
    tiers = torch.empty(len(table), dtype=torch.int64)
    means = []
    for tier, ids in enumerate(order.split(list(plan.rows))):
        tiers[ids] = tier
        means.append(mean_row(table, weights, ids).to(dtype).float())
    project = axes.projection_to(basis).float()
    return _Frame(plan, tiers, torch.stack(means), basis, basis_codes, gains, project)


def _codebooks(config: BlocksConfig, source: FitSource, weights: Tensor, frame: _Frame) -> Tensor:
    """Find the entries of all blocks by k-means over the rows, or a sample of them; side by side (n, r)."""
    generator = torch.Generator().manual_seed(source.seed)
    entries, plan = config.codebook_size, frame.plan
    ids, sampled_weights = sample_rows(torch.arange(len(source.table)), entries, weights, generator)
    assert sampled_weights is not None
    points = torch.cat([frame.coordinates(source.table, chunk) for chunk in ids.split(_CHUNK)])
    blocks_of_row = torch.tensor(plan.blocks)[frame.tiers[ids]]
    codebooks = torch.zeros(entries, sum(plan.widths))
    start = 0
    for block, width in enumerate(tqdm(plan.widths, desc="Clustering blocks", unit="block", leave=False, delay=1.0)):
        mine = blocks_of_row > block
        part, part_weights = points[mine, start : start + width], sampled_weights[mine]
        # With fewer rows than entries each row is one, and the rest stays unused.
        count = min(entries, len(part))
        if count:
            problem = part.unsqueeze(1)
            found, _ = kmeans(problem, count, part_weights, generator, config.iterations, source.device, None)
            codebooks[:count, start : start + width] = found[0].cpu()
        start += width
    return codebooks


def _encode(source: FitSource, frame: _Frame, codebooks: Tensor, ids: Tensor) -> list[Tensor]:
    """Return the codes (n, f) of the rows `ids` of each tier."""
    device, widths = source.device, frame.plan.widths
    blocks = [part.unsqueeze(0).to(device) for part in codebooks.split(widths, dim=1)]
    codes = []
    for tier, count in enumerate(frame.plan.blocks):
        mine = ids[frame.tiers[ids] == tier]
        found = torch.empty(len(mine), count, dtype=torch.uint8)
        for rows, out in zip(mine.split(_CHUNK), found.split(_CHUNK), strict=True) if count and len(mine) else ():
            points = frame.coordinates(source.table, rows).to(device).split(widths, dim=1)
            out.copy_(_nearest(points, blocks, count))
        codes.append(found)
    return codes


def _nearest(points: Sequence[Tensor], blocks: Sequence[Tensor], count: int) -> Tensor:
    """Return the nearest entries (n, count) of points (n, width) in the first blocks (1, entries, width)."""
    found = [assign(points[block].unsqueeze(1), blocks[block], with_distances=False)[0] for block in range(count)]
    return torch.cat(found, dim=1)


@recodes(BlocksConfig)
def recode_blocks(structure: BlocksEmbedding, rows: Tensor) -> Tensor:
    """Take the nearest entry in each block."""
    config, axes, tiers = structure.config, StoredAxes.of(structure), structure.places().tiers
    widths = config.block_widths
    entries = structure.entries().detach().float() * axes.lengths
    blocks = [part.unsqueeze(0) for part in entries.split(widths, dim=1)]
    moved = torch.zeros(len(rows), dtype=torch.bool, device=tiers.device)
    for tier, count in enumerate(config.tier_blocks):
        ids = (tiers == tier).nonzero().squeeze(-1)
        if not count or not len(ids):
            continue
        for chunk, stored in zip(ids.split(_CHUNK), structure.tier_codes(tier).split(_CHUNK), strict=True):
            points = axes.coordinates(rows[chunk], structure.means[tier]).float().split(widths, dim=1)
            found = _nearest(points, blocks, count).to(torch.uint8)
            moved[chunk] = (found != stored).any(1)
            stored.copy_(found)
    return moved


def _coded(
    config: BlocksConfig, source: FitSource, frame: _Frame, codebooks: Tensor, ids: Tensor, part: FitSource
) -> BlocksEmbedding:
    """Return the structure of the rows `ids`, sorted, which are the table of `part`."""
    plan = frame.plan
    stored = dataclasses.replace(
        config,
        tier_rows=plan.rows,
        tier_blocks=plan.blocks,
        block_widths=plan.widths,
        rank=sum(plan.widths),
        basis_bytes=sum(code.numel() for code in frame.basis_codes),
    )
    structure = empty_structure(stored, part)
    assert isinstance(structure, BlocksEmbedding)
    with torch.no_grad():
        structure.means.copy_(frame.means)
        structure.set_basis(list(frame.basis_codes), plan.basis_bits, frame.basis_gains, frame.basis)
        structure.set_entries(codebooks)
        # Rows choose among the entries as they are read.
        read = structure.round_to_storage().entries()
        structure.set_row_codes(frame.tiers[ids], _encode(source, frame, read, ids))
    return structure
