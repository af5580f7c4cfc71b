"""Huffman codes: what most rows are takes a bit or two to say, what few are takes more.

The codes are canonical: the lengths of the codewords say all about them. Codewords of one length are consecutive
numbers, in the order of the symbols, and shorter codewords come first. Each is written with its first bit first, into
bytes that are filled from the lowest bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A codeword is read from a window of as many bits; a Huffman code of 2^40 rows has none longer.
MAX_LENGTH = 56
_BYTES_PER_CHUNK = 1 << 15


def is_complete(lengths: Sequence[int]) -> bool:
    """Whether codewords of these lengths can be told apart, and leave no sequence of bits without a meaning."""
    if not all(0 < length <= MAX_LENGTH for length in lengths):
        return False
    return sum(1 << (MAX_LENGTH - length) for length in lengths) == 1 << MAX_LENGTH


def coded_bytes(counts: Sequence[int], lengths: Sequence[int]) -> int:
    """Return the bytes of so many codewords of each length."""
    return (sum(count * length for count, length in zip(counts, lengths, strict=True)) + 7) // 8


def pack_symbols(symbols: Tensor, lengths: Sequence[int]) -> Tensor:
    """Write the codewords of symbols (n,) one after the other, as bytes."""
    widths = torch.tensor(lengths, device=symbols.device)
    order, first_codewords = _canonical(lengths)
    codewords = torch.empty(len(lengths), dtype=torch.int64)
    codewords[order] = first_codewords
    mine, width = codewords.to(symbols.device)[symbols], widths[symbols]
    starts = width.cumsum(0) - width
    total = int(width.sum())
    bits = torch.zeros(-(-total // 8) * 8, dtype=torch.uint8, device=symbols.device)
    for position in range(int(width.max()) if len(symbols) else 0):
        longer = width > position
        bits[starts[longer] + position] = ((mine[longer] >> (width[longer] - 1 - position)) & 1).to(torch.uint8)
    powers = 1 << torch.arange(8, device=symbols.device)
    return (bits.view(-1, 8).long() * powers).sum(1).to(torch.uint8)


def unpack_symbols(packed: Tensor, count: int, lengths: Sequence[int]) -> Tensor:
    """Read symbols (n,) as int64 from what `pack_symbols` wrote; damaged bytes give some symbols, and no error."""
    order, first_codewords = _canonical(lengths)
    widths = torch.tensor(lengths, dtype=torch.int64)[order]
    longest = int(widths.max())
    limits = first_codewords << (longest - widths)
    found: list[int] = []
    position, end = 0, 8 * len(packed)
    while len(found) < count and position < end:
        # Some bytes at a time: each bit takes many times its size in memory while it is read.
        start = position // 8
        chunk = packed[start : start + _BYTES_PER_CHUNK + MAX_LENGTH // 8].cpu()
        bits = ((chunk.unsqueeze(1) >> torch.arange(8)) & 1).flatten().long()
        stop = min(8 * _BYTES_PER_CHUNK, len(bits))
        bits = torch.nn.functional.pad(bits, (0, longest))
        # What the codeword that starts at each bit would be, if one did: then follow them from the first one.
        windows = torch.zeros(stop, dtype=torch.int64)
        for place in range(longest):
            windows = windows * 2 + bits[place : place + stop]
        symbols = torch.searchsorted(limits, windows, right=True) - 1
        step = widths[symbols].tolist()
        places, place = [], position - 8 * start
        for _ in range(count - len(found)):
            if place >= stop:
                break
            places.append(place)
            place += step[place]
        found += symbols[places].tolist()
        position = 8 * start + place
    # Bytes that end too early are damaged.
    found += [0] * (count - len(found))
    return order[found].to(packed.device)


def _canonical(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the symbols in the order of their codewords, and the codewords in this order; both (K,), int64."""
    order = sorted(range(len(lengths)), key=lambda symbol: lengths[symbol])
    codewords, following, before = [], 0, 0
    for symbol in order:
        following <<= lengths[symbol] - before
        before = lengths[symbol]
        codewords.append(following)
        following += 1
    return torch.tensor(order), torch.tensor(codewords)
