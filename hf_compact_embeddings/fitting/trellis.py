"""Trellis codes: one path through 2^L states stands for a whole row, at close to the rate-distortion bound.

A row is a ring of bits. Axis i owns the next `bits[i]` of them, and its value is a fixed function of the window of
the last L bits that ends with its own. So every axis sees L bits while it pays for its own only, rows decode alone
and by gathers, and nothing but the bits is stored. Encoding finds the ring whose values come closest to the row
(Viterbi search; compiled where numba can be imported, else in plain torch with the same result).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from ..modeling.errors import CompactConfigError
from ..modeling.trellis_codes import (
    MAX_BITS,
    MAX_WINDOW_BITS,
    MIN_WINDOW_BITS,
    decode,
    reproduction_values,
    window_bits_for,
    windows_of,
)
from .trellis_costs import ring_of, whole_points
from .trellis_search import search

__all__ = [
    "MAX_BITS",
    "MAX_WINDOW_BITS",
    "MIN_WINDOW_BITS",
    "decode",
    "encode",
    "expected_distortion",
    "reproduction_values",
    "seconds_to_encode",
    "spread",
    "window_bits_for",
    "windows_of",
]

logger = logging.get_logger(__name__)

# Measured on Gaussian rows, 2^12 states: the spread of the values relative to the axis at which the error is least,
# and how far that error stays above the bound of 4^-bits, in dB. Index 0 is an axis without bits.
_SPREAD = (0.0, 0.87, 1.01, 1.09, 1.13, 1.17, 1.21)
_LOSS_DB = (0.0, 0.35, 0.47, 0.74, 0.74, 1.03, 1.12)
_STREAM_BYTES = 1 << 26
_TRIAL_ROWS = 128


def expected_distortion() -> Tensor:
    """Return the error left on an axis of variance 1 by 0, 1, ..., MAX_BITS bits (MAX_BITS + 1,), float64."""
    bits = torch.arange(MAX_BITS + 1, dtype=torch.float64)
    return 4.0**-bits * 10 ** (torch.tensor(_LOSS_DB, dtype=torch.float64) / 10)


def spread(bits: Sequence[int]) -> Tensor:
    """Return by how much the values of axes of variance 1 should spread (n,), float64."""
    return torch.tensor([_SPREAD[count] for count in bits], dtype=torch.float64)


def encode(
    points: Tensor, bits: Sequence[int], gains: Tensor, window_bits: int, compiled: bool | None = None
) -> Tensor:
    """Find the codes whose values, times the gains, come closest to the points.

    Args:
        points: rows (V, n).
        bits: of each axis, 1 to MAX_BITS each; their sum must be whole bytes and at least `window_bits`.
        gains: what the values of each axis are multiplied by (n,).
        window_bits: log2 of the number of states.
        compiled: use the compiled search; by default where numba can be imported and the points are on the CPU.

    Returns:
        Packed codes (V, sum(bits) / 8), uint8, first bit highest.
    """
    bits = _checked(bits, window_bits)
    if points.ndim != 2 or points.shape[1] != len(bits) or gains.shape != (len(bits),):
        raise CompactConfigError(
            f"`points` {tuple(points.shape)} and `gains` {tuple(gains.shape)} do not fit to {len(bits)} axes."
        )
    if compiled is None:
        compiled = points.device.type == "cpu" and _numba_works()
    ring, units, most = ring_of(bits, gains, window_bits)
    lead, places = _effort(bits, window_bits)
    codes = []
    for chunk in points.float().split(max(1, _STREAM_BYTES // (8 * sum(bits)))):
        whole = whole_points(chunk, units, most)
        if compiled:
            from .trellis_kernel import search as compiled_search

            rows, threads = np.ascontiguousarray(whole.cpu().numpy()), torch.get_num_threads()
            found = compiled_search(rows, ring, lead, places, threads)
            # numba's layer on OpenMP leaves its own number of threads behind, to torch too.
            torch.set_num_threads(threads)
            windows = torch.from_numpy(found).to(points.device)
        else:
            windows = search(whole, ring, lead, places)
        codes.append(_pack(windows, bits))
    return torch.cat(codes) if codes else torch.empty(0, sum(bits) // 8, dtype=torch.uint8)


def seconds_to_encode(rows: int, bits: Sequence[int], window_bits: int) -> float:
    """Return about how long `encode` takes for so many rows here, as tried out with a few rows of noise."""
    some = torch.randn(min(rows, _TRIAL_ROWS), len(bits), generator=torch.Generator().manual_seed(0))
    gains = torch.ones(len(bits))
    # The first call may compile.
    encode(some[:1], bits, gains, window_bits)
    began = time.perf_counter()
    encode(some, bits, gains, window_bits)
    return (time.perf_counter() - began) * rows / max(1, len(some))


@functools.cache
def _numba_works() -> bool:
    """Whether numba can be imported; cached, so that the reason why not is logged once."""
    try:
        import numba  # noqa: F401
    # A NumPy that is too new is an ImportError, a broken llvmlite an OSError, an old numba an AttributeError.
    except (ImportError, OSError, AttributeError) as error:
        logger.warning(
            f"The search for trellis codes runs in plain torch, far slower and with the same result, because numba "
            f"cannot be imported: {error}. `pip install 'hf_compact_embeddings[fast]'` installs one that can be."
        )
        return False
    return True


def _checked(bits: Sequence[int], window_bits: int) -> list[int]:
    total = sum(bits)
    if not bits or min(bits) < 1 or max(bits) > MAX_BITS:
        raise CompactConfigError(f"`bits` must be 1 to {MAX_BITS} on every axis; given: {list(bits)}.")
    if total % 8 or total < window_bits:
        raise CompactConfigError(
            f"`bits` add up to {total}, but they must fill whole bytes and one window of {window_bits} bits."
        )
    if not max(bits) <= window_bits <= MAX_WINDOW_BITS:
        raise CompactConfigError(f"`window_bits` is {window_bits}, but it must be {max(bits)} to {MAX_WINDOW_BITS}.")
    return [int(count) for count in bits]


def _effort(bits: list[int], window_bits: int) -> tuple[int, int]:
    """Return over how many axes to lead before the way around, and at how many places to force what does not close.

    No places at all means to try every state: on short rings that gains up to 1 dB and costs little. Elsewhere the best
    ring of all would gain 0.03 dB or less, on Gaussian rows; half the lead would lose 0.01 dB on a real table.
    """
    row_bits = sum(bits)
    if row_bits < 64 and window_bits <= 8:
        return 1, 0
    return (len(bits), 3) if row_bits < 160 else (min(128, len(bits)), 1)


def _pack(windows: Tensor, bits: list[int]) -> Tensor:
    """Write the newest bits of each window (V, n) one behind the other (V, sum(bits) / 8), uint8."""
    # Axis by axis, each with its rows side by side, is ten times as fast as row by row.
    columns = windows.T.contiguous()
    packed = torch.zeros(sum(bits) // 8, len(windows), dtype=torch.uint8, device=windows.device)
    position = 0
    for column, count in zip(columns, bits, strict=True):
        for bit in range(count - 1, -1, -1):
            packed[position // 8] |= ((column >> bit) & 1).to(torch.uint8) << (7 - position % 8)
            position += 1
    return packed.T.contiguous()
