"""Compiled loops over product codes: a score is the sum of those of the entries that a row's codes name."""

from __future__ import annotations

import numba
import numpy as np
from numba import float32

from .lanes import LANES, load, plus_product, store, zeros
from .row_loops import by_tier

# Numbers may be added in another order, as vector code does.
_ANY_ORDER = {"reassoc", "contract", "nsz"}
# Rows that go through the scores of one group of queries after the other.
_ROWS_AT_A_TIME = 512


@numba.njit(nogil=True, cache=True)
def unpack(codes, bits, most, found):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Read codes of `bits` bits (n, f), lowest bit first, from packed rows (n, bytes); damaged ones become `most`."""
    mask = (1 << bits) - 1
    for row in range(len(codes)):
        packed = codes[row]
        for position in range(found.shape[1]):
            first = position * bits
            last = min((first + bits + 7) // 8, len(packed))
            number = 0
            for byte in range(first // 8, last):
                number |= np.int64(packed[byte]) << (8 * (byte - first // 8))
            found[row, position] = min((number >> (first % 8)) & mask, most)


@numba.njit(nogil=True, cache=True)
def digits(ids, entries, found):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the digits (n, f) of ids (n,) in base `entries`, lowest first."""
    for row in range(len(ids)):
        rest = np.int64(ids[row])
        for position in range(found.shape[1]):
            found[row, position] = rest % entries
            rest //= entries


@numba.njit(nogil=True, cache=True, fastmath=_ANY_ORDER)
def _sum_one(codes, firsts, count, scores, entries, sums):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Sum the scores (f · entries,) that rows name whose codes begin at `firsts` (n,): four rows at a time."""
    last = len(firsts) - 1
    for row in range(0, len(firsts), 4):
        codes0, codes1 = codes[firsts[row] :], codes[firsts[min(row + 1, last)] :]
        codes2, codes3 = codes[firsts[min(row + 2, last)] :], codes[firsts[min(row + 3, last)] :]
        sum0, sum1, sum2, sum3 = float32(0), float32(0), float32(0), float32(0)
        for position in range(count):
            mine = scores[position * entries : (position + 1) * entries]
            sum0 += mine[codes0[position]]
            sum1 += mine[codes1[position]]
            sum2 += mine[codes2[position]]
            sum3 += mine[codes3[position]]
        sums[row, 0], sums[row + 1, 0], sums[row + 2, 0], sums[row + 3, 0] = sum0, sum1, sum2, sum3


@numba.njit(nogil=True, cache=True)
def _sum_sixteen(codes, firsts, count, scores, entries, sums):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The same for sixteen queries, of which each entry has its scores side by side."""
    last, one = len(firsts) - 1, float32(1)
    for row in range(0, len(firsts), 4):
        first0, first1 = firsts[row], firsts[min(row + 1, last)]
        first2, first3 = firsts[min(row + 2, last)], firsts[min(row + 3, last)]
        total0, total1, total2, total3 = zeros(), zeros(), zeros(), zeros()
        for position in range(count):
            base = position * entries
            place0, place1 = base + np.int64(codes[first0 + position]), base + np.int64(codes[first1 + position])
            place2, place3 = base + np.int64(codes[first2 + position]), base + np.int64(codes[first3 + position])
            total0 = plus_product(total0, load(scores, place0 * LANES), one)
            total1 = plus_product(total1, load(scores, place1 * LANES), one)
            total2 = plus_product(total2, load(scores, place2 * LANES), one)
            total3 = plus_product(total3, load(scores, place3 * LANES), one)
        flat, place = sums.reshape(-1), np.int64(row * LANES)
        store(flat, place, total0)
        store(flat, place + LANES, total1)
        store(flat, place + 2 * LANES, total2)
        store(flat, place + 3 * LANES, total3)


@numba.njit(nogil=True, cache=True)
def _sum(codes, firsts, count, scores, entries, width, sums):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    if width == 1:
        _sum_one(codes, firsts, count, scores, entries, sums)
    else:
        _sum_sixteen(codes, firsts, count, scores, entries, sums)


@numba.njit(nogil=True, cache=True)
def score(codes, bits, count, scores, entries, result, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the scores (N, V) of the rows from `first` up to `last` of packed codes (V, bytes), `count` a row.

    Without bytes the codes are the digits of rows in base `entries`. `scores` (groups, f · entries · 1 or 16) are those
    of all entries, for one query, or for sixteen at a time.
    """
    width, whole_bytes = 1 if len(result) == 1 else LANES, bits == 8 and entries == 256 and codes.shape[1] > 0
    unpacked = np.empty((0 if whole_bytes else _ROWS_AT_A_TIME, count), np.uint32)
    # Rows are read by fours, the last ones of a chunk too.
    firsts, sums = np.empty(_ROWS_AT_A_TIME, np.int64), np.empty((_ROWS_AT_A_TIME + 3, LANES), np.float32)
    flat, flat_unpacked = codes.reshape(-1), unpacked.reshape(-1)
    for start in range(first, last, _ROWS_AT_A_TIME):
        found = min(_ROWS_AT_A_TIME, last - start)
        if not whole_bytes:
            if codes.shape[1]:
                unpack(codes[start : start + found], bits, entries - 1, unpacked)
            else:
                digits(np.arange(start, start + found), entries, unpacked[:found])
        for row in range(found):
            firsts[row] = (row + start if whole_bytes else row) * count
        for group in range(len(scores)):
            if whole_bytes:
                _sum(flat, firsts[:found], count, scores[group], entries, width, sums)
            else:
                _sum(flat_unpacked, firsts[:found], count, scores[group], entries, width, sums)
            for query in range(group * width, min((group + 1) * width, len(result))):
                for row in range(found):
                    result[query, start + row] = sums[row, query - group * width]


@numba.njit(nogil=True, cache=True)
def score_tiers(codes, starts, sizes, places, tier_firsts, scores, entries, offsets, result, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The same for rows that lie tier by tier, each with as many codes of a byte as its tier has.

    `starts` and `sizes` (T,) are where the codes of each tier would begin if its first row had the place 0, and how
    many a row has; `offsets` (T, N) what is added to a tier's scores. `places` and `tier_firsts`: see `by_tier`.
    """
    width = 1 if len(result) == 1 else LANES
    firsts, sums = np.empty(_ROWS_AT_A_TIME, np.int64), np.empty((_ROWS_AT_A_TIME + 3, LANES), np.float32)
    for start in range(first, last, _ROWS_AT_A_TIME):
        rows = np.arange(start, min(start + _ROWS_AT_A_TIME, last))
        order, begins = by_tier(places, tier_firsts, rows)
        for tier in range(len(sizes)):
            mine = rows[order[begins[tier] : begins[tier + 1]]]
            for row in range(len(mine)):
                firsts[row] = starts[tier] + places[mine[row]] * sizes[tier]
            for group in range(len(scores)):
                _sum(codes, firsts[: len(mine)], sizes[tier], scores[group], entries, width, sums)
                for query in range(group * width, min((group + 1) * width, len(result))):
                    for row in range(len(mine)):
                        result[query, mine[row]] = sums[row, query - group * width] + offsets[tier, query]


@numba.njit(nogil=True, cache=True)
def look_up(codes, codebooks, last_codebook, result):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the entries (n, D) that codes (n, f) name, of codebooks (f', n, d) and, if any, of a wider last one."""
    equal, _, width = codebooks.shape
    for row in range(len(codes)):
        for position in range(equal):
            entry, found = codebooks[position, codes[row, position]], result[row, position * width :]
            for axis in range(width):
                found[axis] = entry[axis]
        if len(last_codebook):
            result[row, equal * width :] = last_codebook[codes[row, equal]]


@numba.njit(nogil=True, cache=True)
def points(codes, first, size, places, rows, starts, entries, centre, gains, result):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the coordinates (n, width) of rows of one tier, which have `size` codes each.

    They would begin at `first` if the tier's first row had the place 0. `entries` (n, r) minus `centre`, times `gains`
    (r,), are the codebooks side by side, of which one begins at each of the `starts` (blocks + 1,).
    """
    for row in range(len(rows)):
        found, place = result[row], first + places[rows[row]] * size
        for block in range(size):
            entry = entries[min(np.int64(codes[place + block]), len(entries) - 1)]
            for axis in range(starts[block], starts[block + 1]):
                found[axis] = (float32(entry[axis]) - centre) * gains[axis]
