"""Where the error of a compact table lies: in tokens that are read all the time, or in those that hardly ever are."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
from torch import Tensor

from ..fitting.reproducible import total
from ..modeling.structure import CompactEmbedding

_ENDS = (100, 1_000, 10_000)
_ROWS_PER_CHUNK = 8192


@dataclasses.dataclass(frozen=True)
class Band:
    """Tokens of neighbouring frequency.

    Attributes:
        first: rank of the most frequent of them among all tokens, from 1.
        last: rank of the least frequent.
        read: their share of all tokens that are read.
        felt: their share of the squared error that reading meets: of each row's, as often as the row is read.
        relative_mse: of their rows, about the mean of the whole table.
        mean_cosine: of their rows.
    """

    first: int
    last: int
    read: float
    felt: float
    relative_mse: float
    mean_cosine: float

    def __str__(self) -> str:
        """Return the figures in one line."""
        return (
            f"{self.read:.1%} of what is read, {self.felt:.1%} of the error met; relative MSE {self.relative_mse:.4f}, "
            f"mean cosine {self.mean_cosine:.4f}"
        )


@torch.no_grad()
def frequency_bands(structure: CompactEmbedding, table: Tensor, counts: Tensor) -> list[Band]:
    """Compare a structure with the dense table (V, D) that it stands for, by how often tokens occur (V,)."""
    mean = total(table.cpu()) / len(table)
    errors, energies, cosines = torch.empty(3, len(table), dtype=torch.float64)
    for start, decoded in zip(
        range(0, len(table), _ROWS_PER_CHUNK), structure.dense_chunks(_ROWS_PER_CHUNK), strict=True
    ):
        rows = slice(start, start + len(decoded))
        decoded, original = decoded.cpu().double(), table[rows].cpu().double()
        errors[rows] = (decoded - original).square().sum(1)
        energies[rows] = (original - mean).square().sum(1)
        cosines[rows] = torch.cosine_similarity(decoded, original, dim=-1)
    order, counts = counts.argsort(descending=True, stable=True), counts.double()
    met = errors * counts
    ends = [0, *(end for end in _ENDS if end < len(table)), len(table)]
    return [
        Band(
            first=begin + 1,
            last=end,
            read=_share(counts, order[begin:end]),
            felt=_share(met, order[begin:end]),
            relative_mse=float(errors[order[begin:end]].sum() / energies[order[begin:end]].sum().clamp(min=1e-300)),
            mean_cosine=float(cosines[order[begin:end]].mean()),
        )
        for begin, end in pairwise(ends)
    ]


def _share(values: Tensor, ids: Tensor) -> float:
    """Return the share of values (V,) that these rows have; of zeros alone none has any."""
    return float(values[ids].sum() / values.sum().clamp(min=1e-300))
