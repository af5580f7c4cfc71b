"""The repair of colliding tuples: all differ afterwards, and the moves are cheap."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_compact_embeddings.fitting.unique_codes import make_unique
from hf_compact_embeddings.modeling.errors import CompactConfigError


def costs(rows: int, digits: int, entries: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, digits, entries, generator=torch.Generator().manual_seed(seed))


def repaired(codes: torch.Tensor, cost: torch.Tensor, groups: int = 1) -> torch.Tensor:
    parts = cost.chunk(groups, dim=1)
    return make_unique(codes, [lambda ids, part=part: part[ids] for part in parts], cost.shape[-1])


@given(digits=st.integers(1, 4), entries=st.integers(1, 6), share=st.floats(0.05, 1.0), seed=st.integers(0, 10_000))
def test_all_tuples_differ(digits: int, entries: int, share: float, seed: int) -> None:
    rows = max(1, int(share * min(entries**digits, 200)))
    cost = costs(rows, digits, entries, seed)
    before = cost.argmin(-1)
    after = repaired(before, cost, groups=min(2, digits))
    assert after.shape == before.shape
    assert len(after.unique(dim=0)) == rows
    assert int(after.min()) >= 0 and int(after.max()) < entries


def test_tuples_that_differ_stay_and_the_first_owner_keeps_its_own() -> None:
    before = torch.tensor([[0, 1], [2, 2], [0, 1], [3, 0], [2, 2]])
    after = repaired(before, costs(5, 2, 4))
    assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])
    moved = (after != before).any(1)
    assert moved.tolist() == [False, False, True, False, True]
    assert torch.equal(before, torch.tensor([[0, 1], [2, 2], [0, 1], [3, 0], [2, 2]])), "the input is left alone"


def test_a_move_takes_the_cheapest_free_digit() -> None:
    before = torch.zeros(2, 3, dtype=torch.int64)
    cost = torch.full((2, 3, 4), 9.0)
    cost[:, :, 0] = 1.0
    cost[1, 2, 3] = 1.5
    cost[1, 0, 2] = 2.0
    assert repaired(before, cost)[1].tolist() == [0, 0, 3]


def test_every_tuple_may_be_needed() -> None:
    before = torch.zeros(16, 2, dtype=torch.int64)
    after = repaired(before, costs(16, 2, 4))
    assert len(after.unique(dim=0)) == 16


def test_too_many_rows_for_too_few_tuples() -> None:
    with pytest.raises(CompactConfigError, match="`unique_codes` needs 17 different tuples.*give only 16"):
        repaired(torch.zeros(17, 2, dtype=torch.int64), costs(17, 2, 4))
