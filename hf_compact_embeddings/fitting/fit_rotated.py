"""Fit rotated embeddings: axes, tiers and trellis codes within a budget of bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..modeling.configuration import STORAGE_DTYPES
from ..modeling.errors import config_error
from ..modeling.prefix_codes import named_bytes
from ..modeling.structure_rotated import RotatedConfig, RotatedEmbedding
from . import trellis
from .name_lengths import name_lengths
from .recoding import StoredAxes
from .rotated_codes import RotatedCodes, fit_rotated_codes
from .source import FitSource, empty_structure, fits, predicts, recodes

# Powers of the token frequency for bits and for axes, with and without an output head that scores through the table.
_POWERS = {False: (0.3, 0.75), True: (0.75, 1.0)}
_ROUNDS = 4
_CHUNK = 8192


@fits(RotatedConfig)
def fit_rotated(config: RotatedConfig, source: FitSource) -> RotatedEmbedding:
    """Fit to a dense table."""
    if config.metric == "sensitivity" and source.metric is None:
        raise config_error("metric", config.metric, "it needs `texts` and a `tokenizer`")
    rows, width = source.table.shape
    budget = config.budget(rows, width)
    structure = _fitted(config, source, budget)
    if config.basis == "coded":
        return structure
    # The plan counts coded axes; plain ones take more, which has to come from somewhere.
    spent = budget
    for _ in range(_ROUNDS):
        excess = structure.nbytes - structure.private_bytes - budget
        if excess <= 0:
            break
        spent -= excess
        if spent <= 0:
            needed = structure.basis.nbytes if structure.basis is not None else 0
            raise config_error("basis", config.basis, f"its {needed:,} bytes leave nothing of a budget of {budget:,}")
        structure = _fitted(config, source, spent)
    return structure


@predicts(RotatedConfig)
def predict_rotated(config: RotatedConfig, source: FitSource, ids: Tensor) -> tuple[int, Tensor]:
    """Plan for the whole table, and code the rows `ids` only."""
    budget = config.budget(*source.table.shape)
    codes = _codes(config, source, budget, ids)
    part = dataclasses.replace(config, private_rows=0, coded_rows=None)
    structure = as_structure(codes, part, FitSource(source.table[ids]))
    return codes.plan.num_bytes, structure.dense()


def _fitted(config: RotatedConfig, source: FitSource, budget: int) -> RotatedEmbedding:
    return as_structure(_codes(config, source, budget, None), config, source)


def _codes(config: RotatedConfig, source: FitSource, budget: int, only: Tensor | None) -> RotatedCodes:
    bits_power, axis_power = _POWERS[source.tied]
    return fit_rotated_codes(
        source.table,
        budget,
        weights=source.row_weights(bits_power if config.frequency_power is None else config.frequency_power),
        axis_weights=source.row_weights(axis_power if config.axis_power is None else config.axis_power),
        metric=source.metric if config.metric == "sensitivity" else None,
        tiers=config.tiers,
        clusters=config.most_clusters(len(source.table)),
        max_window_bits=config.max_window_bits,
        float_bytes=STORAGE_DTYPES[config.storage_dtype].itemsize,
        only=only,
        seed=source.seed,
    )


def as_structure(codes: RotatedCodes, config: RotatedConfig, source: FitSource) -> RotatedEmbedding:
    """Return the structure that holds the codes."""
    stored = dataclasses.replace(
        config,
        tier_rows=codes.plan.sizes,
        tier_tag_lengths=name_lengths(codes.plan.sizes),
        tier_bytes=tuple(sum(bits) // 8 for bits in codes.plan.bits),
        rank=len(codes.plan.basis_bits),
        basis_bytes=sum(code.numel() for code in codes.basis_codes) if config.basis == "coded" else 0,
        clusters=codes.plan.clusters,
        cluster_bytes=sum(codes.plan.cluster_bits) // 8,
        **_names_of_clusters(codes),
    )
    structure = empty_structure(stored, source)
    assert isinstance(structure, RotatedEmbedding)
    _store(structure, codes)
    return structure


def _names_of_clusters(codes: RotatedCodes) -> dict[str, Any]:
    if codes.clusters is None:
        return {"cluster_tag_lengths": (), "cluster_tag_bytes": 0}
    lengths = codes.clusters.name_lengths
    named = torch.bincount(codes.clusters.of_row, minlength=len(lengths)).tolist()
    return {
        "cluster_tag_lengths": tuple(torch.bincount(torch.tensor(lengths))[1:].tolist()),
        "cluster_tag_bytes": named_bytes(named, lengths),
    }


@torch.no_grad()
def _store(structure: RotatedEmbedding, codes: RotatedCodes) -> None:
    rank = len(codes.plan.basis_bits)
    bits = torch.tensor(codes.plan.bits, dtype=torch.uint8).view(len(codes.codes), rank)
    structure.set_codes(codes.tier_of_row, list(codes.codes), bits)
    structure.gains.copy_(codes.gains)
    structure.means.copy_(codes.means)
    if codes.clusters is not None:
        found = codes.clusters
        structure.set_clusters(found.of_row, found.codes, torch.tensor(codes.plan.cluster_bits), found.gains)
    structure.set_basis(list(codes.basis_codes), codes.plan.basis_bits, codes.basis_gains, codes.basis())


@recodes(RotatedConfig)
def recode_rotated(structure: RotatedEmbedding, rows: Tensor) -> Tensor:
    """Search the trellis anew with the gains as they are; rows stay in their clusters."""
    layout, tiers, every = structure.layout(), structure.places().tiers, StoredAxes.of(structure)
    moved = torch.zeros(len(rows), dtype=torch.bool, device=tiers.device)
    for tier, bits in enumerate(layout.bits):
        ids = (tiers == tier).nonzero().squeeze(-1)
        if not bits or not len(ids):
            continue
        axes = layout.axes[tier]
        window = trellis.window_bits_for(sum(bits), structure.config.max_window_bits)
        gains = structure.gains.detach()[tier, axes].float() * every.lengths[axes]
        for chunk, stored in zip(ids.split(_CHUNK), structure.tier_codes(tier).split(_CHUNK), strict=True):
            points = every.coordinates(rows[chunk], structure.means[tier]).float()
            if structure.config.clusters:
                points -= structure.centres().detach()[structure.cluster_of_rows()[chunk]] * every.lengths
            found = trellis.encode(points[:, axes], bits, gains, window)
            before, after = (
                (points.index_add(1, axes, trellis.decode(codes, bits, window) * gains, alpha=-1) @ every.turned)
                .square()
                .sum(1)
                for codes in (stored, found)
            )
            # The search is not exact on long rows: what it finds may be farther than what is there.
            better = after < before
            moved[chunk] = better
            stored.copy_(torch.where(better.unsqueeze(1), found, stored))
    return moved
