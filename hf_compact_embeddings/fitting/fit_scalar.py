"""Fit scalar embeddings: for each group of values the scale that leaves the least squared error, and its levels.

Where it is known what errors cost, the levels of a row are chosen together: their errors make up for each other.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ..modeling.errors import CompactConfigError
from ..modeling.options import STORAGE_DTYPES
from ..modeling.structure_scalar import ScalarConfig, ScalarEmbedding, middle
from .error_feedback import feedback_factor, round_with_feedback
from .methods import Need, empty_structure, register_method
from .source import FitSource

_ROWS_PER_CHUNK = 2048
# Few levels are best spent by clipping the largest values: scales from this share of the largest value on are tried.
_SMALLEST_SHARE = {8: 0.9, 4: 0.4, 2: 0.2}
_TRIALS = 25


def fit_scalar(options: ScalarConfig, source: FitSource) -> ScalarEmbedding:
    """Round a dense table."""
    structure: ScalarEmbedding = empty_structure(options, source)
    codes = torch.empty(source.table.shape, dtype=torch.uint8)
    scales = torch.empty(structure.scales.shape)
    metric = source.metric_for(options.metric)
    factor = None if metric is None else feedback_factor(metric).to(source.device)
    for start in range(0, len(codes), _ROWS_PER_CHUNK):
        rows = slice(start, start + _ROWS_PER_CHUNK)
        values = source.table[rows].to(device=source.device, dtype=torch.float32).unflatten(1, (structure.groups, -1))
        found, scale = round_groups(values, structure.layout.bits, STORAGE_DTYPES[options.storage_dtype])
        if factor is not None:
            found = _with_feedback(values, scale, structure.layout.bits, factor)
        codes[rows], scales[rows] = found.flatten(1).cpu(), scale.cpu()
    structure.set_codes(codes, scales)
    return structure


def round_groups(values: Tensor, bits: int, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the codes (n, groups, size), uint8, and scales (n, groups) with the least squared error."""
    smallest = torch.finfo(stored).smallest_normal if stored != torch.float16 else 2.0**-24
    largest = values.abs().amax(-1).clamp(min=torch.finfo(torch.float16).tiny)
    best_scale = torch.empty_like(largest)
    least = torch.full_like(largest, torch.inf)
    for share in torch.linspace(_SMALLEST_SHARE[bits], 1.0, _TRIALS).tolist():
        # As it will be stored, so that rounding happens before the codes are chosen.
        scale = (largest * (share / middle(bits))).to(stored).float().clamp(min=smallest)
        error = (_levels(values, scale, bits) * scale.unsqueeze(-1) - values).square().sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        best_scale = torch.where(better, scale, best_scale)
    return (_levels(values, best_scale, bits) + middle(bits)).to(torch.uint8), best_scale


def _with_feedback(values: Tensor, scale: Tensor, bits: int, factor: Tensor) -> Tensor:
    """Return the codes (n, groups, size), uint8, whose errors make up for each other."""
    size = values.shape[-1]

    def nearest(column: Tensor, number: int) -> Tensor:
        of_group = scale[:, number // size]
        return _levels(column[:, None], of_group, bits).squeeze(-1) * of_group

    rounded = round_with_feedback(values.flatten(1), factor, nearest).view_as(values)
    return (_levels(rounded, scale, bits) + middle(bits)).to(torch.uint8)


def _levels(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the nearest levels, in steps from the middle: whole numbers and a half."""
    steps = values / scale.unsqueeze(-1) + middle(bits)
    return steps.round().clamp(0, (1 << bits) - 1) - middle(bits)


def _candidates(rows: int, width: int, max_bytes: int) -> list[ScalarConfig]:
    """Return every number of bits that fits, with the smallest groups that fit."""
    found = []
    for bits in (8, 4, 2):
        with contextlib.suppress(CompactConfigError):
            layout = ScalarEmbedding.layout_for(ScalarConfig(bits=bits), rows, width, max_bytes)
            found.append(ScalarConfig(bits=bits, group_size=layout.group_size))
    return found


def _needs(options: ScalarConfig) -> frozenset[Need]:
    return frozenset() if options.metric == "plain" else frozenset({"sensitivity"})


register_method(structure=ScalarEmbedding, fit=fit_scalar, needs=_needs, candidates=_candidates)
