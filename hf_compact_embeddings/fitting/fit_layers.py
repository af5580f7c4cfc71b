"""Codes of linear layers: 8 bits with a scale for each row, 4 bits with one for each group of values.

A scale is the one of some candidates that leaves the least error, each with the codes that are nearest to it. Where it
is known how the inputs of a layer are spread, rounding errors of a row make up for each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..modeling.layers import GROUP
from .error_feedback import feedback_factor, round_with_feedback

# Signed codes, and what the greatest value of a group is divided by, in steps about the ends of the range.
_RANGE = {8: (-127, 127), 4: (-8, 7)}
_DIVISORS = {8: (127.0,), 4: tuple(-8 + 0.125 * step for step in range(-6, 15))}


def code_layer(weight: Tensor, bits: int, floats: torch.dtype, spread: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the codes, as a `CompactLinear` stores them, and the scales of a weight (N, K).

    Args:
        weight: what to code.
        bits: of a code, 8 or 4.
        floats: the type that the scales are stored as.
        spread: of the layer's inputs (K, K): the mean of their products with each other.
    """
    weight = weight.float()
    rows, columns = weight.shape
    width = columns if bits == 8 else GROUP
    padded = torch.nn.functional.pad(weight, (0, -columns % width))
    groups = padded.view(rows, -1, width)
    costs = torch.ones(padded.shape[1], device=weight.device)
    if spread is not None:
        costs[:columns] = spread.diagonal().float().clamp(min=1e-6 * float(spread.diagonal().mean()))
    scales = _best_scales(groups, costs.view(-1, width), bits).to(floats).float()
    if spread is None or not bool(spread.any()):
        signed = _nearest(groups, scales.unsqueeze(-1), bits)
    else:
        signed = _with_feedback(weight, scales, bits, spread).view_as(groups)
    return _packed(signed.flatten(1), bits), scales.squeeze(-1) if bits == 8 else scales


def _best_scales(groups: Tensor, costs: Tensor, bits: int) -> Tensor:
    """Return the scale (N, G) of each group (N, G, width) that leaves the least error, weighed by costs (G, width)."""
    peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    least, best = torch.full_like(peak, torch.inf), torch.zeros_like(peak)
    for divisor in _DIVISORS[bits]:
        codes = _nearest(groups, (peak / divisor).unsqueeze(-1), bits)
        # The scale that suits these codes best.
        squares = (costs * codes * codes).sum(-1)
        scale = (costs * codes * groups).sum(-1) / squares.clamp(min=torch.finfo(torch.float32).tiny)
        error = (costs * (groups - codes * scale.unsqueeze(-1)).square()).sum(-1)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, scale, best)
    return best


def _nearest(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Return the nearest codes, as floats; where a scale is zero, zeros."""
    steps = torch.where(scales == 0, torch.zeros_like(values), values / torch.where(scales == 0, 1.0, scales))
    return steps.round().clamp(*_RANGE[bits])


def _with_feedback(weight: Tensor, scales: Tensor, bits: int, spread: Tensor) -> Tensor:
    """Return codes (N, G · width) of a weight (N, K), rounded in the metric of its inputs."""
    rows, columns = weight.shape
    width = columns if bits == 8 else GROUP
    codes = torch.zeros(rows, scales.shape[1] * width, device=weight.device)

    def nearest(values: Tensor, column: int) -> Tensor:
        scale = scales[:, column // width]
        codes[:, column] = _nearest(values, scale, bits)
        return codes[:, column] * scale

    round_with_feedback(weight, feedback_factor(spread).to(weight.device), nearest)
    return codes


def _packed(signed: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return signed.to(torch.int8).view(torch.uint8)
    low, high = (signed + 8).to(torch.uint8).chunk(2, dim=1)
    return low | (high << 4)
