"""Trellis codes of rows, turned into values by a compiled loop: the same bits as `trellis_codes.decode` gives.

What trains reads rows by the plain path, of which most of the time goes into the windows of their codes, which have no
gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..modeling import structure_rotated
from ..modeling.codes import is_traced
from ..modeling.trellis_codes import decode, reproduction_values
from .rows import numba_works
from .threads import shared_out

# Fewer values are not worth the call.
_LEAST_VALUES = 1 << 12


@functools.lru_cache(maxsize=64)
def _places(bits: tuple[int, ...], size: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the three bytes in which each axis' window ends (3, n), and the bits after it (n,)."""
    last = np.cumsum(np.array(bits, np.int64)) - 1
    return (last // 8 - np.array([[2], [1], [0]])) % size, (7 - last % 8).astype(np.uint8)


def read_windows(codes: Tensor, bits: Sequence[int], window_bits: int, values: Tensor | None = None) -> Tensor:
    """Read rows (..., n) of unit gain from packed codes (..., bytes)."""
    # Asking a tracer how many rows there are would hold it to that number.
    plain = not is_traced() and type(codes) is Tensor and codes.device.type == "cpu" and values is None
    count = len(codes) * len(bits) if plain and codes.ndim == 2 else 0
    if count < _LEAST_VALUES or not numba_works():
        return decode(codes, bits, window_bits, values)
    from .trellis_loops import read_windows as loop

    found = torch.empty(len(codes), len(bits))
    places, shifts = _places(tuple(bits), codes.shape[1])
    numbers = (codes.contiguous().numpy(), places, shifts, (1 << window_bits) - 1)
    work = functools.partial(loop, *numbers, reproduction_values(window_bits).numpy(), found.numpy())
    shared_out(work, len(codes), count)
    return found


def let_rows_be_read_fast() -> None:
    """Have `rotated` tables read their windows so, with or without gradients."""
    structure_rotated.decode = read_windows
