"""Compiled loops over rows of one or two bytes a value, which are read as float32 numbers and never stored as such.

They hold no lock of Python, so that rows can be shared out among threads.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import float32, types
from numba.extending import intrinsic
from torch import Tensor

from .threads import shared_out

# Numbers may be added in another order, as vector code does, and as every matrix product does.
_ANY_ORDER = {"reassoc", "contract", "nsz"}
# So many rows stay in the cache while one group of queries after the other goes over them.
_ROWS_IN_CACHE = 32


@intrinsic
def _widened(typing_context, value):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Read an int8 number, the bits of a float16 (as uint16), those of a bfloat16 (as int16), or float32 as float32."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        single = ir.FloatType()
        if value == types.float32:
            return arguments[0]
        if value == types.int8:
            return builder.sitofp(arguments[0], single)
        if value == types.uint16:
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), single)
        wide = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), single)

    return types.float32(value), generate


@numba.njit(nogil=True, cache=True, fastmath=_ANY_ORDER)
def _score_one(rows, scales, query, result, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Score some rows for one query: four rows at a time, so that each of its numbers is read once for them."""
    width, whole = len(query), first + (last - first) // 4 * 4
    for row in range(first, whole, 4):
        row0, row1, row2, row3 = rows[row], rows[row + 1], rows[row + 2], rows[row + 3]
        sum0, sum1, sum2, sum3 = float32(0), float32(0), float32(0), float32(0)
        for axis in range(width):
            number = query[axis]
            sum0 += _widened(row0[axis]) * number
            sum1 += _widened(row1[axis]) * number
            sum2 += _widened(row2[axis]) * number
            sum3 += _widened(row3[axis]) * number
        result[row] = sum0 * scales[row]
        result[row + 1] = sum1 * scales[row + 1]
        result[row + 2] = sum2 * scales[row + 2]
        result[row + 3] = sum3 * scales[row + 3]
    for row in range(whole, last):
        values, total = rows[row], float32(0)
        for axis in range(width):
            total += _widened(values[axis]) * query[axis]
        result[row] = total * scales[row]


@numba.njit(nogil=True, cache=True, fastmath=_ANY_ORDER)
def _score_four(rows, scales, queries, result, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Score an even number of rows for four queries: eight sums at a time stay in registers."""
    query0, query1, query2, query3 = queries[0], queries[1], queries[2], queries[3]
    for row in range(first, last, 2):
        even, odd = rows[row], rows[row + 1]
        even0, even1, even2, even3 = float32(0), float32(0), float32(0), float32(0)
        odd0, odd1, odd2, odd3 = float32(0), float32(0), float32(0), float32(0)
        for axis in range(len(query0)):
            value, other = _widened(even[axis]), _widened(odd[axis])
            even0 += value * query0[axis]
            even1 += value * query1[axis]
            even2 += value * query2[axis]
            even3 += value * query3[axis]
            odd0 += other * query0[axis]
            odd1 += other * query1[axis]
            odd2 += other * query2[axis]
            odd3 += other * query3[axis]
        scale, other_scale = scales[row], scales[row + 1]
        result[0, row], result[0, row + 1] = even0 * scale, odd0 * other_scale
        result[1, row], result[1, row + 1] = even1 * scale, odd1 * other_scale
        result[2, row], result[2, row + 1] = even2 * scale, odd2 * other_scale
        result[3, row], result[3, row + 1] = even3 * scale, odd3 * other_scale


@numba.njit(nogil=True, cache=True)
def score_tile(rows, scales, queries, result, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the scores (N, V) of the rows from `first` up to `last` for queries (N, D)."""
    count = len(queries)
    for start in range(first, last, _ROWS_IN_CACHE):
        stop = min(start + _ROWS_IN_CACHE, last)
        even = start + (stop - start) // 2 * 2
        for query in range(0, count - 3, 4):
            _score_four(rows, scales, queries[query : query + 4], result[query : query + 4], start, even)
            for beside in range(query, query + 4):
                _score_one(rows, scales, queries[beside], result[beside], even, stop)
        for query in range(count - count % 4, count):
            _score_one(rows, scales, queries[query], result[query], start, stop)


@numba.njit(nogil=True, cache=True)
def _look_up(rows, scales, ids, result, first, last):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for place in range(first, last):
        values, scale, found = rows[ids[place]], scales[ids[place]], result[place]
        for axis in range(len(found)):
            found[axis] = _widened(values[axis]) * scale


def scores(rows: Tensor, scales: Tensor, hidden: Tensor) -> Tensor:
    """Return hidden · rowsᵀ · scales (N, V) for float32 hidden states (N, D) and rows (V, D)."""
    result = torch.empty(len(hidden), len(rows))
    numbers = (_numbers(rows), scales.numpy(), hidden.contiguous().numpy(), result.numpy())
    shared_out(functools.partial(score_tile, *numbers), len(rows), rows.numel() * len(hidden))
    return result


def look_up(rows: Tensor, scales: Tensor, ids: Tensor) -> Tensor:
    """Return the rows (n, D) of ids (n,), times their scales, as float32. Nothing checks the ids here."""
    result = torch.empty(len(ids), rows.shape[1])
    numbers = (_numbers(rows), scales.numpy(), ids.contiguous().numpy(), result.numpy())
    shared_out(functools.partial(_look_up, *numbers), len(ids), result.numel())
    return result


def _numbers(rows: Tensor) -> Any:
    """Return the memory of rows as numpy knows it: the type says how it is read, see `_widened`."""
    if rows.dtype == torch.int8:
        return rows.numpy()
    bits = rows.view(torch.int16).numpy()
    return bits.view(np.uint16) if rows.dtype == torch.float16 else bits
