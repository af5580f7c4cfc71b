"""Compiled loops over rows that are looked up: in which order they are decoded, and where each has its place."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def by_tier(places, firsts, ids):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return the order of ids (n,) by their tiers, and where each tier begins in it (T + 1,).

    `places` (V,) are those of all rows if they were sorted so, and `firsts` (T,) where each tier begins there.
    """
    count = len(firsts)
    begins, tiers = np.zeros(count + 1, np.int64), np.empty(len(ids), np.uint8)
    for index in range(len(ids)):
        tier, place = 0, places[ids[index]]
        while tier + 1 < count and place >= firsts[tier + 1]:
            tier += 1
        tiers[index] = tier
        begins[tier + 1] += 1
    for tier in range(count):
        begins[tier + 1] += begins[tier]
    following, order = begins.copy(), np.empty(len(ids), np.int64)
    for index in range(len(ids)):
        tier = tiers[index]
        order[following[tier]] = index
        following[tier] += 1
    return order, begins


@numba.njit(nogil=True, cache=True)
def first_places(ids):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return where each id (n,) is seen first, and the places (m,) of those that are seen for the first time."""
    size = 16
    while size < 2 * len(ids):
        size *= 2
    seen, firsts, distinct = np.full(size, -1), np.empty(len(ids), np.int64), 0
    places = np.empty(len(ids), np.int64)
    for place in range(len(ids)):
        # Multiplied by a large odd number, so that ids in a row do not fall together.
        slot = ((ids[place] * 0x9E3779B1) >> 7) & (size - 1)
        while seen[slot] >= 0 and ids[seen[slot]] != ids[place]:
            slot = (slot + 1) & (size - 1)
        if seen[slot] < 0:
            seen[slot] = place
            places[distinct] = place
            distinct += 1
        firsts[place] = seen[slot]
    return firsts, places[:distinct]


@numba.njit(nogil=True, cache=True)
def spread(found, mean, places, result):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write rows (n, D) plus their mean to their places in the result."""
    for row in range(len(places)):
        source, target = found[row], result[places[row]]
        for axis in range(len(mean)):
            target[axis] = source[axis] + mean[axis]


@numba.njit(nogil=True, cache=True)
def repeat(firsts, result):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Copy the rows that are there to the places that have the same id."""
    for place in range(len(firsts)):
        if firsts[place] != place:
            result[place] = result[firsts[place]]
