"""Sums and eigenvectors that come out the same on any number of threads, so that a fit does not depend on it.

Whatever works on each row alone does so by itself. So do products of matrices on one and two threads; on four and
more, MKL may cut the sums of a product whose result is narrow, and no setting of torch keeps it from that.
"""

from __future__ import annotations

import torch
from torch import Tensor

# torch cuts a sum of more than 32,768 values into one part for each thread.
_ROWS_PER_BLOCK = 8192


def total(values: Tensor) -> Tensor:
    """Return the sum over the first dimension, as float64, added up in blocks that are the same for all threads."""
    return torch.stack([block.sum(dim=0, dtype=torch.float64) for block in values.split(_ROWS_PER_BLOCK)]).sum(dim=0)


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (D,), smallest first, and eigenvectors (D, D), a column each, found on one thread.

    What several threads find differs in the last bits, and axes of nearly the same length in more than that.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        values, vectors = torch.linalg.eigh(matrix)
    finally:
        torch.set_num_threads(threads)
    return values, vectors
