"""Compiled Viterbi search for trellis codes; the same sums in the same order as the plain one in trellis.py."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

_UNREACHABLE = np.float32(1e30)


@numba.njit(cache=True)
def _step_one_bit(cost, following, back, values, point, groups):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    low, high = cost[:groups], cost[groups : 2 * groups]
    for group in range(groups):
        other = high[group] < low[group]
        best = high[group] if other else low[group]
        back[group] = numba.uint8(1) if other else numba.uint8(0)
        first, second = point - values[2 * group], point - values[2 * group + 1]
        following[2 * group] = best + first * first
        following[2 * group + 1] = best + second * second


@numba.njit(cache=True)
def _step_two_bits(cost, following, back, values, point, groups):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    # Four named slices, and the choice kept as a float, let the compiler vectorise the loop.
    cost0, cost1 = cost[:groups], cost[groups : 2 * groups]
    cost2, cost3 = cost[2 * groups : 3 * groups], cost[3 * groups : 4 * groups]
    for group in range(groups):
        best, choice = cost0[group], np.float32(0)
        other = cost1[group] < best
        best, choice = cost1[group] if other else best, np.float32(1) if other else choice
        other = cost2[group] < best
        best, choice = cost2[group] if other else best, np.float32(2) if other else choice
        other = cost3[group] < best
        best, choice = cost3[group] if other else best, np.float32(3) if other else choice
        back[group] = numba.uint8(numba.int32(choice))
        error = point - values[4 * group]
        following[4 * group] = best + error * error
        error = point - values[4 * group + 1]
        following[4 * group + 1] = best + error * error
        error = point - values[4 * group + 2]
        following[4 * group + 2] = best + error * error
        error = point - values[4 * group + 3]
        following[4 * group + 3] = best + error * error


@numba.njit(cache=True)
def _step(cost, following, back, values, point, groups, best):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    branches = len(cost) // groups
    for group in range(groups):
        best[group] = cost[group]
        back[group] = 0
    for branch in range(1, branches):
        candidates = cost[branch * groups : (branch + 1) * groups]
        choice = numba.uint8(branch)
        for group in range(groups):
            other = candidates[group] < best[group]
            best[group] = candidates[group] if other else best[group]
            back[group] = choice if other else back[group]
    for group in range(groups):
        base = best[group]
        first = group * branches
        for branch in range(branches):
            error = point - values[first + branch]
            following[first + branch] = base + error * error


@numba.njit(cache=True)
def _search(point, bits, values, first, steps, start, windows, cost, following, back, best):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Walk `steps` axes cyclically from axis `first`; write the window after each step; return the cost.

    With a `start` the path begins and ends in it; with -1 both ends are free.
    """
    num_states = len(cost)
    axes = len(bits)
    cost[:] = np.float32(0) if start < 0 else _UNREACHABLE
    if start >= 0:
        cost[start] = np.float32(0)
    offset = 0
    for step in range(steps):
        axis = (first + step) % axes
        groups = num_states >> bits[axis]
        chosen = back[offset : offset + groups]
        if bits[axis] == 1:
            _step_one_bit(cost, following, chosen, values[axis], point[axis], groups)
        elif bits[axis] == 2:
            _step_two_bits(cost, following, chosen, values[axis], point[axis], groups)
        else:
            _step(cost, following, chosen, values[axis], point[axis], groups, best)
        cost, following = following, cost
        offset += groups
    state = np.int64(start) if start >= 0 else np.argmin(cost)
    total = cost[state]
    for step in range(steps - 1, -1, -1):
        axis = (first + step) % axes
        groups = num_states >> bits[axis]
        offset -= groups
        windows[step] = state
        group = state >> bits[axis]
        state = np.int64(back[offset + group]) * groups + group
    return total


@numba.njit(cache=True, parallel=True)
def _encode(points, bits, values, trials, laps, workers, windows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    rows, axes = points.shape
    num_states = values.shape[1]
    groups = 0
    for axis in range(axes):
        groups += num_states >> bits[axis]
    for worker in numba.prange(workers):
        cost, following = np.empty(num_states, np.float32), np.empty(num_states, np.float32)
        best, back = np.empty(num_states, np.float32), np.empty(laps * groups, np.uint8)
        path = np.empty(laps * axes, np.int32)
        for row in range(worker, rows, workers):
            least = np.float32(np.inf)
            for trial in range(num_states if trials == 0 else trials):
                start = trial
                if trials > 0:
                    first = (trial + 1) * axes // (trials + 1)
                    _search(points[row], bits, values, first, laps * axes, -1, path, cost, following, back, best)
                    crossing = axes - 1 - first
                    if laps == 2 and 2 * first > axes:
                        crossing += axes
                    start = path[crossing]
                total = _search(points[row], bits, values, 0, axes, start, path, cost, following, back, best)
                if total < least:
                    least = total
                    windows[row] = path[:axes]


def search(
    points: NDArray[np.float32],
    bits: NDArray[np.int64],
    values: NDArray[np.float32],
    trials: int,
    laps: int,
    threads: int,
) -> NDArray[np.int32]:
    """Return the state windows (V, n) of the best closed paths found for points (V, n); see trellis.py."""
    windows = np.empty(points.shape, np.int32)
    previous = numba.get_num_threads()
    workers = max(1, min(threads, previous))
    numba.set_num_threads(workers)
    try:
        _encode(points, bits, values, trials, laps, workers, windows)
    finally:
        numba.set_num_threads(previous)
    return windows
