"""Compiled loops over values of 8, 4 or 2 bits, which become numbers in registers: sixteen bytes at a time.

A byte holds one, two or four values of a row. While a row is read, its values lie in parts: the first ones of all
bytes, then the second ones, and so on; queries are put into the same order, so that nothing has to be moved.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import float32, uint32

from .compiled import score_tile
from .lanes import LANES, added_up, levels, load, plus_product, plus_products, store, zeros

# Rows that are turned into numbers before several queries go over them; they stay in the cache.
_ROWS_AT_A_TIME = 32


@numba.njit(nogil=True, cache=True)
def _spread(scales, size, found):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Write the scale of each byte of a row, of which groups have `size` each."""
    for group in range(len(scales)):
        scale, mine = scales[group], found[group * size : (group + 1) * size]
        for byte in range(size):
            mine[byte] = scale


@numba.njit(nogil=True, cache=True)
def _is_aligned(scales, size):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Whether sixteen bytes from any multiple of sixteen on have one scale, of groups of so many bytes."""
    return len(scales) == 1 or size % LANES == 0


@numba.njit(nogil=True, cache=True)
def _level(byte, shift, mask, middle):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return float32((uint32(byte) >> shift) & mask) - middle


@numba.njit(nogil=True, cache=True)
def _score_two(codes, scales, bits, middle, query, spread, result, row, other):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Write the scores of two rows, for a query in the order of the parts."""
    codes0, codes1, scales0, scales1 = codes[row], codes[other], scales[row], scales[other]
    bytes_of_group, mask = np.int64(len(codes0)) // len(scales0), uint32((1 << bits) - 1)
    length, parts, whole = len(codes0), 8 // bits, len(codes0) // LANES * LANES
    total0, total1 = zeros(), zeros()
    aligned = _is_aligned(scales0, bytes_of_group)
    if not aligned:
        _spread(scales0, bytes_of_group, spread[0])
        _spread(scales1, bytes_of_group, spread[1])
    group, left = 0, bytes_of_group
    for place in range(0, whole, LANES):
        block0, block1 = zeros(), zeros()
        for part in range(parts):
            shift, numbers = uint32(part * bits), load(query, part * length + place)
            block0 = plus_products(block0, levels(codes0, place, shift, mask, middle), numbers)
            block1 = plus_products(block1, levels(codes1, place, shift, mask, middle), numbers)
        if aligned:
            total0 = plus_product(total0, block0, scales0[group])
            total1 = plus_product(total1, block1, scales1[group])
            left -= LANES
            if left == 0:
                group, left = group + 1, bytes_of_group
        else:
            total0 = plus_products(total0, block0, load(spread[0], place))
            total1 = plus_products(total1, block1, load(spread[1], place))
    sum0, sum1 = added_up(total0), added_up(total1)
    for place in range(whole, length):
        for part in range(parts):
            shift, number, group = uint32(part * bits), query[part * length + place], place // bytes_of_group
            sum0 += _level(codes0[place], shift, mask, middle) * number * scales0[group]
            sum1 += _level(codes1[place], shift, mask, middle) * number * scales1[group]
    result[row], result[other] = sum0, sum1


@numba.njit(nogil=True, cache=True)
def _read_row(codes, scales, bits, middle, spread, found):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Write the values of a row in the order of the parts."""
    length, mask, size = len(codes), uint32((1 << bits) - 1), np.int64(len(codes)) // len(scales)
    whole, aligned = length // LANES * LANES, _is_aligned(scales, size)
    if not aligned:
        _spread(scales, size, spread)
    for part in range(8 // bits):
        shift, offset = uint32(part * bits), part * length
        if aligned:
            for group in range(len(scales)):
                scale = scales[group]
                for place in range(group * size, min((group + 1) * size, whole), LANES):
                    read = levels(codes, place, shift, mask, middle)
                    store(found, offset + place, plus_product(zeros(), read, scale))
        else:
            for place in range(0, whole, LANES):
                read = levels(codes, place, shift, mask, middle)
                store(found, offset + place, plus_products(zeros(), read, load(spread, place)))
        for place in range(whole, length):
            found[offset + place] = _level(codes[place], shift, mask, middle) * scales[place // size]


@numba.njit(nogil=True, cache=True)
def score(codes, scales, bits, queries, result, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the scores (N, V) of the rows from `first` up to `last`.

    `codes` (V, bytes) and `scales` (V, groups) are the table's; each group begins with a byte. `queries` (N, values)
    are in the order of the parts.
    """
    middle, spread = float32(((1 << bits) - 1) / 2), np.empty((2, codes.shape[1]), np.float32)
    if len(queries) == 1:
        for row in range(first, last, 2):
            other = min(row + 1, last - 1)
            _score_two(codes, scales, bits, middle, queries[0], spread, result[0], row, other)
        return
    tile = np.empty((_ROWS_AT_A_TIME, queries.shape[1]), np.float32)
    ones = np.ones(_ROWS_AT_A_TIME, np.float32)
    for start in range(first, last, _ROWS_AT_A_TIME):
        stop = min(start + _ROWS_AT_A_TIME, last)
        for row in range(start, stop):
            _read_row(codes[row], scales[row], bits, middle, spread[0], tile[row - start])
        score_tile(tile, ones, queries, result[:, start:stop], 0, stop - start)


@numba.njit(nogil=True, cache=True)
def look_up(codes, scales, bits, ids, result):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the rows (n, D) of ids (n,), whose scales are (n, groups)."""
    middle, width, size = float32(((1 << bits) - 1) / 2), result.shape[1], np.int64(codes.shape[1])
    spread, found = np.empty(size, np.float32), np.empty(size * (8 // bits), np.float32)
    for place in range(len(ids)):
        row, target = ids[place], result[place]
        if bits == 8:
            _read_row(codes[row], scales[place], bits, middle, spread, target)
            continue
        _read_row(codes[row], scales[place], bits, middle, spread, found)
        whole = width * bits // 8
        if bits == 4:
            for byte in range(whole):
                target[2 * byte], target[2 * byte + 1] = found[byte], found[size + byte]
        else:
            for byte in range(whole):
                target[4 * byte], target[4 * byte + 1] = found[byte], found[size + byte]
                target[4 * byte + 2], target[4 * byte + 3] = found[2 * size + byte], found[3 * size + byte]
        # Of the last byte only some values may be of the row.
        for axis in range(whole * 8 // bits, width):
            target[axis] = found[axis * bits % 8 // bits * size + whole]
