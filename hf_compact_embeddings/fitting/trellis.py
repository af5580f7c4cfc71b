"""Trellis codes: one path through 2^L states stands for a whole row, at close to the rate-distortion bound.

A row is a ring of bits. Axis i owns the next `bits[i]` of them, and its value is a fixed function of the window of
the last L bits that ends with its own. So every axis sees L bits while it pays for its own only, rows decode alone
and by gathers, and nothing but the bits is stored. Encoding finds the ring whose values come closest to the row
(Viterbi search; compiled where numba can be imported, else in plain torch with the same result).
"""

from __future__ import annotations

import functools
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

__all__ = [
    "MAX_BITS",
    "MAX_WINDOW_BITS",
    "MIN_WINDOW_BITS",
    "decode",
    "encode",
    "expected_distortion",
    "reproduction_values",
    "spread",
    "window_bits_for",
    "windows_of",
]

logger = logging.get_logger(__name__)

# Measured on Gaussian rows, 2^12 states: the spread of the values relative to the axis at which the error is least,
# and how far that error stays above the bound of 4^-bits, in dB. Index 0 is an axis without bits.
_SPREAD = (0.0, 0.87, 1.01, 1.09, 1.13, 1.17, 1.21)
_LOSS_DB = (0.0, 0.35, 0.47, 0.74, 0.74, 1.03, 1.12)
_PLAIN_BYTES = 1 << 28
_STREAM_BYTES = 1 << 26


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
    values = gains.float().to(points.device)[:, None] * reproduction_values(window_bits).to(points.device)
    trials, laps = _effort(sum(bits), window_bits)
    codes = []
    for chunk in points.float().split(max(1, _STREAM_BYTES // (8 * sum(bits)))):
        if compiled:
            from .trellis_kernel import search

            axis_bits = np.array(bits, dtype=np.int64)
            rows = np.ascontiguousarray(chunk.cpu().numpy())
            threads = torch.get_num_threads()
            found = search(rows, axis_bits, values.cpu().numpy(), trials, laps, threads)
            # numba's layer on OpenMP leaves its own number of threads behind, to torch too.
            torch.set_num_threads(threads)
            windows = torch.from_numpy(found).to(points.device)
        else:
            windows = _plain_search(chunk, bits, values, trials, laps)
        codes.append(_pack(windows, bits))
    return torch.cat(codes) if codes else torch.empty(0, sum(bits) // 8, dtype=torch.uint8)


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


def _effort(row_bits: int, window_bits: int) -> tuple[int, int]:
    """Return from how many places, and over how many laps, to look for the state that closes the ring.

    No places at all means to try every state: on short rings that gains up to 1 dB and costs little.
    """
    if row_bits <= 32 and window_bits <= 8:
        return 0, 1
    if row_bits < 64:
        return 4, 2
    return (2, 2) if row_bits < 160 else (1, 1)


def _pack(windows: Tensor, bits: list[int]) -> Tensor:
    """Write the newest bits of each window (V, n) one behind the other (V, sum(bits) / 8), uint8."""
    rows = len(windows)
    stream = torch.empty(rows, sum(bits), dtype=torch.uint8, device=windows.device)
    position = 0
    for axis, count in enumerate(bits):
        for bit in range(count - 1, -1, -1):
            stream[:, position] = (windows[:, axis] >> bit) & 1
            position += 1
    packed = torch.zeros(rows, sum(bits) // 8, dtype=torch.uint8, device=windows.device)
    for bit in range(8):
        packed |= stream[:, bit::8] << (7 - bit)
    return packed


def _plain_search(points: Tensor, bits: list[int], values: Tensor, trials: int, laps: int) -> Tensor:
    """Search without compiled code; returns windows (V, n), int32."""
    num_states = values.shape[1]
    per_row = laps * sum(num_states >> count for count in bits) + 16 * num_states
    found = []
    axes = len(bits)
    for chunk in points.split(max(1, _PLAIN_BYTES // per_row)):
        least = torch.full((len(chunk),), torch.inf, device=chunk.device)
        windows = torch.zeros(len(chunk), axes, dtype=torch.int32, device=chunk.device)
        for trial in range(trials or num_states):
            start = torch.full((len(chunk),), trial, device=chunk.device)
            if trials:
                first = (trial + 1) * axes // (trials + 1)
                path, _ = _walk(chunk, bits, values, first, laps * axes, None)
                start = path[:, axes - 1 - first + (axes if laps == 2 and 2 * first > axes else 0)].long()
            path, cost = _walk(chunk, bits, values, 0, axes, start)
            better = cost < least
            least = torch.where(better, cost, least)
            windows = torch.where(better[:, None], path, windows)
        found.append(windows)
    return torch.cat(found)


def _walk(
    points: Tensor, bits: list[int], values: Tensor, first: int, steps: int, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Walk all rows at once; returns the windows (V, steps), int32, and the costs (V,). See the compiled one."""
    rows, axes = points.shape
    num_states = values.shape[1]
    cost = torch.zeros(rows, num_states, device=points.device)
    if start is not None:
        cost = torch.full_like(cost, 1e30).scatter_(1, start[:, None], 0.0)
    back = []
    order = [(first + step) % axes for step in range(steps)]
    for axis in order:
        candidates = cost.view(rows, 1 << bits[axis], -1)
        best, choice = candidates[:, 0], torch.zeros_like(candidates[:, 0], dtype=torch.uint8)
        # `min` over the dimension would not promise the first of equals, which the compiled search takes.
        for branch in range(1, candidates.shape[1]):
            other = candidates[:, branch] < best
            best = torch.where(other, candidates[:, branch], best)
            choice = choice.masked_fill(other, branch)
        back.append(choice)
        error = points[:, axis, None] - values[axis]
        cost = (best[:, :, None] + (error * error).view(rows, -1, 1 << bits[axis])).reshape(rows, -1)
    if start is None:
        ranks = torch.arange(num_states, device=points.device).expand_as(cost)
        state = ranks.masked_fill(cost > cost.amin(1, keepdim=True), num_states).amin(1)
    else:
        state = start
    total = cost.gather(1, state[:, None])[:, 0]
    windows = torch.empty(rows, steps, dtype=torch.int32, device=points.device)
    for step in range(steps - 1, -1, -1):
        windows[:, step] = state
        group = state >> bits[order[step]]
        groups = num_states >> bits[order[step]]
        state = back[step].gather(1, group[:, None])[:, 0].long() * groups + group
    return windows, total
