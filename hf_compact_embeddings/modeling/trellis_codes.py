"""Reading trellis codes: one ring of bits stands for a whole row, and every axis sees a window of it.

Axis i owns `bits[i]` bits of the ring, and its value is a fixed function of the last L bits that end with its own. So
every axis sees L bits while it pays for its own only, rows decode alone and by gathers, and nothing but the bits is
stored.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import CompactConfigError

MAX_BITS = 6
MAX_WINDOW_BITS = 16
MIN_WINDOW_BITS = 8
# Part of the format, as is `window_bits_for` for coded axes.
# Bit j of a state, counted from the newest, picks a half, a quarter, ... of the real line, flipped by the parity of
# the older bits under mask j. So the branches of any state lie evenly spaced, at every number of bits per axis, and
# paths that meet again differ much: a convolutional code. Found by search on Gaussian rows for 8, 10 and 12 bits.
_MASKS = (6050, 3750, 15917, 4544, 31859, 1114, 11653, 31717, 28549, 481, 3907, 28299, 2698, 32151, 27111, 31365)


@functools.lru_cache(maxsize=32)
def reproduction_values(window_bits: int) -> Tensor:
    """Return the value of every state (2^window_bits,), float32: standard normal quantiles in coding order."""
    if not 1 <= window_bits <= MAX_WINDOW_BITS:
        raise CompactConfigError(f"`window_bits` is {window_bits}, but it must be between 1 and {MAX_WINDOW_BITS}.")
    states = torch.arange(1 << window_bits)
    rank = torch.zeros_like(states)
    for position in range(window_bits):
        older = states >> (position + 1)
        rank = 2 * rank + (((states >> position) & 1) ^ _parity(older & _MASKS[position]))
    return torch.special.ndtri((rank.double() + 0.5) / len(states)).float()


def window_bits_for(row_bits: int, largest: int = 12) -> int:
    """Return how many bits a window should see in a row of `row_bits`: short rings gain nothing from long windows.

    Layouts store it for rows; for axes it is part of the format.
    """
    if row_bits < MIN_WINDOW_BITS:
        raise CompactConfigError(f"a row has {row_bits} bits, but a trellis needs at least {MIN_WINDOW_BITS}.")
    fitting = 8 if row_bits < 64 else 10 if row_bits < 96 else 12 if row_bits < 320 else MAX_WINDOW_BITS
    return max(MIN_WINDOW_BITS, min(largest, fitting))


def decode(codes: Tensor, bits: Sequence[int], window_bits: int, values: Tensor | None = None) -> Tensor:
    """Read rows (..., n) of unit gain from packed codes (..., bytes), by gathers."""
    if values is None:
        values = reproduction_values(window_bits).to(codes.device)
    return values[windows_of(codes, bits, window_bits).long()]


def windows_of(codes: Tensor, bits: Sequence[int], window_bits: int) -> Tensor:
    """Read the window that each axis sees (..., n), int32, from packed codes (..., bytes)."""
    last_bit = torch.tensor(bits, device=codes.device).cumsum(0) - 1
    byte, shift = last_bit // 8, (7 - last_bit % 8).to(torch.int32)
    num_bytes = codes.shape[-1]
    # Three bytes hold any 17 bits; the ring closes by counting bytes modulo their number.
    value = codes[..., (byte - 2) % num_bytes].to(torch.int32) << 16
    value |= codes[..., (byte - 1) % num_bytes].to(torch.int32) << 8
    value |= codes[..., byte].to(torch.int32)
    return (value >> shift) & ((1 << window_bits) - 1)


def _parity(numbers: Tensor) -> Tensor:
    for shift in (8, 4, 2, 1):
        numbers = numbers ^ (numbers >> shift)
    return numbers & 1
