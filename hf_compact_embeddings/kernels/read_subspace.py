"""`subspace` tables, read by compiled loops."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from ..modeling.structure_subspace import SubspaceEmbedding
from . import product_loops
from .products import grouped
from .threads import shared_out


def look_up(table: SubspaceEmbedding, ids: Tensor) -> Tensor:
    """Return the rows (n, D) of ids (n,) in float32."""
    if table.codes is not None and table.code_bits == 8 and table.entries == 256:
        codes = table.codes.index_select(0, ids).numpy()
    else:
        codes = np.empty((len(ids), table.layout.num_subspaces), np.int32)
        if table.codes is None:
            product_loops.digits(ids.numpy(), table.entries, codes)
        else:
            product_loops.unpack(table.codes.index_select(0, ids).numpy(), table.code_bits, table.entries - 1, codes)
    last = torch.empty(0, 1) if table.last_codebook is None else table.last_codebook.float()
    result = torch.empty(len(ids), table.embedding_dim)
    product_loops.look_up(codes, table.codebooks.float().numpy(), last.numpy(), result.numpy())
    return result


def scores(table: SubspaceEmbedding, hidden: Tensor) -> Tensor:
    """Return hidden · Eᵀ (N, V) of hidden states (N, D), both float32."""
    equal, entries, width = table.codebooks.shape
    slices = hidden[:, : equal * width].unflatten(1, (equal, width)).transpose(0, 1)
    found = torch.bmm(slices, table.codebooks.float().transpose(1, 2)).transpose(0, 1)
    if table.last_codebook is not None:
        last = hidden[:, equal * width :] @ table.last_codebook.float().T
        found = torch.cat([found, last.unsqueeze(1)], dim=1)
    count, rows = table.layout.num_subspaces, table.layout.coded_rows
    codes = torch.empty(rows, 0, dtype=torch.uint8) if table.codes is None else table.codes
    result = torch.empty(len(hidden), rows)
    numbers = (codes.numpy(), table.code_bits, count, grouped(found).numpy(), entries, result.numpy())
    shared_out(functools.partial(product_loops.score, *numbers), rows, rows * count * len(hidden))
    return result
