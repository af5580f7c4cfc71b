"""Names of different lengths: what most rows are called takes a bit or two, what few are called takes more.

The codes are canonical: the lengths of the names say all about them. Names of one length are consecutive numbers, in
the order of what they name, and shorter names come first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A name is read from a window of as many bits; a Huffman code of 2^40 rows has none longer.
MAX_LENGTH = 56


def is_complete(lengths: Sequence[int]) -> bool:
    """Whether names of these lengths can be told apart, and leave no sequence of bits without a meaning."""
    if not all(isinstance(length, int) and 0 < length <= MAX_LENGTH for length in lengths):
        return False
    return sum(1 << (MAX_LENGTH - length) for length in lengths) == 1 << MAX_LENGTH


def named_bytes(counts: Sequence[int], lengths: Sequence[int]) -> int:
    """Return the bytes of the names of so many rows of each kind."""
    return (sum(count * length for count, length in zip(counts, lengths, strict=True)) + 7) // 8


def pack_names(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Write the names of values (n,) one after the other, the first bit of a name first; bytes, lowest bit first."""
    widths = torch.tensor(lengths, device=values.device)
    order, first_names = _canonical(lengths)
    names = torch.empty(len(lengths), dtype=torch.int64)
    names[order] = first_names
    mine, width = names.to(values.device)[values], widths[values]
    starts = width.cumsum(0) - width
    total = int(width.sum())
    bits = torch.zeros(-(-total // 8) * 8, dtype=torch.uint8, device=values.device)
    for place in range(int(width.max()) if len(values) else 0):
        longer = width > place
        bits[starts[longer] + place] = ((mine[longer] >> (width[longer] - 1 - place)) & 1).to(torch.uint8)
    powers = 1 << torch.arange(8, device=values.device)
    return (bits.view(-1, 8).long() * powers).sum(1).to(torch.uint8)


def unpack_names(packed: Tensor, count: int, lengths: Sequence[int]) -> Tensor:
    """Read values (n,) as int64 from what `pack_names` wrote. What is not a name is read as some value."""
    device = packed.device
    order, first_names = _canonical(lengths)
    widths = torch.tensor(lengths, dtype=torch.int64)[order]
    longest = int(widths.max())
    bits = ((packed.cpu().unsqueeze(1) >> torch.arange(8)) & 1).flatten().long()
    bits = torch.nn.functional.pad(bits, (0, longest))
    # What the name that starts at each bit would be, if one did: then follow the names from the first one.
    windows = torch.zeros(len(bits) - longest, dtype=torch.int64)
    for place in range(longest):
        windows = windows * 2 + bits[place : place + len(windows)]
    found = torch.searchsorted(first_names << (longest - widths), windows, right=True) - 1
    step = widths[found].tolist()
    starts, place = [], 0
    for _ in range(count):
        starts.append(min(place, len(step) - 1))
        place = starts[-1] + step[starts[-1]]
    return order[found[starts]].to(device)


def _canonical(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return what names stand for, in the order of the code, and the names in this order; both (K,), int64."""
    order = sorted(range(len(lengths)), key=lambda value: lengths[value])
    names, following, before = [], 0, 0
    for value in order:
        following <<= lengths[value] - before
        before = lengths[value]
        names.append(following)
        following += 1
    return torch.tensor(order), torch.tensor(names)
