"""Fit scalar embeddings: for each group of values the scale that leaves the least squared error."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ..modeling.errors import CompactConfigError
from ..modeling.options import STORAGE_DTYPES
from ..modeling.structure_scalar import ScalarConfig, ScalarEmbedding, middle
from .methods import empty_structure, register_method
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
    for start in range(0, len(codes), _ROWS_PER_CHUNK):
        rows = slice(start, start + _ROWS_PER_CHUNK)
        values = source.table[rows].to(device=source.device, dtype=torch.float32).unflatten(1, (structure.groups, -1))
        found, scale = round_groups(values, structure.layout.bits, STORAGE_DTYPES[options.storage_dtype])
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


register_method(structure=ScalarEmbedding, fit=fit_scalar, needs=lambda options: frozenset(), candidates=_candidates)
