"""Repair of code tuples: move colliding tokens to the next best entries until all tuples differ."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..modeling.errors import CompactConfigError

# How many of the nearest entries of each slice are tried before the search widens.
_FIRST_CANDIDATES = 8


def make_unique(codes: Tensor, distances: Sequence[Callable[[Tensor], Tensor]], entries: int) -> Tensor:
    """Return tuples (V, f) that all differ; each moved token changes its cheapest digits.

    Args:
        codes: the tuples (V, f). The first token that has a tuple keeps it.
        distances: for each group of slices, a function from ids (m,) to the squared distances
            (m, slices, n) to all entries; the groups side by side make up the f digits.
        entries: n.
    """
    rows, digits = codes.shape
    if entries**digits < rows:
        raise CompactConfigError(
            f"`unique_codes` needs {rows:,} different tuples, but {digits} subspaces of {entries} rows "
            f"give only {entries**digits:,}."
        )
    codes = codes.cpu().to(torch.int64, copy=True)
    _, group, group_size = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
    first = torch.full((len(group_size),), rows, dtype=torch.int64)
    first.scatter_reduce_(0, group, torch.arange(rows), reduce="amin")
    movers = (first[group] != torch.arange(rows)).nonzero().flatten()
    taken = {tuple(row) for row in codes.tolist()}
    # Where all neighbours are taken, any free tuple has to do; there is one, by the count above.
    anywhere = (t for t in itertools.product(range(entries), repeat=digits) if t not in taken)
    for ids in movers.split(1024):
        cost = torch.cat([function(ids) for function in distances], dim=1)
        cost = cost - cost.gather(2, codes[ids].unsqueeze(-1))
        for row, token in enumerate(ids.tolist()):
            chosen = _nearest_free(codes[token].tolist(), cost[row], taken) or next(anywhere)
            codes[token] = torch.tensor(chosen)
            taken.add(chosen)
    return codes


def _nearest_free(current: list[int], cost: Tensor, taken: set[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Return the cheapest tuple at one changed digit that nobody has, or None."""
    entries = cost.shape[1]
    candidates = min(_FIRST_CANDIDATES, entries)
    while True:
        price, entry = cost.topk(candidates, dim=1, largest=False)
        for flat in price.flatten().argsort().tolist():
            digit, rank = divmod(flat, candidates)
            trial = (*current[:digit], int(entry[digit, rank]), *current[digit + 1 :])
            if trial not in taken:
                return trial
        if candidates == entries:
            return None
        candidates = min(candidates * 8, entries)
