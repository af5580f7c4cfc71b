"""Product codes over principal axes, in blocks of unequal width so that each block's codes carry their share.

Axes come by falling variance. The last ones are dropped, the rest are cut into runs; narrow runs hold the large
variances and wide ones the small. Such codes score a tied head by look-up, as any product code does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..modeling.errors import CompactConfigError
from .kmeans import kmeans

_WIDEST = 96


def block_distortion(variances: Tensor, code_bits: int) -> float:
    """Return the error (a variance) that reverse water-filling leaves on falling variances (d,) at `code_bits`."""
    logs = variances.double().clamp(min=1e-300).log2()
    filled = logs.cumsum(0)
    counts = torch.arange(1, len(logs) + 1, dtype=torch.float64)
    # The level if just the first n axes stood above it; the right n is the last whose own variance does.
    levels = (filled - 2 * code_bits) / counts
    above = max(1, int((logs > levels).sum()))
    return float(above * 2 ** levels[above - 1] + variances[above:].double().sum())


def plan_blocks(variances: Tensor, blocks: int, code_bits: int = 8) -> list[int]:
    """Choose the widths of `blocks` runs of axes, for the least expected error; axes past their sum are dropped.

    Args:
        variances: of the axes, falling (D,).
        blocks: how many codes a row has.
        code_bits: bits of each code.
    """
    dim = len(variances)
    if not 1 <= blocks <= dim:
        raise CompactConfigError(f"`blocks` is {blocks}, but a table of width {dim} has 1 to {dim}.")
    if (variances.diff() > 1e-6 * float(variances.max())).any():
        raise CompactConfigError("`variances` must fall from axis to axis.")
    runs = [
        [block_distortion(variances[begin:end], code_bits) for end in range(begin + 1, min(dim, begin + _WIDEST) + 1)]
        for begin in range(dim)
    ]
    best = [0.0] + [math.inf] * dim
    cuts: list[list[int]] = []
    for _ in range(blocks):
        following, cut = [math.inf] * (dim + 1), [0] * (dim + 1)
        for begin, costs in enumerate(runs):
            if best[begin] == math.inf:
                continue
            for width, cost in enumerate(costs, start=1):
                if best[begin] + cost < following[begin + width]:
                    following[begin + width], cut[begin + width] = best[begin] + cost, begin
        best = following
        cuts.append(cut)
    dropped = variances.double().flip(0).cumsum(0).flip(0).tolist() + [0.0]
    end = min(range(dim + 1), key=lambda position: best[position] + dropped[position])
    widths: list[int] = []
    for cut in reversed(cuts):
        widths.append(end - cut[end])
        end = cut[end]
    return widths[::-1]


def fit_blocks(
    points: Tensor,
    widths: list[int],
    code_bits: int,
    weights: Tensor | None,
    generator: torch.Generator,
    iterations: int = 25,
) -> tuple[list[Tensor], Tensor]:
    """Cluster every block of points (V, r); returns the codebooks, each (2^code_bits, width), and codes (V, blocks).

    Args:
        points: coordinates of the rows in the kept axes; their number is the sum of `widths`.
        widths: of the blocks.
        code_bits: bits of each code.
        weights: of the rows (V,).
        generator: of the random starts.
        iterations: of k-means.
    """
    if points.shape[1] != sum(widths):
        raise CompactConfigError(f"`points` has {points.shape[1]} axes, but `widths` add up to {sum(widths)}.")
    if len(points) < 1 << code_bits:
        raise CompactConfigError(f"{len(points)} rows are too few for {1 << code_bits} codebook entries.")
    codebooks, codes = [], []
    for block in torch.split(points, widths, dim=1):
        centroids, indices = kmeans(
            block[:, None].float(), 1 << code_bits, weights, generator, iterations, points.device
        )
        codebooks.append(centroids[0])
        codes.append(indices[:, 0])
    return codebooks, torch.stack(codes, dim=1)
