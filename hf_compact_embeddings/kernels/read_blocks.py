"""`blocks` tables, read by compiled loops."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..modeling.structure_blocks import LARGEST, BlocksEmbedding
from . import product_loops
from .products import grouped
from .threads import shared_out
from .tiered import ROWS_OF_A_TILE, agrees, basis_of, first_bytes, places_of, turned_back


def _agrees(table: BlocksEmbedding) -> bool:
    tables = (table.codes, table.tier_index)
    return table.known("agrees", tables, lambda: agrees(table) and _names_entries(table))


def _names_entries(table: BlocksEmbedding) -> bool:
    return not table.codes.numel() or int(table.codes.max()) < table.layout.codebook_size


def look_up(table: BlocksEmbedding, ids: Tensor) -> Tensor | None:
    """Return the rows (n, D) of ids (n,) in float32."""
    if not _agrees(table):
        return None
    layout, (basis, lengths) = table.layout, basis_of(table)
    starts, firsts = np.cumsum([0, *layout.block_widths]), first_bytes(table)
    if table.codebooks is None:
        entries, centre, gains = table.entry_codes, LARGEST + 1, table.gains.float() / LARGEST * lengths
    else:
        entries, centre, gains = table.codebooks.float(), 0, lengths
    # All codes, of which few are read: as an array of numpy alone, and no result of an operation of torch.
    codes, (places, _) = np.from_dlpack(table.codes), places_of(table)
    books = (starts, entries.numpy(), np.float32(centre), gains.numpy())
    tile = np.empty((ROWS_OF_A_TILE, layout.rank), np.float32)

    def points(rows: NDArray[np.int64], tier: int) -> Tensor:
        size = layout.tier_blocks[tier]
        product_loops.points(codes, firsts[tier], size, places, rows, *books, tile)
        return torch.from_numpy(tile)[: len(rows), : starts[size]]

    return turned_back(table, ids, basis, points)


def scores(table: BlocksEmbedding, hidden: Tensor) -> Tensor | None:
    """Return hidden · Eᵀ (N, V) of hidden states (N, D), both float32."""
    layout, sizes = table.layout, table.layout.tier_blocks
    if not _agrees(table) or not max(sizes):
        return None
    basis, lengths = basis_of(table)
    turned = ((hidden @ basis.T) * lengths).split(layout.block_widths, dim=1)
    books = table.entries().float().split(layout.block_widths, dim=1)
    entries = torch.stack([query @ book.T for query, book in zip(turned, books, strict=True)][: max(sizes)], dim=1)
    rows, result = layout.coded_rows, torch.empty(len(hidden), layout.coded_rows)
    offsets = table.means.float() @ hidden.T
    where = (first_bytes(table), np.array(sizes), *places_of(table))
    numbers = (table.codes.numpy(), *where, grouped(entries).numpy(), layout.codebook_size)
    work = functools.partial(product_loops.score_tiers, *numbers, offsets.numpy(), result.numpy())
    shared_out(work, rows, rows * max(sizes) * len(hidden))
    return result
