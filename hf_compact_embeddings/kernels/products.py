"""What tables of product codes have in common when they are scored."""

from __future__ import annotations

import torch
from torch import Tensor

from .lanes import LANES


def grouped(scores: Tensor) -> Tensor:
    """Return scores (N, f, n) of all entries as the loops read them: of one query, or of sixteen side by side."""
    flat = scores.flatten(1)
    if len(flat) == 1:
        return flat.contiguous()
    flat = torch.nn.functional.pad(flat, (0, 0, 0, -len(flat) % LANES))
    return flat.unflatten(0, (-1, LANES)).transpose(1, 2).flatten(1).contiguous()
