"""Damage of every kind, drawn from fixed seeds: refused in one kind of error, or loaded as something that works.

`make fuzz` goes on with other seeds for as long as it is told.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ..cases import Case, first_cases
from .attempts import ALLOWED, Table, attempt, tables
from .checkpoints import Checkpoint

_TABLE_SEEDS, _CHECKPOINT_SEEDS = range(300), range(60)


@pytest.mark.parametrize(("case", "extras"), tables(), ids=str)
def test_a_damaged_table_is_refused_or_works(case: Case, extras: str) -> None:
    table = Table.of(case, extras)
    outcomes = {seed: attempt(table, seed) for seed in _TABLE_SEEDS}
    assert {seed: outcome for seed, outcome in outcomes.items() if outcome not in ALLOWED} == {}
    assert set(ALLOWED) <= set(outcomes.values()), "there is damage of every outcome"


@pytest.mark.parametrize("case", first_cases("project"), ids=str)
def test_a_damaged_checkpoint_is_refused_or_works(case: Case, tmp_path: Path) -> None:
    checkpoint = Checkpoint.of(case, tmp_path)
    outcomes = {seed: checkpoint.attempt(seed) for seed in _CHECKPOINT_SEEDS}
    assert {seed: outcome for seed, outcome in outcomes.items() if outcome not in ALLOWED} == {}
    assert set(ALLOWED) <= set(outcomes.values()), "there is damage of every outcome"
