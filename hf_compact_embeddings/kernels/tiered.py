"""What tables with tiers of rows have in common when they are looked up: each distinct row is turned back once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..modeling.tiered import TieredEmbedding
from .row_loops import by_tier, first_places, repeat, spread

# What is decoded at a time lies in the cache until it is turned back.
ROWS_OF_A_TILE = 256

# The coordinates (n, width) of some rows of one tier, on the first axes: of their ids, and the tier.
Points = Callable[[NDArray[np.int64], int], Tensor]


def basis_of(table: TieredEmbedding) -> tuple[Tensor, Tensor]:
    """Return the axes (r, D) in float32, and what each has to be multiplied by (r,)."""
    if table.basis is not None:
        return table.basis.float(), torch.ones(len(table.basis))
    return table.directions(), table.basis_gains.float()


def agrees(table: TieredEmbedding) -> bool:
    """Whether as many rows are in each tier as the codes are cut for: nothing checks it at the calls."""
    positions = table.positions()
    return tuple(np.diff(positions.firsts, append=len(positions.places)).tolist()) == table.layout.tier_rows


def first_bytes(table: TieredEmbedding) -> NDArray[np.int64]:
    """Return where the codes of each tier would begin (T,) if its first row had the place 0."""
    rows, size = np.array(table.layout.tier_rows), np.array(table.layout.row_bytes())
    return np.cumsum(rows * size) - np.cumsum(rows) * size


def places_of(table: TieredEmbedding) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the place of each row (V,) if rows were sorted by their tiers, and where each tier begins (T,)."""
    positions = table.positions()
    return positions.places.numpy(), positions.firsts.numpy()


def turned_back(table: TieredEmbedding, ids: Tensor, basis: Tensor, points: Points) -> Tensor:
    """Return the rows (n, D) of ids (n,): their coordinates · basis + mean of the tier."""
    rows, means = ids.numpy(), table.means.float().numpy()
    # Texts repeat tokens, and batches padding.
    firsts, distinct = first_places(rows)
    order, starts = by_tier(*places_of(table), rows[distinct])
    order, starts = distinct[order], starts.tolist()
    found = torch.empty(min(ROWS_OF_A_TILE, len(rows)), table.embedding_dim)
    result = torch.empty(len(rows), table.embedding_dim)
    for tier, stop in enumerate(starts[1:]):
        for start in range(starts[tier], stop, ROWS_OF_A_TILE):
            places = order[start : min(start + ROWS_OF_A_TILE, stop)]
            read = points(rows[places], tier)
            turned = torch.mm(read, basis[: read.shape[1]], out=found[: len(places)])
            spread(turned.numpy(), means[tier], places, result.numpy())
    if len(distinct) < len(rows):
        repeat(firsts, result.numpy())
    return result
