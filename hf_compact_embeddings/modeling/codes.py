"""Integer codes as bytes: packing, reading single rows, and scoring through them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_BITS = 24
# Bounds the codes, and the decoded values, that are read at a time while scoring: 2 MB in 4 bytes each.
_PER_CHUNK = 1 << 19
# embedding_bag has a vectorised kernel from this many columns on; fewer queries are padded up to it.
_MIN_QUERIES = 8


def is_traced() -> bool:
    """Whether a compiler or tracer is running the code: what depends on values must then not decide anything."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def bits_for(count: int) -> int:
    """Return how many bits a code takes that tells `count` entries apart (at least 1)."""
    return max(1, (count - 1).bit_length())


def packed_width(num_codes: int, bits: int) -> int:
    """Return the bytes that one row of `num_codes` codes of `bits` bits takes."""
    return (num_codes * bits + 7) // 8


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack integer codes (V, f) below 2^bits into bytes (V, ceil(f * bits / 8)), lowest bit first."""
    if bits == 8:
        return codes.to(torch.uint8)
    rows, num_codes = codes.shape
    width = packed_width(num_codes, bits)
    packed = torch.zeros(rows, width + 4, dtype=torch.int32, device=codes.device)
    for position in range(num_codes):
        byte, shift = divmod(position * bits, 8)
        window = codes[:, position].to(torch.int64) << shift
        for offset in range((shift + bits + 7) // 8):
            packed[:, byte + offset] |= ((window >> (8 * offset)) & 0xFF).to(torch.int32)
    return packed[:, :width].to(torch.uint8).contiguous()


def unpack_codes(packed: Tensor, num_codes: int, bits: int) -> Tensor:
    """Read codes (..., f) as int64 from packed rows (..., ceil(f * bits / 8))."""
    if bits == 8:
        return packed.to(torch.int64)
    device = packed.device
    first_bit = torch.arange(num_codes, device=device) * bits
    byte, shift = first_bit // 8, first_bit % 8
    value = torch.zeros(*packed.shape[:-1], num_codes, dtype=torch.int64, device=device)
    for offset in range((bits + 14) // 8):
        # Bytes past the end are masked away below, so any valid index will do for them.
        column = (byte + offset).clamp(max=packed.shape[-1] - 1)
        value |= packed[..., column].to(torch.int64) << (8 * offset)
    return (value >> shift) & ((1 << bits) - 1)


def draw_codes_(packed: Tensor, num_codes: int, bits: int, entries: int) -> None:
    """Fill packed rows (V, bytes) with codes drawn evenly from `entries` values, some rows at a time."""
    for chunk in packed.split(max(1, _PER_CHUNK // num_codes)):
        chunk.copy_(pack_codes(torch.randint(entries, (len(chunk), num_codes), device=packed.device), bits))


def product_scores(tables: Tensor, codes: Tensor, bits: int) -> Tensor:
    """Sum, for every row, the scores that its codes select.

    With one fused look-up-and-add per row; a loop over the codebooks would be memory bound.

    Args:
        tables: scores of each codebook entry for each query (f, n, N), float32.
        codes: packed rows (V, bytes), uint8.
        bits: bits per code.

    Returns:
        (N, V), float32. Needs memory for the result and a few chunks, never for V x D.
    """
    num_tables, entries, queries = tables.shape
    padding = max(0, _MIN_QUERIES - queries)
    flat = F.pad(tables, (0, padding)).reshape(num_tables * entries, queries + padding)
    first_entry = torch.arange(num_tables, device=codes.device, dtype=torch.int32) * entries

    def score(start: int, stop: int) -> Tensor:
        index = unpack_codes(codes[start:stop], num_tables, bits).to(torch.int32) + first_entry
        return F.embedding_bag(index, flat, mode="sum")

    scores = flat.new_empty(len(codes), flat.shape[1])
    return joined(score, scores, num_tables, 0).T[:queries]


def decoded_scores(hidden: Tensor, rows: int, decode: Callable[[int, int], Tensor]) -> Tensor:
    """Return hidden · Eᵀ (N, rows), float32, for queries (N, k) and rows (·, k) that are decoded chunk by chunk.

    With gradients they are decoded again for the backward pass: kept, the chunks would add up to the whole table.

    Args:
        hidden: queries (N, k), float32.
        rows: how many rows there are.
        decode: gives the rows from `start` up to `stop` (n, k).
    """

    def score(start: int, stop: int) -> Tensor:
        return hidden @ decode(start, stop).to(hidden.dtype).T

    again = partial(checkpoint, score, use_reentrant=False)
    return joined(again if torch.is_grad_enabled() else score, hidden.new_empty(len(hidden), rows), hidden.shape[-1])


def joined(score: Callable[[int, int], Tensor], result: Tensor, width: int, dim: int = -1) -> Tensor:
    """Return the scores of all rows, from those of some rows at a time.

    Without gradients they are written into one `result` that was made beforehand: parts that are kept would lie between
    what was decoded for them and is freed, and memory would have holes for as much as the dense table takes.

    Args:
        score: gives the scores of the rows from a start up to a stop.
        result: as the scores of all rows are, without values.
        width: codes or values of a row, which bound how many rows are read at a time.
        dim: along which rows lie.
    """
    rows, step = result.shape[dim], max(1, _PER_CHUNK // width)
    parts = (score(start, min(start + step, rows)) for start in range(0, rows, step))
    if torch.is_grad_enabled() or is_traced():
        return torch.cat(list(parts), dim)
    for place, part in zip(result.split(step, dim), parts, strict=True):
        place.copy_(part)
    return result
