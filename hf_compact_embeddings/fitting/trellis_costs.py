"""What the search for trellis codes counts with: errors and path costs as integers of 16 bits.

Twice as many of them as of floats fit a register and the cache, and their sums are the same on every device, in every
order. A point, and the values that it may take, are counted in units of their axis; the square of their difference,
less its lower 16 bits, is an error, and errors count the same on all axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..modeling.trellis_codes import reproduction_values

# Costs start at the lowest number of 16 bits. Before an error is added, they are cut off where the largest one, 16383,
# still fits: a path that costs so much more than the best is never taken.
LOWEST, HIGHEST = -(1 << 15), 1 << 14
# After so many axes the least cost is taken off all of them, so that they do not grow out of 16 bits.
AXES_BETWEEN_RENEWALS = 16
# A value of 1 as an integer: those of 2^16 states just fit 16 bits.
_ONE = 7560
# The gain of an axis of 1 bit in its units, at the most. A real table lost 0.007 dB at half of it, and won none above.
_GAIN = 2500
# How far beyond its largest value a point may lie, in units. So no axis makes the least cost grow by more than 1682.
_MARGIN = 10500


class Ring(NamedTuple):
    """How the axes of a row are counted; all of it on the CPU.

    Attributes:
        bits: of each axis (n,), int64.
        values: of every state at a gain of 1 (2^window_bits,), int16.
        scales: 2^16 times what takes these to the units of each axis (n,), int16.
        shifts: by how many bits differences on each axis are moved before they are squared (n,), int64.
    """

    bits: Tensor
    values: Tensor
    scales: Tensor
    shifts: Tensor

    def axis_values(self, axis: int) -> Tensor:
        """Return the values of all states in units of an axis (2^window_bits,), int32."""
        return (self.values.int() * self.scales[axis].int()) >> 16


def ring_of(bits: Sequence[int], gains: Tensor, window_bits: int) -> tuple[Ring, Tensor, Tensor]:
    """Choose the units of each axis.

    Returns:
        The ring, the size of a unit on each axis (n,), float32, and how many units from 0 points may be (n,), int64.
    """
    counts = torch.tensor(bits)
    length = gains.detach().cpu().double()
    # Each bit of an axis stands for twice the length at about the same error. So those of many bits have larger units,
    # which the shifts make up for when the error is small enough for 16 bits.
    unit = (length.abs() / 2.0 ** (counts - 1)).max().clamp(min=1e-30) / _GAIN
    shifts = torch.log2((length.abs() / (unit * _GAIN)).clamp(min=1.0)).sub(1e-9).ceil().long().clamp(min=0)
    units = unit * 2.0**shifts
    values = (reproduction_values(window_bits) * _ONE).round().to(torch.int16)
    scales = (length / units * ((1 << 16) / _ONE)).round().to(torch.int16)
    largest = (int(values.max()) * scales.long().abs() >> 16) + 1
    # The difference of a point and a value must fit 16 bits too.
    most = torch.minimum(largest + (_MARGIN >> shifts), (1 << 15) - 1 - largest)
    return Ring(counts, values, scales, shifts), units.float(), most


def whole_points(points: Tensor, units: Tensor, most: Tensor) -> Tensor:
    """Count points (V, n) in the units of their axes (V, n), int16."""
    limit = most.to(points.device, points.dtype)
    return (points / units.to(points)).round().clamp(-limit, limit).to(torch.int16)
