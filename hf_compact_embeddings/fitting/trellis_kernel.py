"""Compiled Viterbi search for trellis codes; the same steps as the plain one in trellis_search.py.

All numbers stay within 16 bits, in loops over slices without branches, which the compiler turns into vector code.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numba import int16, int32, uint8
from numpy.typing import NDArray

from .trellis_costs import AXES_BETWEEN_RENEWALS, HIGHEST, LOWEST, Ring

_LOWEST, _HIGHEST, _UNREACHABLE = np.int16(LOWEST), np.int16(HIGHEST), np.int16((1 << 15) - 1)
_NEVER = np.int64(1 << 62)


class _Axes(NamedTuple):
    """As in `Ring`, but values in two orders: of states by their last bit, and by their last two."""

    bits: NDArray[np.int64]
    halves: NDArray[np.int16]
    quarters: NDArray[np.int16]
    scales: NDArray[np.int16]
    shifts: NDArray[np.int64]


class _Work(NamedTuple):
    """Memory for one row at a time: costs of states, branches that were chosen, and paths."""

    cost: NDArray[np.int16]
    following: NDArray[np.int16]
    best: NDArray[np.int16]
    back: NDArray[np.uint8]
    path: NDArray[np.int32]


@numba.njit(cache=True)
def _error(point, value, scale, most, factor):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    # The casts say that each number fits 16 bits, so that the products are the upper halves of 16-bit ones.
    difference = int16(int32(point) - ((int32(value) * int32(scale)) >> int32(16)))
    # A product, as numba would shift in 64 bits.
    moved = int32(int16(int32(min(max(difference, int16(-most)), most)) * int32(factor)))
    return (moved * moved) >> int32(16)


@numba.njit(cache=True)
def _step_one_bit(cost, following, back, halves, scale, point, groups):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    low, high = cost[:groups], cost[groups : 2 * groups]
    even, odd = halves[:groups], halves[groups : 2 * groups]
    most, factor = int16(32767), int16(1)
    for group in range(groups):
        back[group] = uint8(1) if high[group] < low[group] else uint8(0)
        base = int32(min(min(low[group], high[group]), _HIGHEST))
        following[2 * group] = int16(base + _error(point, even[group], scale, most, factor))
        following[2 * group + 1] = int16(base + _error(point, odd[group], scale, most, factor))


@numba.njit(cache=True)
def _choose_of_four(best, back, cost, first, groups):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Compare four more branches with the best ones so far."""
    four = cost[first * groups : (first + 4) * groups]
    cost0, cost1 = four[:groups], four[groups : 2 * groups]
    cost2, cost3 = four[2 * groups : 3 * groups], four[3 * groups : 4 * groups]
    for group in range(groups):
        least, choice = best[group], int16(back[group])
        choice = int16(first) if cost0[group] < least else choice
        least = min(cost0[group], least)
        choice = int16(first + 1) if cost1[group] < least else choice
        least = min(cost1[group], least)
        choice = int16(first + 2) if cost2[group] < least else choice
        least = min(cost2[group], least)
        choice = int16(first + 3) if cost3[group] < least else choice
        best[group], back[group] = min(cost3[group], least), uint8(choice)


@numba.njit(cache=True)
def _double(costs, twice, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for index in range(count):
        twice[2 * index] = costs[index]
        twice[2 * index + 1] = costs[index]


@numba.njit(cache=True)
def _branch_to_four(best, following, quarters, scale, point, shift):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    count = len(following) // 4
    values0, values1 = quarters[:count], quarters[count : 2 * count]
    values2, values3 = quarters[2 * count : 3 * count], quarters[3 * count : 4 * count]
    most, factor = int16(32767 >> shift), int16(1 << shift)
    for index in range(count):
        base = int32(min(best[index], _HIGHEST))
        following[4 * index] = int16(base + _error(point, values0[index], scale, most, factor))
        following[4 * index + 1] = int16(base + _error(point, values1[index], scale, most, factor))
        following[4 * index + 2] = int16(base + _error(point, values2[index], scale, most, factor))
        following[4 * index + 3] = int16(base + _error(point, values3[index], scale, most, factor))


@numba.njit(cache=True)
def _step_many_bits(cost, following, back, best, axes, axis, point, groups):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Step over an axis of two bits or more; overwrites `cost`."""
    quarter = len(cost) // 4
    best[:groups], back[:] = _UNREACHABLE, 0
    for first in range(0, 1 << axes.bits[axis], 4):
        _choose_of_four(best[:groups], back, cost, first, groups)
    shift = axes.shifts[axis]
    spread = False
    while groups < quarter:
        # Repeat every cost until each stands for four states; to and fro, as all read and write what does not overlap.
        if spread:
            _double(cost, best, groups)
        else:
            _double(best, cost, groups)
        spread, groups = not spread, 2 * groups
    if spread:
        _branch_to_four(cost, following, axes.quarters, axes.scales[axis], point, shift)
    else:
        _branch_to_four(best, following, axes.quarters, axes.scales[axis], point, shift)


@numba.njit(cache=True)
def _renew(cost):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Take off all costs what makes the least the lowest number, and return it."""
    least = _UNREACHABLE
    for state in range(len(cost)):
        least = min(least, cost[state])
    taken = int32(least) - int32(_LOWEST)
    for state in range(len(cost)):
        cost[state] = int16(int32(cost[state]) - taken)
    return np.int64(taken)


@numba.njit(cache=True)
def _walk(points, axes, first, steps, start, work):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Walk `steps` axes cyclically from axis `first`, from any state (-1) or from `start`.

    Returns the costs of all states at the end, and what was taken off them.
    """
    cost, following = work.cost, work.following
    num_states, taken = len(cost), np.int64(0)
    cost[:] = _LOWEST if start < 0 else _UNREACHABLE
    cost[max(start, 0)] = _LOWEST
    for step in range(steps):
        # By the first renewal all states can be reached: it is no less axes than a window has bits.
        if step and step % AXES_BETWEEN_RENEWALS == 0:
            taken += _renew(cost)
        axis = (first + step) % len(points)
        groups = num_states >> axes.bits[axis]
        back = work.back[step, :groups]
        if axes.bits[axis] == 1:
            _step_one_bit(cost, following, back, axes.halves, axes.scales[axis], points[axis], groups)
        else:
            _step_many_bits(cost, following, back, work.best, axes, axis, points[axis], groups)
        cost, following = following, cost
    return cost, taken


@numba.njit(cache=True)
def _trace(axes, first, steps, state, work):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Write the state after each step of the best path that ends in `state`."""
    num_states, state = len(work.cost), np.int64(state)
    for step in range(steps - 1, -1, -1):
        bits = axes.bits[(first + step) % len(axes.bits)]
        work.path[step] = state
        group = state >> bits
        state = np.int64(work.back[step, group]) * (num_states >> bits) + group


@numba.njit(cache=True)
def _keep(path, first, step, windows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Write the windows of a lap of a path that began at axis `first`, from a step on."""
    count = len(windows)
    for later in range(step, step + count):
        windows[(first + later) % count] = path[later]


@numba.njit(cache=True)
def _lap(points, axes, first, start, least, work, windows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Walk once around from `start` and back to it; keep the windows if that costs less than `least`."""
    count = len(points)
    cost, taken = _walk(points, axes, first, count, start, work)
    total = taken + np.int64(cost[start])
    if total >= least:
        return least
    _trace(axes, first, count, start, work)
    _keep(work.path, first, 0, windows)
    return total


@numba.njit(cache=True)
def _search_every_state(points, axes, work, windows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Try every state, the most promising first, until no ring through another can cost less than the best one."""
    cost, taken = _walk(points, axes, 0, len(points), -1, work)
    bounds, least = cost.astype(np.int64) + taken, _NEVER
    while True:
        start = np.argmin(bounds)
        if bounds[start] >= least:
            return
        bounds[start] = _NEVER
        least = _lap(points, axes, 0, start, least, work, windows)


@numba.njit(cache=True)
def _search_places(points, axes, lead, places, work, windows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Walk once around after a lead. Where the path does not close, force it to at some places, and take the best."""
    count = len(points)
    first, steps = (count - lead) % count, lead + count
    cost, _ = _walk(points, axes, first, steps, -1, work)
    _trace(axes, first, steps, np.argmin(cost), work)
    path = work.path
    for step in range(lead - 1, -1, -1):
        if path[step] == path[step + count]:
            _keep(path, first, step + 1, windows)
            return
    if places == 1:
        # What a lap from the seam would find can mostly be read off, as the paths to all states were one there.
        start = path[lead - 1]
        _trace(axes, first, steps, start, work)
        if path[lead - 1] == start:
            _keep(path, first, lead, windows)
        else:
            _lap(points, axes, 0, start, _NEVER, work, windows)
        return
    found, least = path.copy(), _NEVER
    for place in range(places):
        step = (lead + (2 * place + 1) * count // places) // 2
        least = _lap(points, axes, (first + step + 1) % count, found[step], least, work, windows)


@numba.njit(cache=True, parallel=True)
def _encode(points, axes, lead, places, workers, windows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    rows, count = points.shape
    num_states = len(axes.halves)
    for worker in numba.prange(workers):
        work = _Work(
            np.empty(num_states, np.int16),
            np.empty(num_states, np.int16),
            np.empty(num_states, np.int16),
            np.empty((lead + count, num_states // 2), np.uint8),
            np.empty(lead + count, np.int32),
        )
        for row in range(worker, rows, workers):
            if places == 0:
                _search_every_state(points[row], axes, work, windows[row])
            else:
                _search_places(points[row], axes, lead, places, work, windows[row])


def search(points: NDArray[np.int16], ring: Ring, lead: int, places: int, threads: int) -> NDArray[np.int32]:
    """Return the state windows (V, n) of the best closed paths found for points (V, n); see trellis_search.py."""
    values = ring.values
    orders = [values.view(-1, size).T.reshape(-1) if len(values) >= size else values for size in (2, 4)]
    axes = _Axes(*(part.numpy() for part in (ring.bits, *orders, ring.scales, ring.shifts)))
    windows = np.empty(points.shape, np.int32)
    previous = numba.get_num_threads()
    workers = max(1, min(threads, previous))
    numba.set_num_threads(workers)
    try:
        _encode(points, axes, lead, places, workers, windows)
    finally:
        numba.set_num_threads(previous)
    return windows
