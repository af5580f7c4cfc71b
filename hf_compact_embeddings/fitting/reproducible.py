"""Sums and eigenvectors that come out the same on any number of threads, so that a fit does not depend on it.

Whatever works on each row alone does so by itself. Products that add up over many rows do not: MKL may cut such sums
into one part for each thread, and no setting of torch keeps it from that. They are made on one thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

# torch cuts a sum of more than 32,768 values into one part for each thread.
_ROWS_PER_BLOCK = 8192


def total(values: Tensor) -> Tensor:
    """Return the sum over the first dimension, as float64, added up in blocks that are the same for all threads."""
    return torch.stack([block.sum(dim=0, dtype=torch.float64) for block in values.split(_ROWS_PER_BLOCK)]).sum(dim=0)


def product_over_rows(left: Tensor, right: Tensor) -> Tensor:
    """Return leftᵀ · right (a, b) of matrices (n, a) and (n, b); of weights (n,) and a matrix, the sum (b,)."""
    with _one_thread():
        return (left if left.ndim == 1 else left.T) @ right


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (D,), smallest first, and eigenvectors (D, D), a column each, found on one thread.

    What several threads find differs in the last bits, and axes of nearly the same length in more than that.
    """
    with _one_thread():
        values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
