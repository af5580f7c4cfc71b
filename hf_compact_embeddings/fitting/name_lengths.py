"""Huffman's code: how long names must be so that all of them together take the fewest bits."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def name_lengths(counts: Sequence[int]) -> tuple[int, ...]:
    """Return the bits of the name of each kind, of which there are so many; nothing where there is but one kind."""
    if len(counts) < 2:
        return ()
    heap = [(count, kind) for kind, count in enumerate(counts)]
    heapq.heapify(heap)
    parents = [0] * (2 * len(counts) - 1)
    for joined in range(len(counts), len(parents)):
        (one, first), (other, second) = heapq.heappop(heap), heapq.heappop(heap)
        parents[first] = parents[second] = joined
        heapq.heappush(heap, (one + other, joined))
    depths = [0] * len(parents)
    for node in range(len(parents) - 2, -1, -1):
        depths[node] = depths[parents[node]] + 1
    return tuple(depths[: len(counts)])
