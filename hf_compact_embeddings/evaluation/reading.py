"""One pass over the rows of a compact table, for all that want to see them: decoding is what takes the time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from ..fitting.spectrum import covariance, gap_db, shannon_bound
from ..modeling.structure import CompactEmbedding

_ROWS_PER_CHUNK = 8192


class RowReader(Protocol):
    """What sees each row once, in order."""

    def take(self, rows: slice, decoded: Tensor) -> None:
        """See some rows (n, D), on the CPU."""


@torch.no_grad()
def read_rows(structure: CompactEmbedding, readers: Iterable[RowReader]) -> None:
    """Decode a table once, some rows at a time, and show them to all readers."""
    readers, start = tuple(readers), 0
    for chunk in structure.dense_chunks(_ROWS_PER_CHUNK):
        decoded = chunk.cpu()
        rows = slice(start, start + len(decoded))
        for reader in readers:
            reader.take(rows, decoded)
        start = rows.stop


class Collisions:
    """Counts rows that are looked up as exactly the vector of an earlier row, whatever the method."""

    def __init__(self) -> None:
        """Have seen nothing."""
        self.count = 0
        self._seen: set[bytes] = set()

    def take(self, rows: slice, decoded: Tensor) -> None:
        """See some rows (n, D)."""
        # Adding zero makes one zero of the two.
        values = (decoded.float() + 0.0).numpy()
        new = {hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in values} - self._seen
        self.count += len(values) - len(new)
        self._seen |= new


class Fidelity:
    """Compares rows with those of the dense table (V, D) that they stand for."""

    def __init__(self, table: Tensor) -> None:
        """Keep the dense table."""
        self.table = table
        self._error = self._cosine = 0.0

    def take(self, rows: slice, decoded: Tensor) -> None:
        """See some rows (n, D)."""
        original = self.table[rows].cpu().double()
        self._error += float((decoded.double() - original).square().sum())
        self._cosine += float(torch.cosine_similarity(decoded.double(), original, dim=-1).sum())

    def figures(self, num_bytes: int) -> dict[str, float]:
        """Return what a report says of a table of so many bytes."""
        _, spread = covariance(self.table)
        total = float(spread.trace()) * len(self.table)
        bound = shannon_bound(torch.linalg.eigvalsh(spread), 8 * num_bytes / self.table.numel())
        relative = self._error / total if total else float(self._error > 0)
        return {
            "relative_mse": relative,
            "mean_cosine": self._cosine / len(self.table),
            "shannon_bound": bound,
            "gap_db": gap_db(relative, bound),
        }


def count_collisions(structure: CompactEmbedding) -> int:
    """Return how many rows of a table are looked up as exactly the vector of an earlier one."""
    collisions = Collisions()
    read_rows(structure, [collisions])
    return collisions.count
