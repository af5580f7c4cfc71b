"""Fit scalar embeddings: for each group of values the scale that leaves the least squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from ..modeling.codes import pack_codes
from ..modeling.structure_scalar import ScalarConfig, ScalarEmbedding, middle
from .source import FitSource, empty_structure, fits, recodes

_ROWS_PER_CHUNK = 2048
# Few levels are best spent by clipping the largest values: scales from this share of the largest value on are tried.
_SMALLEST_SHARE = {8: 0.9, 4: 0.4, 2: 0.2}
_TRIALS = 25


@fits(ScalarConfig)
def fit_scalar(config: ScalarConfig, source: FitSource) -> ScalarEmbedding:
    """Round a dense table."""
    structure = empty_structure(config, source)
    assert isinstance(structure, ScalarEmbedding)
    codes = torch.empty(source.table.shape, dtype=torch.uint8)
    scales = torch.empty(structure.scales.shape)
    for start in range(0, len(codes), _ROWS_PER_CHUNK):
        rows = slice(start, start + _ROWS_PER_CHUNK)
        values = source.table[rows].to(device=source.device, dtype=torch.float32).unflatten(1, (structure.groups, -1))
        found, scale = round_groups(values, config.bits)
        codes[rows], scales[rows] = found.flatten(1).cpu(), scale.cpu()
    structure.set_codes(codes, scales)
    return structure


@recodes(ScalarConfig)
def recode_scalar(structure: ScalarEmbedding, rows: Tensor) -> Tensor:
    """Round to the nearest levels of the scales as they are."""
    bits, moved = structure.config.bits, []
    scales = structure.scales.detach().float()
    # All levels of a scale of zero are zero.
    scales = torch.where(scales == 0, 1.0, scales)
    for start in range(0, len(rows), _ROWS_PER_CHUNK):
        part = slice(start, start + _ROWS_PER_CHUNK)
        values = rows[part].float().unflatten(1, (structure.groups, -1))
        codes = (_levels(values, scales[part], bits) + middle(bits)).flatten(1).to(torch.uint8)
        packed = pack_codes(codes, bits)
        moved.append((packed != structure.codes[part]).any(1))
        structure.codes[part] = packed
    return torch.cat(moved)


def round_groups(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the codes (n, groups, size), uint8, and scales (n, groups) with the least squared error."""
    largest = values.abs().amax(-1).clamp(min=torch.finfo(torch.float16).tiny)
    best_scale = torch.empty_like(largest)
    least = torch.full_like(largest, torch.inf)
    for share in torch.linspace(_SMALLEST_SHARE[bits], 1.0, _TRIALS).tolist():
        # As it will be stored: float16 scales, so that rounding happens before the codes are chosen.
        scale = (largest * (share / middle(bits))).half().float().clamp(min=2.0**-24)
        error = (_levels(values, scale, bits) * scale.unsqueeze(-1) - values).square().sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        best_scale = torch.where(better, scale, best_scale)
    return (_levels(values, best_scale, bits) + middle(bits)).to(torch.uint8), best_scale


def _levels(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the nearest levels, in steps from the middle: whole numbers and a half."""
    steps = values / scale.unsqueeze(-1) + middle(bits)
    return steps.round().clamp(0, (1 << bits) - 1) - middle(bits)
