"""Compiled loops over trellis codes: sixteen rows at a time, whose windows lie at the same bits of their rings.

Of the bits of sixteen rows of one tier, those at one place lie side by side, so that an axis takes a shift that is the
same for all of them, one gather of their values, and a product for each query. No row is decoded for a score.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numba import uint32
from numpy.typing import NDArray

from .lanes import LANES, load, plus_product, store, window_values, zeros
from .row_loops import by_tier

# Queries that one reading of a row serves: as many sums stay in registers.
QUERIES = 8
# So many rows are sorted by tiers at a time.
_ROWS_AT_A_TIME = 4096


class Rings(NamedTuple):
    """Where the axes of each tier lie in its rows' rings of bits, tier after tier.

    Attributes:
        starts: the first entry of each tier in what follows (T + 1,).
        words: the word before the one in which the axis' last bit is, of 32 bits (P,), counted from one before the row.
        shifts: how many bits of that word follow it (P,).
        masks: which bits a window has, in each tier (T,).
        values: of all windows, one table after the other.
        first_values: where the table of each tier begins (T,).
        first_bytes: where the codes of each tier would begin if its first row had the place 0 (T,).
        row_bytes: bytes of a row in each tier (T,).
    """

    starts: NDArray[np.int64]
    words: NDArray[np.int32]
    shifts: NDArray[np.uint8]
    masks: NDArray[np.uint32]
    values: NDArray[np.float32]
    first_values: NDArray[np.int64]
    first_bytes: NDArray[np.int64]
    row_bytes: NDArray[np.int64]


@numba.njit(nogil=True, cache=True)
def _read_rows(rings, codes, places, rows, begin, count, tier, words):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Write the bits of up to sixteen rows of a tier into lanes, in words of 32, and before them those that end a ring.

    The last row is in the lanes that are left too.
    """
    size = rings.row_bytes[tier]
    whole, rest = size // 4, size % 4
    for lane in range(LANES):
        first = rings.first_bytes[tier] + places[rows[begin + min(lane, count - 1)]] * size
        before = uint32(0)
        for byte in range(4):
            # Rings of less than four bytes are seen more than once.
            before = uint32(before << uint32(8)) | uint32(codes[first + (size - 4 + byte) % size])
        words[0, lane] = before
        for word in range(whole):
            place = first + 4 * word
            high = uint32(uint32(codes[place]) << uint32(24)) | uint32(uint32(codes[place + 1]) << uint32(16))
            words[1 + word, lane] = high | uint32(uint32(codes[place + 2]) << uint32(8)) | uint32(codes[place + 3])
        if rest:
            ending = uint32(0)
            for byte in range(rest):
                ending |= uint32(uint32(codes[first + 4 * whole + byte]) << uint32(24 - 8 * byte))
            words[1 + whole, lane] = ending


@numba.njit(nogil=True, cache=True)
def _new_words(rings):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return np.zeros((rings.row_bytes.max() // 4 + 3, LANES), np.uint32)


@numba.njit(nogil=True, cache=True)
def _score_one(words, word, shift, mask, values, query, sums):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    total = zeros()
    for axis in range(len(query)):
        total = plus_product(total, window_values(words, word[axis], shift[axis], mask, values), query[axis, 0])
    store(sums[0], 0, total)


@numba.njit(nogil=True, cache=True)
def _read_values(words, word, shift, mask, values, found):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for axis in range(len(word)):
        store(found[axis], 0, window_values(words, word[axis], shift[axis], mask, values))


@numba.njit(nogil=True, cache=True)
def _score_eight(found, queries, sums):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    total0, total1, total2, total3 = zeros(), zeros(), zeros(), zeros()
    total4, total5, total6, total7 = zeros(), zeros(), zeros(), zeros()
    for axis in range(len(queries)):
        values, query = load(found[axis], 0), queries[axis]
        total0 = plus_product(total0, values, query[0])
        total1 = plus_product(total1, values, query[1])
        total2 = plus_product(total2, values, query[2])
        total3 = plus_product(total3, values, query[3])
        total4 = plus_product(total4, values, query[4])
        total5 = plus_product(total5, values, query[5])
        total6 = plus_product(total6, values, query[6])
        total7 = plus_product(total7, values, query[7])
    store(sums[0], 0, total0)
    store(sums[1], 0, total1)
    store(sums[2], 0, total2)
    store(sums[3], 0, total3)
    store(sums[4], 0, total4)
    store(sums[5], 0, total5)
    store(sums[6], 0, total6)
    store(sums[7], 0, total7)


@numba.njit(nogil=True, cache=True)
def score(rings, codes, places, firsts, queries, offsets, result, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the scores (N, V) of the rows from `first` up to `last`.

    `queries` (groups, P, 1 or 8) are turned into the axes, in the order of the rings and times their gains; `offsets`
    (T, N) are what a tier's mean has.
    """
    width = queries.shape[2]
    words, sums = _new_words(rings), np.zeros((QUERIES, LANES), np.float32)
    found = np.empty((np.diff(rings.starts).max(), LANES), np.float32)
    for start in range(first, last, _ROWS_AT_A_TIME):
        rows = np.arange(start, min(start + _ROWS_AT_A_TIME, last))
        order, begins = by_tier(places, firsts, rows)
        rows = rows[order]
        for tier in range(len(rings.masks)):
            axes = slice(rings.starts[tier], rings.starts[tier + 1])
            word, shift, mask = rings.words[axes], rings.shifts[axes], rings.masks[tier]
            values = rings.values[rings.first_values[tier] :]
            for begin in range(begins[tier], begins[tier + 1], LANES):
                count = min(LANES, begins[tier + 1] - begin)
                if rings.row_bytes[tier]:
                    _read_rows(rings, codes, places, rows, begin, count, tier, words)
                    if width > 1:
                        _read_values(words, word, shift, mask, values, found)
                for group in range(len(queries)):
                    if width > 1:
                        _score_eight(found, queries[group, axes], sums)
                    else:
                        _score_one(words, word, shift, mask, values, queries[group, axes], sums)
                    for query in range(group * width, min((group + 1) * width, len(result))):
                        for lane in range(count):
                            total = sums[query - group * width, lane] + offsets[tier, query]
                            result[query, rows[begin + lane]] = total


@numba.njit(nogil=True, cache=True)
def decode(rings, codes, places, rows, tier, gains, axes, tile):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the coordinates of rows (n,) of one tier, one a column, into a tile (r, columns) that is zero elsewhere.

    There are columns for a multiple of sixteen rows; `gains` and `axes` (P,) are those of the rings' entries.
    """
    words, mine = _new_words(rings), slice(rings.starts[tier], rings.starts[tier + 1])
    word, shift, gain, axis = rings.words[mine], rings.shifts[mine], gains[mine], axes[mine]
    values, mask = rings.values[rings.first_values[tier] :], rings.masks[tier]
    for begin in range(0, len(rows), LANES):
        _read_rows(rings, codes, places, rows, begin, min(LANES, len(rows) - begin), tier, words)
        for entry in range(len(word)):
            found = window_values(words, word[entry], shift[entry], mask, values)
            store(tile[axis[entry]], begin, plus_product(zeros(), found, gain[entry]))


@numba.njit(nogil=True, cache=True)
def add_centres(centres, gains, clusters, rows, tile):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Add the coordinates of the centroids of rows (n,) to a tile (r, columns)."""
    for column in range(len(rows)):
        centre = centres[clusters[rows[column]]]
        for axis in range(len(gains)):
            tile[axis, column] += centre[axis] * gains[axis]


@numba.njit(nogil=True, cache=True)
def read_windows(codes, places, shifts, mask, values, found, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the values (V, n) of the windows of rows from `first` up to `last`, of packed codes (V, bytes).

    A window ends in three bytes, `places` (3, n), of which `shifts` (n,) bits follow it.
    """
    for row in range(first, last):
        code, target = codes[row], found[row]
        for axis in range(len(shifts)):
            older = uint32(code[places[0, axis]]) << uint32(16) | uint32(code[places[1, axis]]) << uint32(8)
            window = (older | uint32(code[places[2, axis]])) >> uint32(shifts[axis])
            target[axis] = values[window & uint32(mask)]


def ring_places(bits: Any) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Return `words` and `shifts` of the axes of a ring, of whose bits each has so many (n,)."""
    last = np.cumsum(np.asarray(bits, np.int64)) - 1
    return (last // 32).astype(np.int32), (31 - last % 32).astype(np.uint8)
