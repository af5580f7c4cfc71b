"""Codes chosen anew: nearest to the rows that are given, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_compact_embeddings.fitting import recoder_of
from hf_compact_embeddings.fitting.recoding import movable_rows, recode
from hf_compact_embeddings.modeling.structure import CompactEmbedding

from ..cases import EXTRAS, Case, all_cases, build_structure

MOVING = [case for case in all_cases() if recoder_of(build_structure(case)) is not None]
for_moving = pytest.mark.parametrize("case", MOVING, ids=str)


def table_of(rows: int = 60, width: int = 24, seed: int = 0) -> Tensor:
    """Return the table that `build_structure` fits, or others of its size."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def errors(structure: CompactEmbedding, table: Tensor) -> Tensor:
    """Return the squared error of the coded rows that can move."""
    rows = structure.dense()[: len(table)].detach()
    return (rows - table).square().sum(1)[movable_rows(structure)]


def test_which_methods_have_codes() -> None:
    assert {case.method for case in MOVING} == {"subspace", "rotated", "blocks", "scalar"}
    assert not [case for case in MOVING if case.options.get("assignment") == "dispersed"]


@for_moving
@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS)
def test_rows_come_nearer_and_only_codes_change(case: Case, extras: dict[str, Any]) -> None:
    structure = build_structure(case, **extras)
    # Rows have moved a good way, and floats a little, as they do in training.
    table = table_of() + 0.5 * table_of(seed=1)
    with torch.no_grad():
        for parameter in structure.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    before, state = errors(structure, table), {k: v.clone() for k, v in structure.state_dict().items()}
    moved = recode(structure, table)
    after = errors(structure, table)
    assert 0 < moved <= len(before)
    assert int((after != before).sum()) <= moved
    assert after.sum() < 0.99 * before.sum()
    if case.method != "blocks":  # Blocks are chosen one by one in axes that are not quite at right angles.
        assert (after <= before + 1e-4).all()
    changed = {name for name, value in structure.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == {"codes"}
    structure.check_values()
    # The second choice is the first.
    assert recode(structure, table) == 0


@for_moving
def test_right_after_a_fit_there_is_little_to_move(case: Case) -> None:
    structure = build_structure(case)
    before = errors(structure, table_of())
    moved = recode(structure, table_of())
    assert errors(structure, table_of()).sum() <= before.sum()
    # Trellis codes were searched for before their gains were known.
    assert moved <= (20 if case.method == "rotated" else 0)


@for_moving
def test_rows_that_the_codes_stand_for_stay(case: Case) -> None:
    structure = build_structure(case)
    rows = structure.dense().detach().clone()
    recode(structure, rows)
    torch.testing.assert_close(structure.dense(), rows, atol=1e-4, rtol=1e-4)


def test_different_tuples_stay_different() -> None:
    case = next(case for case in MOVING if case.method == "subspace")
    structure = build_structure(case, unique_codes=True, codebook_size=4)
    # All rows alike: without repair they would share a tuple.
    assert structure.collisions() == 0
    recode(structure, table_of()[:1].expand(60, -1) + 0.01 * table_of(seed=3))
    assert structure.collisions() == 0


def test_a_scale_of_zero_and_rows_without_bits() -> None:
    scalar = build_structure(next(case for case in MOVING if case.method == "scalar"))
    with torch.no_grad():
        scalar.scales[3] = 0.0
    rows = table_of(seed=1)
    rows[3] = 0.0
    recode(scalar, rows)
    assert scalar.dense().isfinite().all() and (scalar.dense()[3] == 0).all()
    with torch.no_grad():
        scalar.scales[3] = 1.0
    assert scalar.dense()[3].abs().max() <= 1.0, "nothing was divided by zero"
    for method in ("rotated", "blocks"):
        structure = build_structure(next(case for case in MOVING if case.method == method))
        with torch.no_grad():
            structure.basis_gains[0] = 0.0
        recode(structure, table_of(seed=1))
        assert structure.dense().isfinite().all()
