"""Where the error of a compact table lies: in tokens that are read all the time, or in those that hardly ever are."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
from torch import Tensor

from ..fitting.reproducible import total

_ENDS = (100, 1_000, 10_000)


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


class BandErrors:
    """Compares rows with those of the dense table (V, D) that they stand for, by how often tokens occur (V,)."""

    def __init__(self, table: Tensor, counts: Tensor) -> None:
        """Keep the dense table and the counts."""
        self.table, self.counts = table, counts.double()
        self._mean = total(table.cpu()) / len(table)
        self._errors, self._energies, self._cosines = torch.empty(3, len(table), dtype=torch.float64)

    def take(self, rows: slice, decoded: Tensor) -> None:
        """See some rows (n, D)."""
        decoded, original = decoded.double(), self.table[rows].cpu().double()
        self._errors[rows] = (decoded - original).square().sum(1)
        self._energies[rows] = (original - self._mean).square().sum(1)
        self._cosines[rows] = torch.cosine_similarity(decoded, original, dim=-1)

    def bands(self) -> list[Band]:
        """Return the bands, the most frequent tokens first."""
        order, met = self.counts.argsort(descending=True, stable=True), self._errors * self.counts
        ends = [0, *(end for end in _ENDS if end < len(order)), len(order)]
        return [self._band(first, order[first:last], met) for first, last in pairwise(ends)]

    def _band(self, first: int, ids: Tensor, met: Tensor) -> Band:
        return Band(
            first=first + 1,
            last=first + len(ids),
            read=_share(self.counts, ids),
            felt=_share(met, ids),
            relative_mse=float(self._errors[ids].sum() / self._energies[ids].sum().clamp(min=1e-300)),
            mean_cosine=float(self._cosines[ids].mean()),
        )


def _share(values: Tensor, ids: Tensor) -> float:
    """Return the share of values (V,) that these rows have; of zeros alone none has any."""
    return float(values[ids].sum() / values.sum().clamp(min=1e-300))
