"""`scalar` tables, read by compiled loops."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from ..modeling.structure_scalar import ScalarEmbedding
from . import scalar_loops
from .threads import shared_out

# Smaller tables are turned into numbers and multiplied at once by torch, with the very sums of the dense product.
_LEAST_VALUES = 1 << 14


def _shares_bytes(table: ScalarEmbedding) -> bool:
    """Whether values of two groups lie in one byte: who asks for such groups has the plain path."""
    return table.groups > 1 and table.layout.group_size * table.layout.bits % 8 > 0


def look_up(table: ScalarEmbedding, ids: Tensor) -> Tensor | None:
    """Return the rows (n, D) of ids (n,) in float32."""
    if _shares_bytes(table):
        return None
    result = torch.empty(len(ids), table.embedding_dim)
    # All codes, of which few are read: as an array of numpy alone, and no result of an operation of torch.
    scales = table.scales.index_select(0, ids).float()
    numbers = (np.from_dlpack(table.codes), scales.numpy(), table.layout.bits, ids.numpy())
    scalar_loops.look_up(*numbers, result.numpy())
    return result


def scores(table: ScalarEmbedding, hidden: Tensor) -> Tensor | None:
    """Return hidden · Eᵀ (N, V) of hidden states (N, D), both float32."""
    bits, (rows, size) = table.layout.bits, table.codes.shape
    if _shares_bytes(table) or rows * table.embedding_dim < _LEAST_VALUES:
        return None
    # Zeros where the last byte has values that no row has; then the values that lie at the same bits, side by side.
    per_byte = 8 // bits
    queries = torch.nn.functional.pad(hidden, (0, size * per_byte - hidden.shape[1]))
    queries = queries.unflatten(1, (size, per_byte)).transpose(1, 2).flatten(1).contiguous()
    result = torch.empty(len(hidden), rows)
    numbers = (table.codes.numpy(), table.scales.detach().float().numpy(), bits, queries.numpy(), result.numpy())
    shared_out(functools.partial(scalar_loops.score, *numbers), rows, rows * queries.numel())
    return result
